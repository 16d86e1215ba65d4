"""A call that is cut off while it is made again is not lost, and nothing is done twice without a question."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from omni_mcp.cli.root import cli
from omni_mcp.contracts.call import Answer, Call
from omni_mcp.contracts.errors import Draining, NotFound, OutcomeUnknown, UpstreamRefused, UpstreamUnavailable
from omni_mcp.contracts.json import JsonObject
from omni_mcp.paths import Home, find_home, make_private_dir
from omni_mcp.replay.remake import MAY_HAVE_TAKEN_EFFECT, Order, remake
from omni_mcp.testing import ALLOW_ALL, Canary, LocalGateway, local_gateway
from tests.replay.test_made_again import TOOL, WRITES, again, listed, run_of
from tests.waiting import until

DEADLINE_S = 30.0


class Write:
    """A write that first fails before anything was sent, then has its effect and hangs, then answers."""

    def __init__(self, canary: Canary) -> None:
        self.behaviour = "not sent"
        self.effects = 0
        self.began = asyncio.Event()
        canary.tool("it", self, schema={"type": "object"}, labels=WRITES)

    async def __call__(self, call: Call) -> Answer:
        if self.behaviour == "not sent":
            call.trail.dispatched = False
            raise UpstreamUnavailable("gone", data={"retry_after_s": 1})
        self.effects += 1
        self.began.set()
        if self.behaviour == "hangs":
            await asyncio.Event().wait()
        if self.behaviour == "refuses":
            raise UpstreamRefused("no")
        return Answer(body={"content": [], "isError": False}, where="remote")


async def hanging_rerun(here: LocalGateway, write: Write) -> asyncio.Task[Any]:
    """Make the failed call again and return once it has had its effect and hangs."""
    write.behaviour = "hangs"
    rerun = asyncio.create_task(again(here))
    async with asyncio.timeout(DEADLINE_S):
        await write.began.wait()
    return rerun


async def test_one_that_was_cancelled_after_its_dispatch_is_listed_in_its_place_and_wants_a_yes(canary: Canary) -> None:
    write = Write(canary)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        await client.call(TOOL)
        rerun = await hanging_rerun(here, write)
        rerun.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rerun
        write.behaviour = "answers"
        await until(lambda: listed(here))
        [run] = listed(here)
        [call] = run["calls"]
        with pytest.raises(NotFound):
            await again(here)
        without = await remake(here.gateway, here.home, Order(run=run["run"]), set())
        effects = write.effects
        order = Order(run=run["run"], confirmed=(call["call"],))
        with_yes = await remake(here.gateway, here.home, order, set())
        after = listed(here)

    assert (call["code"], call["dispatched"]) == ("cancelled", True)
    assert without["calls"][0]["why_not"] == MAY_HAVE_TAKEN_EFFECT and effects == 1
    assert with_yes["calls"][0]["ending"] == "answered" and after == []


async def test_one_that_its_server_refused_after_its_dispatch_is_listed_in_its_place(canary: Canary) -> None:
    write = Write(canary)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        await client.call(TOOL)
        write.behaviour = "refuses"
        report = await again(here)
        [run] = listed(here)

    assert run["run"] == report["rerun"] and run["calls"][0]["code"] == "upstream_refused"


async def test_an_ordinary_call_that_was_cancelled_is_no_failure(canary: Canary) -> None:
    write = Write(canary)
    write.behaviour = "hangs"
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        calling = asyncio.create_task(client.call(TOOL))
        async with asyncio.timeout(DEADLINE_S):
            await write.began.wait()
        await here.gateway.drain(0.0)
        calling.cancel()
        await asyncio.wait({calling})
        outcomes, found = await here.outcomes(), listed(here)

    assert list(outcomes.values()) == [["tool_error:cancelled"]] and found == []


async def test_the_gateways_end_cuts_it_off_on_record_and_begins_no_more(canary: Canary, tmp_path: Path) -> None:
    write = Write(canary)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False, directory=tmp_path) as here:
        async with here.client() as client:
            await client.call(TOOL, {"n": 1})
            await client.call(TOOL, {"n": 2})
        run = await run_of(here)
        rerun = await hanging_rerun(here, write)
        await here.gateway.drain(0.0)
        cut_off = rerun.done()
        with pytest.raises(OutcomeUnknown, match="runs failed"):
            await rerun
        with pytest.raises(Draining):
            await remake(here.gateway, here.home, Order(run=run), set())
        words = [event.code or event.kind for event in sorted(await here.events(), key=lambda one: one.gid)]
        outcomes = await here.outcomes()
    write.behaviour = "answers"
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False, directory=tmp_path) as here:
        report = await remake(here.gateway, here.home, Order(run=run), set())

    assert cut_off, "its end waits for what is being made again"
    assert words.count("call_made_again") == 1 and "gateway_stopped" in words[words.index("call_made_again") :]
    assert list(outcomes.values())[-1] == ["tool_error:cancelled"]
    assert [one["ending"] for one in report["calls"]] == ["answered"] and write.effects == 2, "only the other one"


@asynccontextmanager
async def gateway_that_is_lost(home: Home, plan: JsonObject) -> AsyncIterator[list[JsonObject]]:
    """Stand in for a gateway that says what it would do, takes the order, and dies; yields what it was asked."""
    seen: list[JsonObject] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(orjson.loads(await reader.readline())["arguments"])
        if seen[-1]["plan"]:
            writer.write(orjson.dumps({"omni": 1, "ok": True, "report": plan}) + b"\n")
        else:
            server.close()
            os.unlink(home.socket)
        writer.close()

    make_private_dir(home.runtime)
    server = await asyncio.start_unix_server(answer, home.socket)
    try:
        yield seen
    finally:
        server.close()


async def test_a_gateway_that_is_lost_with_the_order_is_not_replaced_by_one_that_does_it_again(
    canary: Canary, tmp_path: Path
) -> None:
    Write(canary)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False, directory=tmp_path) as here:
        async with here.client() as client:
            await client.call(TOOL)
        run, plan = await run_of(here), await again(here, plan=True)
    with tempfile.TemporaryDirectory() as short:
        env = {"OMNI_HOME": str(here.home.config), "XDG_RUNTIME_DIR": short}
        async with gateway_that_is_lost(find_home(env), plan) as seen:
            told = await asyncio.to_thread(CliRunner().invoke, cli, ["runs", "rerun", run, "--yes"], env=env)

    assert [one["plan"] for one in seen] == [True, False]
    assert told.exit_code == 1 and "omni-mcp runs failed" in told.output
