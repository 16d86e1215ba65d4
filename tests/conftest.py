"""What every test may ask for: an outside world that counts, and a machine on which cells can be had."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import is_hypothesis_test, settings

from omni_mcp.testing import Canary

ROOM_BYTES = 4 << 30
FEWER = 10  # of the examples of a property, where none is asked for: `make long` takes them all
LEAST_EXAMPLES = 10
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000


def pytest_configure(config: pytest.Config) -> None:
    """Start as from a shell, and keep all temporary files in memory if that can be had.

    Every call waits until the log is on disk: on an ordinary disk that is half of the time of all tests. Whoever sets
    TMPDIR chooses for themselves.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background, where programs would inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "TMPDIR" not in os.environ and (place := _place_in_memory()):
        os.environ["TMPDIR"] = place
        tempfile.tempdir = None


@pytest.hookimpl(tryfirst=True)  # before those are taken out that are not asked for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A property is tried with a few examples in each run, and as a long test (OMNI_ALL_EXAMPLES=1) with all of its."""
    in_full = "OMNI_ALL_EXAMPLES" in os.environ
    seen: set[int] = set()
    for item in items:
        test: Any = getattr(item, "obj", None)
        if not is_hypothesis_test(test):
            continue
        if in_full:
            item.add_marker(pytest.mark.long)
        elif id(test) not in seen:  # a parametrised one comes several times
            seen.add(id(test))
            wanted = test._hypothesis_internal_use_settings
            few = min(wanted.max_examples, max(LEAST_EXAMPLES, wanted.max_examples // FEWER))
            test._hypothesis_internal_use_settings = settings(wanted, max_examples=few)


def _place_in_memory() -> str | None:
    """Make a directory that only this process and those that it starts see filled, and that goes with them.

    As root only; /dev/shm will not do, since no cell is given anything below /dev.
    """
    if sys.platform != "linux" or os.geteuid() != 0 or _memory_bytes() < ROOM_BYTES:
        return None
    libc = ctypes.CDLL(None)
    if libc.unshare(_CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        return None
    place = os.path.join(tempfile.gettempdir(), "omni-tests")
    os.makedirs(place, exist_ok=True)
    return place if libc.mount(b"tmpfs", place.encode(), b"tmpfs", 0, b"mode=1777") == 0 else None


def _memory_bytes() -> int:
    """Return how much memory can still be had."""
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(facts["MemAvailable"].split()[0]) << 10


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
