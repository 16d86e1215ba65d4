"""Replays in this process: a whole gateway on the operator's own home, opened for them and closed after them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeVar

import uvloop

from omni_mcp import __version__
from omni_mcp.assembly import open_gateway
from omni_mcp.config import Settings
from omni_mcp.contracts.json import JsonObject
from omni_mcp.datalock import DataLock
from omni_mcp.paths import Home
from omni_mcp.replay.recorded import RecordedRun
from omni_mcp.replay.remake import Order, remake
from omni_mcp.replay.rerun import Options, Report, rerun

Done = TypeVar("Done")


def rerun_here(settings: Settings, home: Home, runs: Sequence[tuple[RecordedRun, Options]]) -> list[Report]:
    """Make each of *runs* again and say what became of it.

    Raises:
        AlreadyRunning: a gateway uses the data directory.
        ConfigError, LogCorrupt, LogUnavailable: no gateway can be opened, or nothing can be recorded.
    """
    return _alone(home, lambda: _rerun_all(settings, home, runs))


def remake_here(settings: Settings, home: Home, order: Order) -> JsonObject:
    """As `remake`.

    Raises:
        AlreadyRunning, ConfigError, LogCorrupt, LogUnavailable: as `rerun_here`.
        NotFound, Conflict: as `remake`.
    """
    return _alone(home, lambda: _remake(settings, home, order))


def _alone(home: Home, work: Callable[[], Coroutine[None, None, Done]]) -> Done:
    with DataLock(home.daemon_lock) as lock, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        lock.note({"version": __version__, "embedded": True})
        return runner.run(work())


async def _rerun_all(settings: Settings, home: Home, runs: Sequence[tuple[RecordedRun, Options]]) -> list[Report]:
    async with open_gateway(settings, home) as gateway:
        return [await rerun(gateway, run, options) for run, options in runs]


async def _remake(settings: Settings, home: Home, order: Order) -> JsonObject:
    async with open_gateway(settings, home) as gateway:
        return await remake(gateway, home, order, set())
