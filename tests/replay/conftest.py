"""A gateway that records, and what answers in its place afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from omni_mcp.config import LogSettings, Settings
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.paths import Home
from omni_mcp.replay.answers import Answers
from omni_mcp.replay.offline import offline_gateway
from omni_mcp.replay.recorded import RecordedRun, read_run
from omni_mcp.testing import ALLOW_ALL, Canary, LocalGateway, home_in, local_gateway

FORGETFUL = Settings(log=LogSettings(keep_bodies=False))


@asynccontextmanager
async def recording(
    canary: Canary, place: Path, *, rules: str = ALLOW_ALL, settings: Settings | None = None
) -> AsyncIterator[LocalGateway]:
    """Open a gateway in front of the outside world, in a home that stays."""
    async with local_gateway(rules, canary=canary, directory=place, settings=settings, cells=False) as here:
        yield here


def home_of(place: Path) -> Home:
    """The home in which was recorded."""
    return home_in(place)


def newest(place: Path, number: int = 0) -> RecordedRun:
    """Return a client's run, the newest with number 0."""
    home = home_of(place)
    with LogReader(home.log_file) as log:
        runs = [run["id"] for run in log.runs() if run["kind"] != "gateway"]
    return read_run(home, runs[number])


@asynccontextmanager
async def replaying(canary: Canary, place: Path) -> AsyncIterator[tuple[LocalGateway, Answers]]:
    """Open what answers from the newest run; the canary only says what there is."""
    with tempfile.TemporaryDirectory(prefix="omni-r-") as scratch:
        prepared = offline_gateway(Settings(), home_of(place), [newest(place)], scratch=Path(scratch), sources=[canary])
        async with prepared.opener(prepared.settings, prepared.home) as gateway:
            yield LocalGateway(gateway, prepared.home), prepared.answers
