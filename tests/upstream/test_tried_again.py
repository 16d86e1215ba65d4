"""Calls whose server is lost: reads are tried again, bounded and on record; a write is sent at most once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.chain.retry import ATTEMPTS
from omni_mcp.engines.upstream.connection import Timing
from omni_mcp.engines.upstream.health import Patience
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.testing import WAIT_S, error_of
from tests.upstream.servers.web import Asked, handshake, modern, text, web_server
from tests.upstream.world import Here, accepted, python_server, world, writing

CALL = {"name": "up__it", "arguments": {}}
NEIGHBOURS = 6  # more than open a breaker
SHIPPED = Timing()  # the patience that people have, not that of tests


def at(url: str) -> ServerDefinition:
    return ServerDefinition(url=url, transport="http")


async def attempts(here: Here) -> list[Any]:
    return [event.payload for event in await here.gateway.events() if event.code == "attempt_failed"]


class Endings:
    """A server's tool that ends each of its first calls as told, and answers after that."""

    def __init__(self, *endings: Any) -> None:
        self._endings = list(endings)
        self.calls = 0

    async def __call__(self, asked: Asked) -> None:
        self.calls += 1
        ending = self._endings.pop(0) if self._endings else "answer"
        if ending == "answer":
            await asked.result(text("done"))
        elif ending == "hang up":
            asked.writer.close()
        elif ending == "half a stream":
            await asked.events()
            asked.writer.close()
        elif ending == "half an answer":
            await asked.raw(b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{")
            asked.writer.close()
        elif ending == "no answer":
            await asked.reply(200, b"", "application/json")
        else:
            assert isinstance(ending, int)
            await asked.reply(ending, b"go away", "text/plain")


async def test_a_server_that_dies_twice_and_then_answers_is_started_again_for_a_read(tmp_path: Path) -> None:
    arguments = {"mark": str(tmp_path / "mark"), "times": 2}
    async with world({"up": python_server("raw", json.dumps({}))}, timing=SHIPPED) as here, here.client() as client:
        result = await client.call("up__after_die", arguments)
        failed = await attempts(here)

    assert result["content"][0]["text"] == "alive again"
    assert (tmp_path / "mark").read_text() == "xx"
    assert [one["attempt"] for one in failed] == [1, 2] and failed[0]["delay_s"] <= failed[1]["delay_s"]


@pytest.mark.parametrize("era", [handshake, modern])
@pytest.mark.parametrize("ending", ["hang up", 503, 502, 504, "half an answer", "no answer"])
async def test_a_read_that_fails_twice_and_then_passes_is_three_requests(ending: Any, era: Any) -> None:
    tool = Endings(ending, ending)
    async with web_server(era(tool)) as server, world({"up": at(server.url)}) as here, here.client() as client:
        result = await client.call("up__it")
        failed = await attempts(here)

    assert result["content"][0]["text"] == "done" and tool.calls == ATTEMPTS
    assert [one["error"] for one in failed] == ["upstream_unavailable"] * 2


@pytest.mark.parametrize("status", [400, 401, 403, 405, 500, 501])
async def test_a_refusal_of_a_server_is_met_once(status: int) -> None:
    tool = Endings(status)
    async with web_server(handshake(tool)) as server, world({"up": at(server.url)}) as here, here.client() as client:
        reply = await client.request("tools/call", CALL)
        failed = await attempts(here)

    assert error_of(reply)["code"] == "upstream_unavailable" and tool.calls == 1 and failed == []


async def test_a_server_that_says_when_to_come_back_is_not_asked_again_before() -> None:
    async def busy(asked: Asked) -> None:
        await asked.reply(503, b"later", "text/plain", retry_after="0")

    async with web_server(handshake(busy)) as server, world({"up": at(server.url)}) as here, here.client() as client:
        reply = await client.request("tools/call", CALL)
        calls = [one for one in server.asked if one.rpc == "tools/call"]

    assert "retry_after_s" in error_of(reply)["data"] and len(calls) == 1


@pytest.mark.parametrize("era", [handshake, modern])
@pytest.mark.parametrize(
    "ending", ["hang up", "half a stream", "half an answer", "no answer", 404, 408, 429, 500, 502, 503, 504]
)
async def test_a_write_is_sent_once_whatever_becomes_of_it(ending: Any, era: Any) -> None:
    """But for a session that the server forgot (404 in the handshake era): it does not know who asked."""
    tool = Endings(ending)
    async with web_server(era(tool)) as server:
        async with world({"up": at(server.url)}, accept=writing) as here, here.client() as client:
            reply = await client.request("tools/call", CALL)

    forgotten = ending == 404 and era is handshake
    assert tool.calls == (2 if forgotten else 1)
    assert bool(error_of(reply)) is not forgotten


async def test_a_session_lost_by_one_call_resends_none_of_the_writes_under_way() -> None:
    under_way, seen = asyncio.Event(), []

    async def tool(asked: Asked) -> None:
        who = asked.message["params"]["arguments"]["who"]
        seen.append(who)
        if who != "told":
            if len(seen) == NEIGHBOURS:
                under_way.set()
            await asyncio.Event().wait()  # it has taken effect, and its answer never comes
        elif seen.count(who) == 1:
            await asked.reply(404, b"Session not found", "text/plain")
        else:
            await asked.result(text("done"))

    async with web_server(handshake(tool)) as server:
        async with world({"up": at(server.url)}, accept=writing) as here, here.client() as client:
            writes = [await client.start("tools/call", {**CALL, "arguments": {"who": n}}) for n in range(NEIGHBOURS)]
            await asyncio.wait_for(under_way.wait(), WAIT_S)
            told = await client.call("up__it", {"who": "told"})
            codes = [error_of(await reply)["code"] for _, reply in writes]
            [connection] = here.pool.facts()["up"]["connections"].values()

    assert codes == ["outcome_unknown"] * NEIGHBOURS and told["content"][0]["text"] == "done"
    assert sorted(map(str, seen)) == [*map(str, range(NEIGHBOURS)), "told", "told"]
    assert connection["failed_calls"] == 0, "the server is there: only a new handshake was due"


@pytest.mark.parametrize("accept", [writing, accepted])
async def test_a_session_lost_on_the_standing_stream_resends_reads_alone(accept: Any) -> None:
    under_way, calls, streams = asyncio.Event(), [], []

    async def tool(asked: Asked) -> None:
        calls.append(asked)
        under_way.set()
        await (asyncio.Event().wait() if len(calls) == 1 else asked.result(text("done")))

    async def get(asked: Asked) -> None:
        streams.append(asked)
        await under_way.wait()
        await asked.reply(404 if len(streams) == 1 else 405)

    async with web_server(handshake(tool, get=get)) as server:
        async with world({"up": at(server.url)}, accept=accept) as here, here.client() as client:
            reply = await client.request("tools/call", CALL)

    assert (error_of(reply).get("code"), len(calls)) == (("outcome_unknown", 1) if accept is writing else (None, 2))


@pytest.mark.parametrize("tool", ["die", "half"])
async def test_a_write_whose_server_dies_is_sent_once(tool: str, tmp_path: Path) -> None:
    servers = {"up": python_server("raw", json.dumps({}))}
    async with world(servers, accept=writing) as here, here.client() as client:
        mark = str(tmp_path / "mark")
        reply = await client.request("tools/call", {"name": f"up__{tool}", "arguments": {"mark": mark, "times": 9}})
        failed = await attempts(here)

    assert error_of(reply)["code"] == "outcome_unknown" and failed == []
    assert tool == "half" or (tmp_path / "mark").read_text() == "x"


async def test_a_read_of_a_server_that_stays_dead_ends_soon(tmp_path: Path) -> None:
    arguments = {"mark": str(tmp_path / "mark"), "times": 99}
    async with world({"up": python_server("raw", json.dumps({}))}, timing=SHIPPED) as here, here.client() as client:
        reply = await client.request("tools/call", {"name": "up__after_die", "arguments": arguments})
        failed = await attempts(here)

    assert error_of(reply)["code"] == "upstream_unavailable"
    assert (tmp_path / "mark").read_text() == "x" * (len(failed) + 1)
    assert len(failed) < ATTEMPTS and sum(one["delay_s"] for one in failed) <= 0.3


async def test_a_server_that_is_left_alone_for_longer_is_not_tried_again_within_a_call() -> None:
    patience = Patience(backoff_s=1e9, backoff_limit_s=1e9)
    tool = Endings("hang up", "hang up", "hang up")
    async with web_server(handshake(tool)) as server:
        async with world({"up": at(server.url)}, timing=Timing(patience=patience)) as here, here.client() as client:
            reply = await client.request("tools/call", CALL)
            failed = await attempts(here)

    assert error_of(reply)["code"] == "upstream_unavailable" and failed == [] and tool.calls == 1


async def test_attempts_count_for_the_breaker_and_end_at_it() -> None:
    tool = Endings(*["hang up"] * 9)
    patience = Patience(failures_to_open=2, open_s=60.0, backoff_s=0.001)
    async with web_server(handshake(tool)) as server:
        async with world({"up": at(server.url)}, timing=Timing(patience=patience)) as here, here.client() as client:
            reply = await client.request("tools/call", CALL)
            failed = await attempts(here)

    assert tool.calls == 2 and [one["attempt"] for one in failed] == [1, 2]
    assert error_of(reply)["data"]["retry_after_s"] > 0


async def test_each_caller_of_a_dead_server_gets_its_own_attempts_and_one_outcome() -> None:
    tool = Endings("hang up", "hang up", "hang up")
    async with web_server(modern(tool)) as server:
        async with world({"up": at(server.url)}) as here, here.client() as client:
            replies = [(await client.start("tools/call", CALL))[1] for _ in range(3)]
            texts = [(await reply)["result"]["content"][0]["text"] for reply in replies]
            outcomes = await here.gateway.outcomes()

    assert texts == ["done"] * 3
    assert list(outcomes.values()) == [["tool_result"]] * 3
