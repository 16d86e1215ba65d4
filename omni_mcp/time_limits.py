"""Time limits: ends for many waits, with one timer for all that are equally long.

An `asyncio.timeout` makes and cancels a timer of its own, which costs more than most of what it guards.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType

LENGTHS_KEPT = 256  # beyond this, those are forgotten that nobody waits under
LIFTED_KEPT = 64


class TimeLimits:
    """Limits of the event loop in which they are set."""

    def __init__(self) -> None:
        self._rows: dict[float, _Row] = {}

    def set(self, after_s: float, late: Callable[[], object]) -> TimeLimit:
        """Have *late* called in *after_s* seconds, unless the limit is lifted before."""
        row = self._rows.get(after_s)
        if row is None:
            if len(self._rows) >= LENGTHS_KEPT:
                self._rows = {length_s: row for length_s, row in self._rows.items() if row.is_waited_under}
            row = self._rows[after_s] = _Row(after_s, asyncio.get_running_loop())
        return row.add(late)

    def within(self, limit_s: float) -> Within:
        """End a block after *limit_s* seconds, as `asyncio.timeout`; used by `with`.

        Raises:
            TimeoutError: it took longer; what it waited for was cancelled.
        """
        return Within(self, limit_s)


class TimeLimit:
    """One end that was set."""

    __slots__ = ("due_s", "late")

    def __init__(self, due_s: float, late: Callable[[], object]) -> None:
        self.due_s = due_s
        self.late: Callable[[], object] | None = late

    def lift(self) -> None:
        """There is no end any more. Safe to call twice, and once it was reached."""
        self.late = None


class Within:
    """A block that ends in time, in the task that runs it."""

    __slots__ = ("_cancelling", "_is_late", "_limit", "_limit_s", "_limits", "_task")

    def __init__(self, limits: TimeLimits, limit_s: float) -> None:
        self._limits = limits
        self._limit_s = limit_s
        self._is_late = False

    @property
    def ends_s(self) -> float:
        """Loop time at which the block ends, once it was entered."""
        return self._limit.due_s

    def __enter__(self) -> Within:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._limit = self._limits.set(self._limit_s, self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._limit.lift()
        if not self._is_late:
            return
        is_ours = self._task.uncancel() <= self._cancelling  # else somebody else wants the task to end, too
        if is_ours and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _end(self) -> None:
        self._is_late = True
        self._task.cancel()


class _Row:
    """Limits of one length: they end in the order in which they were set."""

    def __init__(self, length_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._length_s = length_s
        self._loop = loop
        self._set: deque[TimeLimit] = deque()
        self._room = LIFTED_KEPT  # how many are set before those are forgotten that were lifted
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_waited_under(self) -> bool:
        return any(limit.late is not None for limit in self._set)

    def add(self, late: Callable[[], object]) -> TimeLimit:
        if len(self._set) >= self._room:
            self._tidy()
        made = TimeLimit(self._loop.time() + self._length_s, late)
        self._set.append(made)
        if self._timer is None:
            self._timer = self._loop.call_at(made.due_s, self._look)
        return made

    def _tidy(self) -> None:
        """Forget what is lifted, and come back once there is as much again."""
        self._set = deque(limit for limit in self._set if limit.late is not None)
        self._room = max(LIFTED_KEPT, 2 * len(self._set))

    def _look(self) -> None:
        """End what is due; then look again when the next one is."""
        self._timer = None
        now_s = self._loop.time()
        try:
            while self._set and (self._set[0].late is None or self._set[0].due_s <= now_s):
                limit = self._set.popleft()
                late, limit.late = limit.late, None
                if late is not None:
                    late()
        finally:
            if self._set and self._timer is None:
                self._timer = self._loop.call_at(self._set[0].due_s, self._look)
