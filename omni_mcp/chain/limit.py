"""Caps on how often a principal may call and how many of its calls may be under way."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable

from omni_mcp.contracts.call import Call, Handler, Result
from omni_mcp.contracts.errors import RateLimited

WINDOW_S = 60.0


class Limit:
    """Refuses a call over the rate of its principal, or over the number that may be pending; never locks anyone out."""

    def __init__(
        self, *, calls_per_minute: int, pending_per_principal: int, pending_in_all: int,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._calls_per_minute = calls_per_minute
        self._pending_per_principal = pending_per_principal
        self._pending_in_all = pending_in_all
        self._now_s = now_s
        self._recent: dict[str, deque[float]] = defaultdict(deque)
        self._pending: dict[str, int] = defaultdict(int)
        self._pending_total = 0

    @property
    def pending(self) -> int:
        """Calls that are under way, waiting ones included."""
        return self._pending_total

    async def __call__(self, call: Call, proceed: Handler) -> Result:
        who = call.principal.key
        self._admit(who)
        self._pending[who] += 1
        self._pending_total += 1
        try:
            return await proceed(call)
        finally:
            self._pending_total -= 1
            self._pending[who] -= 1
            if not self._pending[who]:
                del self._pending[who]

    def _admit(self, who: str) -> None:
        now = self._now_s()
        recent = self._recent[who]
        while recent and recent[0] <= now - WINDOW_S:
            recent.popleft()
        if len(recent) >= self._calls_per_minute:
            wait_s = round(recent[0] + WINDOW_S - now, 1)
            raise RateLimited(
                f"more than {self._calls_per_minute} calls in a minute; try again in {wait_s} s",
                data={"retry_after_s": wait_s},
            )
        if self._pending[who] >= self._pending_per_principal:
            raise RateLimited(
                f"{self._pending_per_principal} calls are already under way; wait for one to end",
                data={"retry_after_s": 1.0},
            )
        if self._pending_total >= self._pending_in_all:
            raise RateLimited("the gateway is busy; try again in a second", data={"retry_after_s": 1.0})
        recent.append(now)
