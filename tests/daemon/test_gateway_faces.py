"""What one running gateway says to whom: tokens, the JSON API, agents and servers over the local socket."""

from __future__ import annotations

import asyncio
import json
import os
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest

from tests.daemon.gateway_world import WAIT_S, World, a_world, connect, serving


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One gateway for all tests of this file: none of them changes what another one looks at."""
    with asyncio.Runner() as runner:
        running = _running()
        yield runner.run(anext(running))
        runner.run(running.aclose())


async def _running() -> AsyncGenerator[World, None]:
    async with a_world() as made, serving(made):
        yield made


def fetch(
    world: World, path: str, token: str | None, *, body: bytes | None = None, method: str = "GET"
) -> tuple[int, Any, dict[str, Any]]:
    """Send one request; returns status, headers and body."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    url = world.status()["url"].removesuffix("/mcp") + path
    request = urllib.request.Request(url, data=body, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, json.loads(error.read())


def first_token(world: World) -> str:
    return world.home.token_file.read_text().strip()


def test_the_first_start_mints_a_token_that_only_its_owner_can_read(world: World) -> None:
    assert world.home.token_file.stat().st_mode & 0o777 == 0o600
    assert fetch(world, "/api/status", first_token(world))[0] == 200
    for wrong in (None, "x", first_token(world) + "x", first_token(world)[:-1]):
        assert fetch(world, "/api/status", wrong)[0] == 401


def test_a_token_works_from_its_making_to_its_revocation_without_a_restart(world: World) -> None:
    made = world.omni("keys", "create", "laptop", "--agent", "coder", "--expires", "1h").stdout.strip()
    assert fetch(world, "/api/status", made)[0] == 200
    listed = world.omni("keys", "list", "--json").stdout
    assert made not in listed
    assert {key["name"]: key["state"] for key in json.loads(listed)} == {"first": "valid", "laptop": "valid"}
    world.omni("keys", "revoke", "laptop")
    assert fetch(world, "/api/status", made)[0] == 401
    assert world.omni("keys", "revoke", "laptop", check=False).returncode == 1


def test_a_key_file_opened_to_others_locks_everybody_out_until_it_is_closed(world: World) -> None:
    world.home.keys_file.chmod(0o644)
    assert fetch(world, "/api/status", first_token(world))[0] == 401
    refused = world.omni("keys", "list", check=False)
    assert refused.returncode == 1 and "chmod 600" in refused.stderr
    world.home.keys_file.chmod(0o600)
    assert fetch(world, "/api/status", first_token(world))[0] == 200


@pytest.mark.long
def test_events_and_decisions_sent_by_a_client_are_forbidden_and_nothing_is_stored(world: World) -> None:
    before = world.events("gateway")
    body = json.dumps({"kind": "tool_result", "payload": {"is_error": False}}).encode()
    paths = ("/api/events", "/api/runs/1/events", "/api/approvals/1/approve", "/api/status", "/api/x")
    for path in paths:
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            status, headers, answer = fetch(world, path, first_token(world), body=body, method=method)
            assert (status, answer["code"]) == (403, "forbidden"), (method, path)
            assert headers["X-Request-ID"] and answer["detail"]
            assert fetch(world, path, None, body=body, method=method)[0] == 401
    assert [event["kind"] for event in world.events("gateway") if event["kind"] != "system_event"] == ["run_created"]
    assert {event["code"] for event in world.events("gateway")[len(before) :]} <= {"request_rejected"}


def test_the_status_over_http_is_the_one_over_the_socket(world: World) -> None:
    over_socket, (code, headers, over_http) = world.status(), fetch(world, "/api/status", first_token(world))
    assert code == 200 and headers["X-Request-ID"]
    assert over_http["policy"] == over_socket["policy"] and over_http["catalog"] == over_socket["catalog"]


def test_what_is_not_there_is_not_found(world: World) -> None:
    code, _, answer = fetch(world, "/api/nothing", first_token(world))
    assert (code, answer["code"]) == (404, "not_found")


async def test_agent_and_server_of_a_client_are_on_record(world: World) -> None:
    client = await connect(world, "--agent", "coder", "--server", "tools")
    await client.call("text_hash", text="x")
    assert await client.leave() == 0
    call = next(event for event in world.events("session") if event["kind"] == "tool_call")
    assert call["payload"]["principal"] == f'Agent::"coder"/{os.getuid()}@default'
    assert call["payload"]["profile"] == "tools"


async def test_an_unknown_server_is_refused_before_anything_is_served(world: World) -> None:
    client = await connect(world, "--server", "nowhere", greet=False)
    assert client.process.stderr is not None
    assert b"no profile or server 'nowhere'" in await client.process.stderr.read()
    assert await client.leave() == 1
