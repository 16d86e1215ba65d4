"""Replays beside a gateway that runs: it makes the calls again itself; the record is served by a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from omni_mcp.cli.launch import control
from omni_mcp.protocol.eras import META_CAPABILITIES, META_VERSION
from omni_mcp.testing import ALLOW_ALL
from tests.clients.running import OMNI, Place, new_place, serving
from tests.replay.script import HANDSHAKE, MODERN, WAIT_S

pytestmark = [pytest.mark.slow]
Json = dict[str, Any]
ACCEPT = "application/json, text/event-stream"
CALLS: list[Json] = [
    {"name": "tools__search_tools", "arguments": {"query": "hash a text", "limit": 2}},
    {"name": "nowhere__at_all", "arguments": {"n": 1}},
    {"name": "tools__search_tools", "arguments": {"limit": 0}},
]


def _message(response: httpx2.Response) -> bytes:
    """The bytes of the answer itself; one that takes a while comes in a stream, and its times are not on record."""
    if "event-stream" not in response.headers.get("content-type", ""):
        return response.content
    lines = [line for line in response.content.split(b"\r\n") if line.startswith(b"data: ")]
    return lines[-1].removeprefix(b"data: ")


async def _modern(url: str, token: str) -> list[bytes]:
    """The bodies of a modern session over HTTP."""
    bodies = []
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=WAIT_S) as web:
        for number, (method, params) in enumerate([("tools/list", {}), *(("tools/call", call) for call in CALLS)]):
            envelope = {META_VERSION: MODERN, META_CAPABILITIES: {}}
            headers = {
                "mcp-protocol-version": MODERN,
                "mcp-method": method,
                "accept": "application/json, text/event-stream",
            }
            headers |= {"mcp-name": params["name"]} if "name" in params else {}
            message = {"jsonrpc": "2.0", "id": number, "method": method, "params": {**params, "_meta": envelope}}
            bodies.append(_message(await web.post(url, json=message, headers=headers)))
    return bodies


async def _handshake(url: str, token: str) -> list[bytes]:
    """The bodies of a handshake session over HTTP; its session id is the server's, and fresh."""
    info = {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    headers = {"authorization": f"Bearer {token}", "accept": ACCEPT}
    bodies = []
    async with httpx2.AsyncClient(headers=headers, timeout=WAIT_S) as web:
        first = await web.post(url, json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": info})
        bodies.append(_message(first))
        web.headers["mcp-session-id"] = first.headers["mcp-session-id"]
        web.headers["mcp-protocol-version"] = HANDSHAKE
        await web.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        for number, call in enumerate(CALLS, 1):
            message = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": call}
            bodies.append(_message(await web.post(url, json=message)))
    return bodies


@asynccontextmanager
async def _record_served(place: Place, *runs: str) -> AsyncIterator[str]:
    """Serve recorded runs over HTTP; yields the URL."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [OMNI, "runs", "replay", *runs, "--offline", "--port", "0"], env=place.environment, stderr=said,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with asyncio.timeout(WAIT_S):
                while True:
                    text = os.pread(said.fileno(), 65536, 0).decode()
                    if "listens on " in text:
                        break
                    assert process.poll() is None, text
                    await asyncio.sleep(0.02)  # a file can only be looked at again and again
            yield text.partition("listens on ")[2].split()[0]
        finally:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 20)


async def _newest(place: Place, count: int) -> list[str]:
    listed = await asyncio.to_thread(place.run_json, "runs", "list")
    return [run["id"] for run in listed if run["kind"] == "session"][:count]


@pytest.mark.parametrize(
    "session", [pytest.param(_modern, id="modern", marks=pytest.mark.long), pytest.param(_handshake, id="handshake")]
)
async def test_bodies_over_http_come_back_byte_for_byte_beside_the_gateway(session: Any) -> None:
    with new_place() as place:
        place.write_policy(ALLOW_ALL)
        with serving(place) as running:
            recorded = await session(running.url(), running.token)
            [run] = await _newest(place, 1)
            async with _record_served(place, run) as url:
                again = await session(url, running.token)
                refused = await session(url, "omni_no_such_token") if session is _modern else [b"Unauthenticated"]

    assert again == recorded
    assert b"policy_denied" in again[2] and b"invalid_arguments" in again[3]
    assert all(b"result" not in body for body in refused)


@pytest.mark.long
async def test_the_running_gateway_makes_a_run_again_in_its_own_log(tmp_path: Path) -> None:
    with new_place() as place:
        place.write_policy(ALLOW_ALL)
        with serving(place) as running:
            await _modern(running.url(), running.token)
            [run] = await _newest(place, 1)
            told = await asyncio.to_thread(place.run_json, "runs", "replay", run)
            verified = await asyncio.to_thread(place.run, "audit", "verify")
            missing = await asyncio.to_thread(place.end_of, "runs", "replay", "0000")
            shown = await asyncio.to_thread(place.run_json, "runs", "show", told["replays"][0]["replay"])

    assert told["ok"] and [call["ending"] for call in told["replays"][0]["calls"]] == ["same"] * 3
    assert shown["run"]["parent_run"] == run and "operator:" in shown["events"][0]["actor"]
    assert "verified" in verified
    assert missing.returncode == 1 and "there is no run" in missing.stderr
    assert json.dumps(told)


async def test_a_gateway_replays_nothing_that_it_is_not_asked_for_properly() -> None:
    improper: list[Json] = [
        {"run": "x", "by": 1}, {"run": "x", "allow_writes": "yes"}, {"run": "x", "volatile": {}}, {}
    ]  # fmt: skip
    with new_place() as place, serving(place):
        answers = [
            await asyncio.to_thread(control, place.home, "replay", arguments=arguments, timeout_s=WAIT_S)
            for arguments in improper
        ]

    assert [answer is not None and answer["ok"] for answer in answers] == [False] * 4
