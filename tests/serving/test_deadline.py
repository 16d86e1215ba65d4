"""A deadline that is moved often is met when it is due, and never before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from omni_mcp.deadline import Deadline


class Clock:
    """A loop with timers only, whose time passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        timer = Timer(self, when, callback)
        self.timers.append(timer)
        return cast(asyncio.TimerHandle, timer)

    def pass_until(self, when: float) -> None:
        while due := [timer for timer in self.timers if timer.when <= when]:
            first = min(due, key=lambda timer: timer.when)
            self.timers.remove(first)
            self.now = max(self.now, first.when)
            first.callback()
        self.now = when


class Timer:
    def __init__(self, clock: Clock, when: float, callback: Callable[[], None]) -> None:
        self.clock, self.when, self.callback = clock, when, callback

    def cancel(self) -> None:
        if self in self.clock.timers:
            self.clock.timers.remove(self)


STEPS = st.lists(
    st.tuples(st.sampled_from(["set", "clear", "wait"]), st.integers(min_value=1, max_value=50)), max_size=40
)


@given(STEPS)
def test_whatever_is_set_and_cleared_before_the_last_word_counts(steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    deadline = Deadline(cast(asyncio.AbstractEventLoop, clock))
    met: list[float] = []
    wanted: list[float] = []
    due: float | None = None
    for word, amount in steps:
        if word == "set":
            deadline.set(amount, lambda: met.append(clock.now))
            due = clock.now + amount
        elif word == "clear":
            deadline.clear()
            due = None
        else:
            until = clock.now + amount
            if due is not None and due <= until:
                wanted.append(due)
                due = None
            clock.pass_until(until)
        assert len(clock.timers) <= 1
    assert met == wanted


def test_a_deadline_that_has_ended_holds_no_timer() -> None:
    clock = Clock()
    deadline = Deadline(cast(asyncio.AbstractEventLoop, clock))
    deadline.set(1, lambda: None)
    assert clock.timers
    deadline.end()
    assert not clock.timers
