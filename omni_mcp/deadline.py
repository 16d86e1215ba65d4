"""Deadline: a point in time that is moved often and met seldom: one timer that looks again, not a new one each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Deadline:
    """At most one deadline at a time.

    Args:
        loop: that it belongs to; the running one if not given.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._fires_s = 0.0
        self._due_s = 0.0
        self._late: Callable[[], None] | None = None

    def set(self, after_s: float, late: Callable[[], None]) -> None:
        """Call *late* in *after_s* seconds, unless it is set anew or cleared before; an earlier one is forgotten."""
        self._due_s = self._loop.time() + after_s
        self._late = late
        if self._timer is not None and self._fires_s <= self._due_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._arm()

    def clear(self) -> None:
        """Nothing is due any more. The timer stays, for the next deadline."""
        self._late = None

    def end(self) -> None:
        """As `clear`, and let go of the timer."""
        self._late = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._fires_s = self._due_s
        self._timer = self._loop.call_at(self._due_s, self._look)

    def _look(self) -> None:
        self._timer = None
        late = self._late
        if late is None:
            return
        if self._loop.time() < self._due_s:
            self._arm()
            return
        self._late = None
        late()
