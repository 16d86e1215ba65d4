"""Caps on how often a principal may call and how many of its calls may be under way."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable

from omni_mcp.contracts.call import Call, Handler, Result
from omni_mcp.contracts.errors import Draining, RateLimited
from omni_mcp.contracts.json import JsonObject

WINDOW_S = 60.0
PRINCIPALS_KEPT = 10_000


class Limit:
    """Refuses a call over the rate of its principal, or over the number that may be pending; never locks anyone out."""

    def __init__(
        self, *, calls_per_minute: int, pending_per_principal: int, pending_in_all: int,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._calls = _Rate(calls_per_minute)
        self._requests = _Rate(calls_per_minute)
        self._pending_per_principal = pending_per_principal
        self._pending_in_all = pending_in_all
        self._now_s = now_s
        self._pending: dict[str, int] = defaultdict(int)
        self._pending_total = 0
        self._under_way: dict[str, tuple[Call, float]] = {}
        self.closed = False  # no new call is taken; those under way, and their later rounds, go on

    @property
    def pending(self) -> int:
        """Calls that are under way, waiting ones included."""
        return self._pending_total

    def under_way(self) -> list[tuple[Call, float]]:
        """Return the calls under way as they came, oldest first, and for how many seconds each has been."""
        now = self._now_s()
        return [(call, now - began_s) for call, began_s in self._under_way.values()]

    async def __call__(self, call: Call, proceed: Handler) -> Result:
        who = call.principal.key
        if call.round is None:  # a later round is the same call, and refusing it would not undo the first
            self._admit(who)
        self._pending[who] += 1
        self._pending_total += 1
        self._under_way[call.id] = call, self._now_s()
        try:
            return await proceed(call)
        finally:
            self._pending_total -= 1
            self._under_way.pop(call.id, None)
            self._pending[who] -= 1
            if not self._pending[who]:
                del self._pending[who]

    def admit_request(self, who: str) -> None:
        """Count a request that is no call (a subscription, a completion, a new session) against a rate of its own.

        Raises:
            RateLimited: there were too many in the last minute.
        """
        self._requests.admit(who, self._now_s(), what="requests")

    def is_over(self, who: str) -> bool:
        """Whether the next call of *who* would be refused."""
        return (
            self.closed
            or self._pending.get(who, 0) >= self._pending_per_principal
            or self._calls.used(who, self._now_s()) >= self._calls.per_minute
        )

    def left(self, who: str) -> JsonObject:
        """Return what *who* has left: calls in this minute, and calls that may be under way at once."""
        per_minute = self._calls.per_minute
        used = self._calls.used(who, self._now_s())
        pending, most = self._pending.get(who, 0), self._pending_per_principal
        return {
            "calls_per_minute": {"used": used, "limit": per_minute, "left": max(0, per_minute - used)},
            "pending": {"used": pending, "limit": most, "left": max(0, most - pending)},
        }

    def _admit(self, who: str) -> None:
        if self.closed:
            raise Draining()
        if self._pending.get(who, 0) >= self._pending_per_principal:
            raise RateLimited(
                f"{self._pending_per_principal} calls are already under way; wait for one to end",
                data={"retry_after_s": 1.0},
            )
        if self._pending_total >= self._pending_in_all:
            raise RateLimited("the gateway is busy; try again in a second", data={"retry_after_s": 1.0})
        self._calls.admit(who, self._now_s(), what="calls")


class _Rate:
    """How often each principal did something within the last minute."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._recent: dict[str, deque[float]] = {}

    def used(self, who: str, now: float) -> int:
        """Return how often it was within the last minute."""
        recent = self._recent.get(who)
        if recent is None:
            return 0
        while recent and recent[0] <= now - WINDOW_S:
            recent.popleft()
        return len(recent)

    def admit(self, who: str, now: float, *, what: str) -> None:
        if self.used(who, now) >= self.per_minute:
            wait_s = round(self._recent[who][0] + WINDOW_S - now, 1)
            raise RateLimited(
                f"more than {self.per_minute} {what} in a minute; try again in {wait_s} s",
                data={"retry_after_s": wait_s},
            )
        if len(self._recent) >= PRINCIPALS_KEPT and who not in self._recent:
            self._recent = {one: times for one, times in self._recent.items() if times and times[-1] > now - WINDOW_S}
        self._recent.setdefault(who, deque()).append(now)


class Shed:
    """Outside of Record: of one principal's calls over its limits, one a second is refused on record, the rest counted.

    Without it, a client that calls on and on after its refusal would fill the log with its refusals.
    """

    def __init__(
        self, limit: Limit, note: Callable[[str, str], None], *, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._note = note
        self._now_s = now_s
        self._told: dict[str, float] = {}

    def __call__(self, call: Call, proceed: Handler) -> Awaitable[Result]:
        who = call.principal.key
        if call.round is None and self._limit.is_over(who):
            now = self._now_s()
            told = self._told.get(who)
            if told is not None and told > now - 1.0:
                if self._limit.closed:
                    self._note(call.client.transport, "draining")
                    raise Draining()
                self._note(call.client.transport, "rate_limited")
                raise RateLimited("too many calls; try again later", data={"retry_after_s": 1.0})
            if len(self._told) >= PRINCIPALS_KEPT:
                self._told.clear()
            self._told[who] = now
        return proceed(call)
