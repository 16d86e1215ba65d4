"""Servers that break: each call ends in a structured error or a bounded result, and others go on."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.manifest import Limits
from omni_mcp.engines.upstream.connection import Timing
from omni_mcp.engines.upstream.health import Patience
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.testing import error_of
from tests.upstream.world import QUICK, WRITES, accepted, python_server, world, writing
from tests.waiting import until


def raw(**options: Any) -> ServerDefinition:
    return python_server("raw", json.dumps(options))


@pytest.mark.parametrize(
    ("tool", "code"),
    [
        ("nan", "upstream_protocol"),
        ("deep", "upstream_protocol"),
        ("utf8", "upstream_protocol"),
        ("bad_result", "upstream_protocol"),
        ("no_content", "upstream_protocol"),
        ("half", "outcome_unknown"),
        ("die", "outcome_unknown"),
        ("hang", "timeout"),
    ],
)
async def test_a_broken_answer_is_one_structured_error_and_the_next_call_works(tool: str, code: str) -> None:
    def accept(entry: Any) -> Any:
        return accepted(entry, labels=WRITES, limits=Limits(timeout_s=1.0 if entry.name == "hang" else 15.0))

    async with world({"up": raw()}, accept=accept) as here, here.client() as client:
        reply = await client.request("tools/call", {"name": f"up__{tool}", "arguments": {}})
        after = await client.call("up__echo", {"text": "still here"})
        outcomes = await here.gateway.outcomes()

    assert error_of(reply)["code"] == code
    assert after["content"][0]["text"] == "still here"
    assert sorted(word for words in outcomes.values() for word in words) == sorted(
        ["tool_result", f"tool_error:{code}"]
    )


@pytest.mark.parametrize(
    ("tool", "text"),
    [("twice", "first"), ("wrong_id", "mine"), ("noise", "through the noise"), ("slow_bytes", "drip"), ("ping", "{}")],
)
async def test_junk_beside_an_answer_changes_nothing(tool: str, text: str) -> None:
    async with world({"up": raw()}) as here, here.client() as client:
        result = await client.call(f"up__{tool}")
        after = await client.call("up__echo", {"text": "still here"})

    assert result["content"][0]["text"] == text
    assert after["content"][0]["text"] == "still here"


async def test_a_flood_of_messages_delays_nobody_else() -> None:
    async with world({"up": raw(), "other": raw()}) as here, here.client() as client:
        _, flooded = await client.start("tools/call", {"name": "up__flood", "arguments": {"lines": 5000}})
        others = [(await client.call("other__echo", {"text": str(n)}))["content"][0]["text"] for n in range(20)]
        during = not flooded.done()
        result = (await asyncio.wait_for(flooded, 30))["result"]

    assert others == [str(n) for n in range(20)]
    assert during, "the flood was over before it could disturb anybody"
    assert result["content"][0]["text"] == "flooded"


async def test_a_large_result_becomes_an_artifact_and_a_larger_one_an_error() -> None:
    async with world({"up": raw(), "other": raw()}) as here, here.client() as client:
        _, big = await client.start("tools/call", {"name": "up__big", "arguments": {"bytes": 30_000_000}})
        other = await client.call("other__echo", {"text": "meanwhile"})
        kept = (await asyncio.wait_for(big, 60))["result"]
        _, huge = await client.start("tools/call", {"name": "up__big", "arguments": {"bytes": 140_000_000}})
        refused = await asyncio.wait_for(huge, 60)
        after = await client.call("up__echo", {"text": "still here"})

    assert other["content"][0]["text"] == "meanwhile"
    assert kept["_meta"]["io.omni-mcp/artifact"]["size"] == 30_000_000
    assert error_of(refused)["code"] == "upstream_protocol"
    assert after["content"][0]["text"] == "still here"


async def test_a_read_only_call_is_sent_again_to_a_server_that_died_and_a_writing_one_is_not(tmp_path: Path) -> None:
    arguments = {"mark": str(tmp_path / "mark")}
    async with world({"up": raw()}) as here, here.client() as client:
        again = await client.call("up__after_die", arguments)

    assert again["content"][0]["text"] == "alive again"
    assert (tmp_path / "mark").read_text() == "x"

    arguments = {"mark": str(tmp_path / "other")}
    async with world({"up": raw()}, accept=writing) as here, here.client() as client:
        once = await client.request("tools/call", {"name": "up__after_die", "arguments": arguments})

    assert error_of(once)["code"] == "outcome_unknown"
    assert (tmp_path / "other").read_text() == "x"


async def test_calls_of_everybody_on_a_dead_connection_fail_at_once() -> None:
    async with world({"up": raw()}, accept=writing) as here, here.client() as client:
        hanging = [(await client.start("tools/call", {"name": "up__hang", "arguments": {}}))[1] for _ in range(5)]
        connection = here.pool._connections["up", ""]
        await until(lambda: connection.facts()["pending"] == 5)
        here.children.started[-1].kill()
        replies = await asyncio.wait_for(asyncio.gather(*hanging), 30)

    assert {error_of(reply)["code"] for reply in replies} == {"outcome_unknown"}


async def test_a_server_that_cannot_be_started_is_refused_at_once_after_a_few_tries_and_comes_back(
    tmp_path: Path,
) -> None:
    script = tmp_path / "server"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    timing = Timing(patience=Patience(backoff_s=0.001, backoff_limit_s=0.001, failures_to_open=3, open_s=0.5))
    known_tools = raw()
    async with world({"up": ServerDefinition(command=str(script)), "ok": known_tools}, timing=timing) as here:
        async with here.client() as client:
            listing = here.pool.source.find("ok")
            assert listing is not None
            here.pool.source.put("up", listing)
            here.gateway.gateway.reload_catalog()
            replies = [
                await client.request("tools/call", {"name": "up__echo", "arguments": {"text": "hi"}}) for _ in range(6)
            ]
            starts = len(here.children.started)
            argv = " ".join(f"'{part}'" for part in (known_tools.command or "", *known_tools.args))
            script.write_text(f"#!/bin/sh\nexec {argv}\n")
            ended = time.monotonic() + 20
            while time.monotonic() < ended:
                after = await client.request("tools/call", {"name": "up__echo", "arguments": {"text": "back"}})
                if not error_of(after):
                    break
                await asyncio.sleep(0.05)

    assert {error_of(reply)["code"] for reply in replies} == {"upstream_unavailable"}
    assert "retry_after_s" in error_of(replies[-1])["data"]
    assert "'up__echo': " in str(replies[-1]) and "try again in " in str(replies[-1])
    assert starts <= 2 + 3 * 2, "the breaker let more starts through than it should"
    assert after["result"]["content"][0]["text"] == "back"


async def test_nothing_was_dispatched_where_the_server_could_not_be_started() -> None:
    async with world({"up": raw()}) as here, here.client() as client:
        connection = here.pool._connections["up", ""]
        here.children.started[-1].kill()
        await until(lambda: connection.state != "ready")
        here.pool._servers["up"] = ServerDefinition(command="/nowhere")
        connection._wires[:] = here.pool._wires("up", here.pool._servers["up"])
        await client.request("tools/call", {"name": "up__echo", "arguments": {}})
        event = await here.gateway.until("tool_error")

    assert event.payload is not None
    assert event.payload["code"] == "upstream_unavailable" and event.payload["dispatched"] is False


async def test_too_many_questions_of_one_call_are_refused_and_the_call_goes_on() -> None:
    async with world({"up": raw()}) as here:
        async with here.client(version="2026-07-28", capabilities={"elicitation": {}}) as client:
            result = await client.call("up__questions")
            while result.get("resultType") == "input_required":
                responses = {key: {"action": "cancel"} for key in result["inputRequests"]}
                result = await client.call(
                    "up__questions", inputResponses=responses, requestState=result["requestState"]
                )

    assert int(result["content"][0]["text"]) >= 80


async def test_an_error_of_the_server_reaches_the_caller_in_its_own_words() -> None:
    async with world({"up": raw()}) as here, here.client() as client:
        result = await client.call("up__error")

    assert result["isError"] and "no such luck" in result["content"][0]["text"]
    assert result["_meta"]["io.omni-mcp/upstream_error"] == {
        "code": -32050, "message": "no such luck", "data": {"why": "test"}
    }  # fmt: skip


async def test_connecting_and_leaving_leaves_no_process() -> None:
    async with world({"up": raw()}, timing=QUICK) as here:
        for _ in range(20):
            async with here.client() as client:
                await client.call("up__echo", {"text": "x"})
        assert len(here.children.started) == 1
