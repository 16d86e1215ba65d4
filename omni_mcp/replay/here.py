"""Replays in this process: a whole gateway on the operator's own home, opened for them and closed after them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import uvloop

from omni_mcp import __version__
from omni_mcp.assembly import open_gateway
from omni_mcp.config import Settings
from omni_mcp.datalock import DataLock
from omni_mcp.paths import Home
from omni_mcp.replay.recorded import RecordedRun
from omni_mcp.replay.rerun import Options, Report, rerun


def rerun_here(settings: Settings, home: Home, runs: Sequence[tuple[RecordedRun, Options]]) -> list[Report]:
    """Make each of *runs* again and say what became of it.

    Raises:
        AlreadyRunning: a gateway uses the data directory.
        ConfigError, LogCorrupt, LogUnavailable: no gateway can be opened, or nothing can be recorded.
    """
    with DataLock(home.daemon_lock) as lock, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        lock.note({"version": __version__, "embedded": True})
        return runner.run(_rerun_all(settings, home, runs))


async def _rerun_all(settings: Settings, home: Home, runs: Sequence[tuple[RecordedRun, Options]]) -> list[Report]:
    async with open_gateway(settings, home) as gateway:
        return [await rerun(gateway, run, options) for run, options in runs]
