"""Streams: every event of one's own once and in order, however often the connection breaks; nothing of others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from omni_mcp.contracts.api import MessageDraft, StreamQuery
from omni_mcp.contracts.call import ClientFacts, Principal
from omni_mcp.engines.identity.keys import KeyRing
from omni_mcp.serving.api.access import Access
from omni_mcp.serving.api.asking import Asking
from omni_mcp.serving.api.streaming import HEARTBEAT_S, PORTION_BYTES, StreamRoutes
from omni_mcp.serving.asgi import Exchange
from omni_mcp.serving.messages import Messages
from omni_mcp.serving.room import Room
from omni_mcp.serving.run_sources import Places
from omni_mcp.serving.run_streams import STREAMS_PER_PRINCIPAL
from omni_mcp.serving.runbook import Runbook
from omni_mcp.testing import ALLOW_ALL, ANN, BOB, WAIT_S, Canary, LocalGateway, local_gateway
from tests.streams.listening import Cut, Listener, eraser, places, recorded

RECONNECTS = 100
RULES = ALLOW_ALL


@dataclass
class World:
    """A gateway that serves on a port, and whoever writes into its log."""

    here: LocalGateway
    port: int
    tokens: list[str]
    runbook: Runbook
    messages: Messages

    def listener(self, path: str, who: int = 0, **more: Any) -> Listener:
        return Listener(self.port, self.tokens[who], path, **more)

    async def begin(self, who: Principal = ANN) -> str:
        return await self.runbook.begin(who, ClientFacts(name="test"))

    async def say(self, run: str, *texts: str, who: Principal = ANN) -> list[int]:
        drafts = [MessageDraft(kind="user_message", text=text) for text in texts]
        return await self.messages.store(who, run, drafts)


@asynccontextmanager
async def a_world(directory: Path, rules: str = RULES) -> AsyncIterator[World]:
    canary = Canary(directory / "touched")
    canary.tool("echo")
    async with local_gateway(rules, canary=canary, cells=False) as here, here.http(ANN, BOB) as (base, tokens):
        runbook = Runbook(here.gateway.log)
        messages = Messages(here.gateway.log, runbook, messages_per_minute=1_000_000)
        yield World(here, int(base.rpartition(":")[2]), tokens, runbook, messages)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as made:
        yield made


async def test_what_was_there_comes_first_and_then_what_comes(world: World) -> None:
    run = await world.begin()
    await world.say(run, "one", "two")
    async with world.listener(f"/api/runs/{run}/stream").opened() as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        assert [event["kind"] for event in await stream.take(3)] == ["run_created", "user_message", "user_message"]
        await world.say(run, "three")
        (event,) = await stream.take(1)
        assert (event["seq"], event["payload"]["text"]) == (4, "three")
        assert stream.last_id == "4"
        world.runbook.end(ANN, run)
        assert [event["code"] for event in await stream.rest()] == ["run_closed"]
        assert stream.end == "run_closed"
    async with world.listener(f"/api/runs/{run}/stream", last_id="5").opened() as stream:
        assert await stream.rest() == [] and stream.end == "run_closed"


async def test_a_stream_of_all_runs_begins_with_what_comes_next_or_with_the_oldest(world: World) -> None:
    first = await world.begin()
    await world.say(first, "before")
    async with (
        world.listener("/api/stream").opened() as now,
        world.listener("/api/stream?begin=start").opened() as start,
    ):
        assert places(await start.take(2)) == [(first, 1), (first, 2)]
        second = await world.begin()
        await world.say(second, "after")
        assert places(await now.take(2)) == [(second, 1), (second, 2)]
        assert places(await start.take(2)) == [(second, 1), (second, 2)]


async def test_a_stream_that_was_cut_before_its_first_event_goes_on_where_it_began(world: World) -> None:
    run = await world.begin()
    listener = world.listener("/api/stream")
    async with listener.opened() as stream:
        await stream.begin()
    await world.say(run, "meanwhile")
    async with listener.opened() as stream:
        assert places(await stream.take(1)) == [(run, 2)]


@pytest.mark.parametrize("path", ["/api/stream?begin=start", "/api/runs/{run}/stream"])
async def test_a_hundred_reconnects_at_any_byte_lose_nothing_and_repeat_nothing(path: str, world: World) -> None:
    """While three runs are written into and calls of them are erased beside the gateway."""
    dice = random.Random(path)
    runs = [await world.begin() for _ in range(3)]
    listener = world.listener(path.format(run=runs[0]))
    got: list[dict[str, Any]] = []
    cuts, stop = 0, asyncio.Event()

    async def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            run = dice.choice(runs)
            await world.say(run, *(f"{number} {'x' * dice.randrange(600)}" for _ in range(dice.randrange(1, 5))))
            await world.say(await world.begin(BOB), "not ann's", who=BOB)

    def erase(call: str) -> None:
        with eraser(world.here) as erasing:
            erasing.erase(runs[0], call=call, reason="test")

    async def call_and_erase() -> None:
        drafts = [MessageDraft(kind="user_message", text=f"secret-{n}-quince") for n in range(3)]
        for number in range(4):
            await world.messages.store(ANN, runs[0], drafts, call=f"call-{number}")
            await asyncio.to_thread(erase, f"call-{number}")

    writing, erasing = asyncio.create_task(write()), asyncio.create_task(call_and_erase())
    while cuts < RECONNECTS:
        async with listener.opened() as stream:
            assert stream.status == 200
            stream.cut_after(dice.randrange(1, 4000))
            with suppress(Cut):
                async for event in stream:
                    got.append(event)
            cuts += 1
    await erasing
    stop.set()
    await writing
    wanted = await recorded(world.here, ANN.key, runs[0] if "{run}" in path else None)
    async with listener.opened() as stream:
        got += await stream.take(len(wanted) - len(got))
    assert places(got) == wanted
    assert len(wanted) > 40 and cuts == RECONNECTS
    emptied = [event for event in got if event["payload"] is None]
    told = [event for event in got if event["code"] == "erased"]
    assert len(told) == 4, "that something was erased is told"
    assert all(event["kind"] == "user_message" for event in emptied)


@pytest.mark.parametrize("path", ["/api/stream?begin=start", "/api/runs/{run}/stream"])
async def test_more_than_a_page_of_the_past_comes_whole(path: str, world: World) -> None:
    """Pages end by number and by size; another's events stand between one's own."""
    runs = [await world.begin() for _ in range(2)]
    for number in range(8):
        await world.say(runs[number % 2], *[f"{number}"] * 90)
        await world.say(await world.begin(BOB), "bob's", who=BOB)
        await world.say(runs[0], *["x" * 60_000] * 3)
    wanted = await recorded(world.here, ANN.key, runs[0] if "{run}" in path else None)
    assert len(wanted) > 256
    async with world.listener(path.format(run=runs[0])).opened() as stream:
        assert places(await stream.take(len(wanted))) == wanted


async def test_nobody_hears_of_anothers_runs(world: World) -> None:
    run = await world.begin(ANN)
    async with world.listener("/api/stream", who=1).opened() as stream:
        await world.say(run, "ann's")
        own = await world.begin(BOB)
        await world.say(run, "ann's again")
        await world.say(own, "bob's", who=BOB)
        assert places(await stream.take(2)) == [(own, 1), (own, 2)]
    for name in (run, "01a1fef5-34cf-71a7-bc4f-d6125575a242"):
        async with world.listener(f"/api/runs/{name}/stream", who=1).opened() as stream:
            assert (stream.status, (await stream.body())["detail"]) == (404, "there is no such run of yours")


async def test_a_place_of_anothers_stream_and_a_made_up_one_are_refused_alike(world: World) -> None:
    run = await world.begin()
    async with world.listener("/api/stream").opened() as stream:
        await world.say(run, "x")
        await stream.take(1)
        anns = stream.last_id
    assert anns is not None
    answers = []
    for who, place in ((1, anns), (1, "AAAA"), (0, anns[:-4] + "AAA="), (0, "17"), (0, "é"), (0, "")):
        async with world.listener("/api/stream", who=who, last_id=place).opened() as stream:
            answers.append((stream.status, (await stream.body())["detail"]))
    assert set(answers) == {(400, "Last-Event-ID is not valid")}
    for place in ("-1", "x", "99", "1.0", "²"):
        async with world.listener(f"/api/runs/{run}/stream", last_id=place).opened() as stream:
            assert stream.status == 400, place


async def test_places_say_nothing_of_how_much_others_wrote(world: World) -> None:
    """The same events with and without a neighbour's in between come with ids of the same form and length."""
    run, ids = await world.begin(), []
    async with world.listener("/api/stream").opened() as stream:
        for number in range(4):
            for _ in range(number * 10):
                await world.begin(BOB)
            await world.say(run, "x")
            await stream.take(1)
            ids.append(str(stream.last_id))
    assert len(set(ids)) == 4 and {len(one) for one in ids} == {32}
    assert len({one[:4] for one in ids}) == 4, "they share no beginning as numbers would"


async def test_a_place_is_good_after_a_restart(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "touched")
    async with (
        local_gateway(RULES, canary=canary, directory=tmp_path, cells=False) as here,
        here.http(ANN) as (base, (token,)),
    ):
        run = await here.gateway.log.create_run(kind="session", principal=ANN, actor=ANN.key, client={})
        listener = Listener(int(base.rpartition(":")[2]), token, "/api/stream?begin=start")
        async with listener.opened() as stream:
            assert places(await stream.take(1)) == [(run, 1)]
    async with (
        local_gateway(RULES, canary=canary, directory=tmp_path, cells=False) as here,
        here.http(ANN) as (base, (token,)),
    ):
        listener.port, listener.token = int(base.rpartition(":")[2]), token
        async with listener.opened() as stream:
            (event,) = await stream.take(1)
            assert (event["run"], event["seq"], event["code"]) == (run, 2, "run_closed"), "by the start after it"


async def test_a_stream_ends_before_the_next_event_once_its_token_is_revoked(world: World) -> None:
    run = await world.begin()
    for path in ("/api/stream", f"/api/runs/{run}/stream?", "/api/stream?begin=start"):
        ring = KeyRing(world.here.home.keys_file)
        token = ring.create("short", ANN)
        listener = Listener(world.port, token, path.rstrip("?"))
        async with listener.opened() as stream:
            await world.say(run, "before")
            await stream.take(1)
            ring.revoke("short")
            await world.say(run, f"after the end of {path}")
            rest = await stream.rest()
            assert stream.end == "unauthenticated"
            assert f"after the end of {path}" not in str(rest)


async def test_a_stream_ends_before_the_next_event_once_the_policy_forbids_it(world: World) -> None:
    run = await world.begin()
    async with world.listener(f"/api/runs/{run}/stream").opened() as stream:
        await stream.take(1)
        world.here.write_policy('@id("no") forbid (principal, action, resource in Omni::Server::"runs");', "no.cedar")
        await world.here.gateway.reload()
        await world.say(run, "after the end")
        assert await stream.rest() == [] and stream.end == "access_refused"
    async with world.listener("/api/stream").opened() as stream:
        assert (stream.status, (await stream.body())["code"]) == (403, "access_refused")


async def test_streams_end_with_the_gateway_and_say_so(world: World) -> None:
    async with world.listener("/api/stream").opened() as stream:
        await world.here.gateway.drain(0.0)
        assert await stream.rest() == [] and stream.end == "gateway_stopped"


async def test_one_principal_has_so_many_streams_and_another_has_its_own(world: World) -> None:
    async with asyncio.TaskGroup() as group:
        held, ready, done = [], asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with world.listener("/api/stream").opened() as stream:
                held.append(stream.status)
                if len(held) == STREAMS_PER_PRINCIPAL:
                    ready.set()
                await done.wait()

        for _ in range(STREAMS_PER_PRINCIPAL):
            group.create_task(hold())
        await ready.wait()
        async with world.listener("/api/stream").opened() as stream:
            assert (stream.status, (await stream.body())["code"]) == (429, "rate_limited")
        async with world.listener("/api/stream", who=1).opened() as stream:
            assert stream.status == 200
        done.set()
    async with world.listener("/api/stream").opened() as stream:
        assert stream.status == 200, "a place that was left is free again"


async def test_what_the_caller_may_not_see_of_an_event_is_not_in_its_stream(world: World) -> None:
    async with world.here.client() as client:
        await client.call("canary__nothing")
    async with world.listener("/api/stream?begin=start").opened() as stream:
        events = await stream.take(4)
    decided = next(event for event in events if event["code"] == "policy_decided")
    failed = next(event for event in events if event["kind"] == "tool_error")
    assert set(decided["payload"]) == {"code", "verdict"}
    assert "detail" not in failed["payload"]


async def test_listening_wakes_nobody_and_reading_the_log_feeds_no_stream(world: World) -> None:
    run = await world.begin()
    async with world.listener("/api/stream").opened() as stream:
        async with world.listener(f"/api/runs/{run}/stream").opened() as other:
            await other.take(1)
        await world.say(run, "x")
        assert places(await stream.take(1)) == [(run, 2)]
    reads = [event for event in await world.here.events() if event.code == "log_read"]
    assert [(event.payload or {})["what"] for event in reads] == ["stream_all", f"stream_run {run}"]


@dataclass
class Wire:
    """The other end of one answer, in process: it takes what is sent when the test lets it."""

    open: asyncio.Event
    sent: list[bytes]
    came: asyncio.Event

    async def send(self, message: Any) -> None:
        await self.open.wait()
        self.sent.append(message.get("body", b""))
        self.came.set()

    async def receive(self) -> Any:
        await asyncio.Event().wait()

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(WAIT_S):
            while text not in b"".join(self.sent):
                self.came.clear()
                await self.came.wait()


class Allowed:
    """A policy that allows and never changes."""

    policy_version = "1"

    def allows(self, principal: Principal, like: Any) -> bool:
        return True


@asynccontextmanager
async def served(world: World, run: str, **bounds: float) -> AsyncIterator[tuple[Wire, asyncio.Task[Any]]]:
    """One stream of a run with bounds of the test's own."""
    wire = Wire(asyncio.Event(), [], asyncio.Event())
    gateway = world.here.gateway
    routes = StreamRoutes(
        gateway.log, gateway.run_streams, Places("x"), cast(Access, Allowed()), asyncio.Event(), **bounds
    )
    exchange = Exchange({"method": "GET", "path": "/"}, wire.receive, wire.send, {}, "request")
    asking = Asking(
        exchange=exchange, principal=ANN, claim=Room().claim(ANN.key), place={"run": run}, query=StreamQuery()
    )
    work = asyncio.ensure_future(routes.handlers()["stream_run"](asking))
    try:
        yield wire, work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def test_a_silent_stream_says_that_it_is_there(world: World) -> None:
    """Source: row E05, at least every 15 s."""
    assert HEARTBEAT_S <= 15
    run = await world.begin()
    async with served(world, run, heartbeat_s=0.01) as (wire, _):
        wire.open.set()
        await wire.until(b": still here")
        await world.say(run, "and goes on")
        await wire.until(b"and goes on")


async def test_what_a_client_does_not_take_waits_in_the_log_and_not_in_memory(world: World) -> None:
    """A thousand events are written while nothing is taken; the stream has then not read past its first page."""
    run = await world.begin()
    async with served(world, run) as (wire, _):
        for _ in range(10):
            await world.say(run, *["x" * 2000] * 100)
        assert wire.sent == []
        wire.open.set()
        await world.say(run, "the last one")
        await wire.until(b"the last one")
        assert max(len(one) for one in wire.sent) < 2 * PORTION_BYTES
        ids = [int(line[4:]) for line in b"".join(wire.sent).split(b"\r\n") if line.startswith(b"id: ")]
        assert ids == list(range(1003)), "the place where it began, and every event"


async def test_a_client_that_takes_nothing_is_let_go_and_leaves_nothing_behind(world: World) -> None:
    run = await world.begin()
    async with served(world, run, write_timeout_s=0.01) as (wire, work):
        wire.open.set()
        await wire.until(b"run_created")
        wire.open.clear()
        await world.say(run, "nobody takes this")
        await asyncio.wait_for(asyncio.wait({work}), WAIT_S)
        assert work.done() and not work.exception()
    assert world.here.gateway.run_streams.open == 0
