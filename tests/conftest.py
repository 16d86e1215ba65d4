"""What every test may ask for: an outside world that counts, and a machine on which cells can be had."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from omni_mcp.testing import Canary

IN_MEMORY = Path("/dev/shm")
ROOM_BYTES = 2 << 30


def pytest_configure(config: pytest.Config) -> None:
    """Put all temporary files of this run, and of the programs it starts, in memory where there is room.

    Every call waits for the log to be on disk: on an ordinary disk that wait is half of the time of all tests. Who sets
    TMPDIR chooses for themselves.
    """
    if "TMPDIR" not in os.environ and _has_room(IN_MEMORY):
        os.environ["TMPDIR"] = str(IN_MEMORY)
        tempfile.tempdir = None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tests by the thousand are not garbage: the collector need not walk over them each time."""
    gc.collect()
    gc.freeze()


def _has_room(place: Path) -> bool:
    """Whether programs can be put and run there, and as much as the tests write at a time."""
    try:
        facts = os.statvfs(place)
    except OSError:
        return False
    usable = not facts.f_flag & (os.ST_NOEXEC | os.ST_NOSUID | os.ST_RDONLY) and os.access(place, os.W_OK | os.X_OK)
    return usable and facts.f_bavail * facts.f_frsize >= ROOM_BYTES


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    """An outside world without anything in it yet."""
    return Canary(tmp_path / "touched")


@pytest.fixture(scope="session")
def cells() -> None:
    """The test runs tools in cells: skip where bubblewrap is missing, or fail where it was promised."""
    if shutil.which("bwrap") is None:
        if "bwrap" in os.environ.get("OMNI_REQUIRE", "").split(","):
            pytest.fail("OMNI_REQUIRE names bwrap, and it is not installed")
        pytest.skip("bubblewrap is not installed")
