"""A thread has short turns, and nothing that it starts; where they are not to be had nothing changes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from omni_mcp.short_turns import TURN_NS, take_short_turns

T = TypeVar("T")
OWN = """
import os
from omni_mcp.short_turns import take_short_turns
os.setpriority(os.PRIO_PROCESS, 0, {nice})
print(take_short_turns())
"""


def in_a_thread(work: Callable[[], T]) -> T:
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def turn_ns(place: str = "/proc/thread-self") -> int:
    """Return the turn of a thread as the system shows it."""
    file = Path(place, "sched")
    lines = file.read_text().splitlines() if file.exists() else []
    found = [int(line.split()[-1]) for line in lines if line.startswith("se.slice")]
    if not found:
        pytest.skip("this system does not show the turns of a thread")
    return found[0]


def test_a_thread_that_asks_has_short_turns_and_what_it_starts_has_the_usual_ones() -> None:
    usual = turn_ns()

    def ask() -> tuple[int, int, int] | None:
        if not take_short_turns():
            return None
        child = subprocess.run(["cat", "/proc/self/sched"], capture_output=True, text=True, timeout=30, check=True)
        of_child = next(int(line.split()[-1]) for line in child.stdout.splitlines() if line.startswith("se.slice"))
        return turn_ns(), in_a_thread(turn_ns), of_child

    found = in_a_thread(ask)
    if found is None or found[0] == usual:
        pytest.skip("this system gives no turns of one's own")
    assert found == (TURN_NS, usual, usual)
    assert turn_ns() == usual


@pytest.mark.parametrize(("nice", "taken"), [(-1, False), (0, True), (5, True)])
def test_one_with_a_priority_of_its_own_keeps_it(nice: int, taken: bool) -> None:
    code = OWN.format(nice=nice)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode or not sys.platform.startswith("linux"):
        pytest.skip("this user may not do that")
    if taken and done.stdout.strip() == "False":
        pytest.skip("this system gives no short turns")
    assert done.stdout.strip() == str(taken)
