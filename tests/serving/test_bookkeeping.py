"""Runs, rejections, listeners and streams stay bounded and say what happened."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from omni_mcp.contracts.call import ClientFacts
from omni_mcp.contracts.errors import LogUnavailable, Overloaded
from omni_mcp.contracts.events import Draft
from omni_mcp.contracts.ports import RunLog
from omni_mcp.serving.changes import LISTENERS_LIMIT, Changes
from omni_mcp.serving.rejections import Rejections
from omni_mcp.serving.runbook import Runbook, trace_id_of
from omni_mcp.serving.streams import EventStream
from tests.serving.edge_world import ANN, BOB, MemoryLog

CLIENT = ClientFacts(name="c", era="modern")


async def join(book: Runbook, who: Any = ANN, trace: str | None = None) -> str:
    async with book.joined(who, CLIENT, trace) as run:
        return run


async def test_requests_that_come_together_open_one_run() -> None:
    log = MemoryLog()
    book = Runbook(cast(RunLog, log))
    assert len(set(await asyncio.gather(*(join(book) for _ in range(20))))) == 1
    assert len(log.runs_made) == 1


async def test_a_run_that_could_not_be_recorded_is_tried_again() -> None:
    log = MemoryLog()
    log.broken = True
    book = Runbook(cast(RunLog, log))
    results = await asyncio.gather(*(join(book) for _ in range(3)), return_exceptions=True)
    assert {type(result) for result in results} == {LogUnavailable}
    log.broken = False
    assert await join(book)


async def test_an_unused_run_is_closed_after_a_while_and_a_used_one_is_not() -> None:
    log, now = MemoryLog(), [0.0]
    book = Runbook(cast(RunLog, log), idle_s=10, now_s=lambda: now[0])
    first = await join(book)
    async with book.joined(BOB, CLIENT, None):
        now[0] = 11.0
        book.sweep()
        assert [run for run, _ in log.events] == [first] and log.codes() == ["run_closed"]
    assert await join(book) != first


async def test_trace_ids_cannot_open_runs_without_end() -> None:
    log = MemoryLog()
    book = Runbook(cast(RunLog, log), runs_per_principal=5)
    for number in range(50):
        await join(book, trace=f"{number:032x}")
    await join(book, BOB)
    assert book.open_runs == 6 and log.codes() == ["run_closed"] * 45


@pytest.mark.parametrize(
    "value", ["", "00-abc-def-01", f"00-{'0' * 32}-{'b' * 16}-01", f"00-{'A' * 32}-{'b' * 16}-01", 5, None, ["x"]]
)
def test_a_trace_parent_that_is_none_names_no_run(value: Any) -> None:
    assert trace_id_of({"traceparent": value}) is None


async def test_a_flood_of_rejections_is_two_events_and_loses_no_count() -> None:
    log = MemoryLog()
    seen: list[tuple[str, str]] = []
    rejections = Rejections(cast(RunLog, log), "g", counted=lambda *what: seen.append(what))
    for _ in range(1000):
        rejections.note("http", "not_json")
    rejections.note("stdio", "not_json")
    rejections.close()
    counts = [(d.payload.transport, d.payload.count) for _, d in log.events]
    assert counts == [("http", 1), ("stdio", 1), ("http", 999)]
    assert len(seen) == 1001


class Ear:
    """A listener."""

    def __init__(self, *kinds: str, alive: bool = True) -> None:
        self.kinds = kinds
        self.profile = "default"
        self.alive = alive
        self.heard: list[tuple[str, Any]] = []
        self.told = asyncio.Event()

    def wants(self, kind: str) -> bool:
        return kind in self.kinds

    def tell(self, method: str, params: Any) -> bool:
        self.heard.append((method, params))
        self.told.set()
        return self.alive


async def test_listeners_hear_what_they_want_and_those_who_left_are_forgotten() -> None:
    changes = Changes()
    tools, deaf, gone = Ear("tools"), Ear(), Ear("tools", alive=False)
    for ear in (tools, deaf, gone):
        changes.join(ear)
    changes.lists_changed()
    changes.lists_changed(["tools"])
    assert [method for method, _ in tools.heard] == ["notifications/tools/list_changed"] * 2
    assert not deaf.heard and len(gone.heard) == 1 and changes.listeners == 2


async def test_there_are_only_so_many_listeners() -> None:
    changes = Changes()
    for _ in range(LISTENERS_LIMIT):
        changes.join(Ear())
    with pytest.raises(Overloaded):
        changes.join(Ear())


async def test_commits_become_updates_of_their_run_but_quiet_ones_never_do() -> None:
    """A read of the log is quiet, so that it does not feed itself."""
    log, changes, ear = MemoryLog(), Changes(), Ear()
    following = asyncio.create_task(changes.follow(cast(RunLog, log)))
    changes.join(ear)
    for uri in ("run://r1", "run://r1/events", "run://r2"):
        changes.subscribe(ear, uri)
    while not log._queues:
        await asyncio.sleep(0)
    log.append("r2", cast(Draft, _Draft()), quiet=True)
    log.append("r3", cast(Draft, _Draft()))
    for _ in range(100):
        log.append("r1", cast(Draft, _Draft()))
    await asyncio.wait_for(ear.told.wait(), 30)
    assert sorted(params["uri"] for _, params in ear.heard) == ["run://r1", "run://r1/events"], "one notice for the lot"
    changes.unsubscribe(ear, "run://r1")
    changes.leave(ear)
    assert not changes._by_uri and not changes._by_run
    following.cancel()
    await asyncio.wait({following})


class _Draft:
    kind, code = "tool_call", None


async def test_a_reader_that_is_too_far_behind_is_dropped_and_may_come_back_for_the_rest() -> None:
    stream = EventStream("1", events_limit=5)
    reader = stream.attach()
    sent = [stream.send(b"%d" % n) for n in range(8)]
    assert sent[:5] == [True] * 5 and not all(sent)
    assert await stream.wait(reader, 0, timeout_s=1) is None
    again = stream.attach(again=True)
    assert [n for n, _ in await stream.wait(again, 0, timeout_s=1) or []] == [4, 5, 6, 7, 8]


async def test_a_stream_holds_at_most_its_bytes() -> None:
    stream = EventStream(events_limit=1000, bytes_limit=1000)
    for _ in range(100):
        stream.send(b"x" * 100)
    assert stream.held_bytes <= 1000


async def test_a_finished_stream_takes_no_more_and_ends_its_reader() -> None:
    stream = EventStream()
    reader = stream.attach()
    stream.finish(b"last")
    stream.finish(b"again")
    assert not stream.send(b"late")
    assert await stream.wait(reader, 0, timeout_s=1) == [(1, b"last")]
    assert await stream.wait(reader, 1, timeout_s=1) is None


async def test_a_reply_that_is_larger_than_the_bound_pushes_nothing_out() -> None:
    stream = EventStream(bytes_limit=100)
    reader = stream.attach()
    stream.send(b"progress")
    stream.finish(b"x" * 1000)
    assert [n for n, _ in await stream.wait(reader, 0, timeout_s=1) or []] == [1, 2]


async def test_a_silent_stream_gives_its_reader_a_turn() -> None:
    stream = EventStream()
    assert await stream.wait(stream.attach(), 0, timeout_s=0.01) == []
