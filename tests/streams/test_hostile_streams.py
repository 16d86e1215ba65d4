"""What a slow or a silent client of a stream could get that is not its own any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from omni_mcp.contracts.api import MessageDraft, StreamQuery
from omni_mcp.contracts.call import Principal
from omni_mcp.serving.api.access import Access
from omni_mcp.serving.api.asking import Asking
from omni_mcp.serving.api.streaming import StreamRoutes
from omni_mcp.serving.asgi import Exchange
from omni_mcp.serving.room import Room
from omni_mcp.serving.run_sources import Places
from omni_mcp.testing import ANN, BOB, WAIT_S
from tests.streams.listening import eraser
from tests.streams.test_streams import World, a_world


class Client:
    """The other end of one answer: it takes what a stream says first, and the rest when the test lets it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.stuck = asyncio.Event()
        self.takes = asyncio.Event()
        self.may_read = True

    async def send(self, message: Any) -> None:
        if len(self.sent) >= 2:
            self.stuck.set()
            await self.takes.wait()
        self.sent.append(message.get("body", b""))

    async def receive(self) -> Any:
        await asyncio.Event().wait()


class Rules:
    """A policy that the test changes."""

    policy_version = "1"

    def allows(self, principal: Principal, like: Any) -> bool:
        return self.policy_version == "1"


@asynccontextmanager
async def stuck_stream(world: World, run: str) -> AsyncIterator[tuple[Client, Rules, asyncio.Task[Any]]]:
    """A stream whose client has taken nothing of the first portion yet."""
    client, rules, log = Client(), Rules(), world.here.gateway.log
    streams = world.here.gateway.run_streams
    routes = StreamRoutes(log, streams, Places("x"), cast(Access, rules), asyncio.Event())
    exchange = Exchange({"method": "GET", "path": "/"}, client.receive, client.send, {}, "request")
    exchange.still_valid = lambda: client.may_read
    asking = Asking(
        exchange=exchange, principal=ANN, claim=Room().claim(ANN.key), place={"run": run}, query=StreamQuery()
    )
    work = asyncio.ensure_future(routes.handlers()["stream_run"](asking))
    try:
        await asyncio.wait_for(client.stuck.wait(), WAIT_S)
        yield client, rules, work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as made:
        yield made


async def told(world: World, run: str) -> None:
    drafts = [MessageDraft(kind="user_message", text=f"word-{number} {'x' * 30_000}") for number in range(20)]
    for number, one in enumerate(drafts):
        await world.messages.store(ANN, run, [one], call=f"call-{number}")


async def test_what_is_erased_while_a_client_takes_nothing_is_not_sent_to_it(world: World) -> None:
    run = await world.begin()
    await told(world, run)
    async with stuck_stream(world, run) as (client, _, work):
        with eraser(world.here) as erasing:
            erasing.erase_calls([(run, f"call-{number}") for number in range(20)], reason="test")
        world.runbook.end(ANN, run)
        client.takes.set()
        await asyncio.wait_for(asyncio.wait({work}), WAIT_S)
    whole = b"".join(client.sent)
    assert b"run_closed" in whole
    assert [number for number in range(20) if b"word-%d " % number in whole] == [0, 1, 2], "what was on its way"


@pytest.mark.parametrize("lost", ["token", "rule"])
async def test_a_client_that_takes_its_time_gets_nothing_more_once_it_may_not_read(world: World, lost: str) -> None:
    run = await world.begin()
    await told(world, run)
    async with stuck_stream(world, run) as (client, rules, work):
        if lost == "token":
            client.may_read = False
        else:
            rules.policy_version = "2"
        client.takes.set()
        await asyncio.wait_for(asyncio.wait({work}), WAIT_S)
    whole = b"".join(client.sent)
    assert (b"unauthenticated" if lost == "token" else b"access_refused") in whole
    assert b"word-3 " not in whole and b"word-19 " not in whole


async def test_the_place_of_a_silent_stream_does_not_say_that_others_write(world: World) -> None:
    gateway = world.here.gateway
    run = await world.begin()
    from omni_mcp.serving.run_sources import PrincipalSource

    source = PrincipalSource(gateway.log, Places("x"), ANN, after=await gateway.log.last_gid())
    before = source.place
    other = await world.begin(BOB)
    await world.say(other, *["not ann's"] * 50, who=BOB)
    assert not (await source.next()).events and source.place == before
    await world.say(run, "ann's")
    ((place, event),) = (await source.next()).events
    assert source.place == place != before and orjson.loads(event)["run"] == run
