"""Forgetting from the command line: items and every recorded call that carried their text, beside a running gateway."""

from __future__ import annotations

import asyncio
import getpass
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from omni_mcp.cli.memory_embedder import embedder_at
from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.events import MemoryWritten
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.memory import Change, MemoryItem
from omni_mcp.engines.memory.store import SqliteMemory, open_memory
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.paths import Home
from omni_mcp.serving.memory.erasing import CallKey, CallsErased, erase_calls, open_eraser
from omni_mcp.serving.memory.tries import TRIES_LIMIT, calls_among, has_failed_with, words_for

WAIT_S = 15.0  # for calls that are under way in a running gateway
LOOK_S = 0.25


@dataclass(slots=True)
class Forgotten:
    """What was forgotten. `stays` says in words what an item was made of and is still on record."""

    items: list[str] = field(default_factory=list)
    calls: int = 0
    events: int = 0
    artifacts: int = 0
    pending: int = 0
    clean: bool = True
    stays: list[str] = field(default_factory=list)

    def as_json(self) -> JsonObject:
        return {
            "items": self.items, "calls": self.calls, "events": self.events, "artifacts": self.artifacts,
            "pending": self.pending, "clean": self.clean, "stays": self.stays,
        }  # fmt: skip


async def forget_items(home: Home, items: Sequence[str]) -> Forgotten:
    """Forget *items*, whoever they belong to, and erase what carried them, events that they were made of included.

    Raises:
        NotFound: there is no such item; those before it are forgotten.
    """
    done = Forgotten()
    async with operator_memory(home) as store:
        for name in items:
            item = await store.find(name)
            made_of, stays = _made_of(home, item)
            _add(done, erase_calls(home, made_of, by=operator()))
            done.stays += stays
            for run, call in _tries_of(home, item):
                await store.touched([item.id], run=run, call=call)
            await store.forget_item(item.id)
            done.items.append(item.id)
            _note(home, [item], "forgotten")
        await _finish(home, store, done)
    return done


async def forget_written_by(home: Home, run: str, call: str | None) -> Forgotten:
    """Forget all that a run, or one of its calls, wrote: for an erasure of that run.

    Raises:
        NotFound: there is no memory.
    """
    async with operator_memory(home) as store:
        items = await store.written_by(run, call)
    return await forget_items(home, items) if items else Forgotten()


async def sweep(home: Home) -> Forgotten:
    """Remove every expired item and those of runs that are over, and finish what an earlier forgetting had to leave."""
    done = Forgotten()
    if not home.memory_file.exists():
        return done
    async with operator_memory(home) as store:
        now_ns = time.time_ns()
        while items := await store.expired(now_ns=now_ns):
            _note(home, items, "expired")  # first, so that nothing leaves without a record
            swept = await store.sweep(now_ns=now_ns, items=[item.id for item in items])
            done.items += [item.id for item, _ in swept]
        for run in await _ended_runs(home, store):
            while items := await store.items_of_run(run):
                _note(home, items, "expired")
                await store.forget_all([item.id for item in items])
                done.items += [item.id for item in items]
        await _finish(home, store, done)
    return done


@asynccontextmanager
async def operator_memory(home: Home) -> AsyncIterator[SqliteMemory]:
    """Open the memory as its operator.

    Raises:
        NotFound: there is none.
    """
    if not home.memory_file.exists():
        raise NotFound("there is no memory yet", detail=f"{home.memory_file} does not exist")
    async with open_memory(home.memory_file, embedder=embedder_at(home)) as store:
        yield store


def operator() -> str:
    """Whom the record names for what the command line does."""
    try:
        return f"operator:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"operator:{os.getuid()}"


async def _ended_runs(home: Home, store: SqliteMemory) -> list[str]:
    """Return runs that have items of their own and are over: nobody can find those any more."""
    found = await store.runs_with_items()
    if not found or not home.log_file.exists():
        return []
    with LogReader(home.log_file) as log:
        is_open = set(log.open_runs())
    return [run for run in found if run not in is_open]


def _made_of(home: Home, item: MemoryItem) -> tuple[list[CallKey], list[str]]:
    """Return the call whose event an item was promoted from, and in words what only its own erasure removes."""
    source = item.source
    if source.artifact is not None:
        return [], [f"artifact {source.artifact}: erase the run that made it"]
    if source.from_run is None or source.from_seq is None or not home.log_file.exists():
        return [], []
    with LogReader(home.log_file) as log:
        found = log.events(source.from_run, after=source.from_seq - 1, limit=1)
    if found and found[0].call is not None:
        return [(source.from_run, found[0].call)], []
    return [], [f"event {source.from_seq} of run {source.from_run}: erase that run"]


def _tries_of(home: Home, item: MemoryItem) -> list[CallKey]:
    """Return the calls, whoever's they are, that sent the text of *item* to the memory in vain."""
    if not (words := words_for(item.text)) or not home.log_file.exists():
        return []
    with LogReader(home.log_file) as log:
        calls = calls_among(log.search(words, limit=TRIES_LIMIT))
        return [(run, call) for run, call in calls if has_failed_with(log.find_call(call), item.text)]


async def _finish(home: Home, store: SqliteMemory, done: Forgotten) -> None:
    """Erase what is on the store's list; calls under way in a running gateway are waited for."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        calls = await store.to_erase()
        if not home.log_file.exists():
            await store.erased(calls)
            return
        found = erase_calls(home, calls, by=operator())
        if found.clean and found.done:
            await store.erased(found.done)
        _add(done, found)
        done.pending = len(found.still_open)
        if not found.still_open or time.monotonic() > deadline_s:
            return
        await asyncio.sleep(LOOK_S)


def _add(done: Forgotten, found: CallsErased) -> None:
    done.calls += len(found.done)
    done.events += found.events
    done.artifacts += found.artifacts
    done.clean = found.clean


def _note(home: Home, items: Sequence[MemoryItem], change: Change) -> None:
    """Record changes in the gateway's own run: what an operator does belongs to nobody else's."""
    if not home.log_file.exists():
        return
    with open_eraser(home, by=operator()) as eraser:
        for item in items:
            event = MemoryWritten(
                change=change, item=item.id, kind=item.kind, scope=item.scope, owner=item.owner, version=item.version,
                taint=item.taint, source=item.source,
            )  # fmt: skip
            eraser.note(event)
