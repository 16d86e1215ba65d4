"""Slots that are shared fairly: whoever has waited takes turns with the other principals, not with its own queue."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from contextlib import AbstractAsyncContextManager

from omni_mcp.contracts.errors import RateLimited
from omni_mcp.time_limits import TimeLimits


class FairSlots:
    """At most *capacity* holders at once; a free slot goes to the principals that wait in turn, oldest wait first.

    Args:
        share: how many of them one principal may hold; unset, all.
        limits: where the ends of waits are set, of all slots that come and go.
    """

    def __init__(
        self, capacity: int, *, share: int | None = None, wait_s: float = 120.0, limits: TimeLimits | None = None
    ) -> None:
        self._free = capacity
        self._share = share or capacity
        self._held: dict[str, int] = {}
        self._wait_s = wait_s
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._users = 0
        self._limits = limits or TimeLimits()

    @property
    def idle(self) -> bool:
        """Whether nobody holds a slot or waits for one."""
        return self._users == 0

    def taken(self, who: str) -> AbstractAsyncContextManager[None]:
        """Hold a slot while the block runs.

        Raises:
            RateLimited: none came free in time; nothing has run.
        """
        return _Taken(self, who)

    def take_now(self, who: str) -> bool:
        """Take a slot if one is free for *who*. Who got one gives it back."""
        if self._free <= 0 or self._held.get(who, 0) >= self._share:
            return False
        self._users += 1
        self._hold(who)
        return True

    async def take(self, who: str) -> None:
        """Wait for a slot; as `taken`. Who got one gives it back."""
        self._users += 1
        try:
            await self._take(who)
        except BaseException:
            self._users -= 1
            raise

    def give_back(self, who: str) -> None:
        """Free one slot of *who*."""
        self._users -= 1
        self._give_back(who)

    async def _take(self, who: str) -> None:
        if self._free > 0 and self._held.get(who, 0) < self._share:
            self._hold(who)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(who, deque()).append(turn)
        try:
            with self._limits.within(self._wait_s):
                await turn
        except TimeoutError as error:
            self._leave(who, turn)
            raise RateLimited(
                f"no slot came free within {self._wait_s:g} s; try again later", data={"retry_after_s": self._wait_s}
            ) from error
        except asyncio.CancelledError:
            self._leave(who, turn)
            raise

    def _hold(self, who: str) -> None:
        self._free -= 1
        self._held[who] = self._held.get(who, 0) + 1

    def _leave(self, who: str, turn: asyncio.Future[None]) -> None:
        """Stop waiting; a slot that was given in the same moment goes to the next."""
        if turn.done() and not turn.cancelled():
            self._give_back(who)
            return
        queue = self._waiting.get(who)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[who]

    def _give_back(self, who: str) -> None:
        """Free one slot of *who*, and give it to the next that may have one."""
        self._held[who] -= 1
        if not self._held[who]:
            del self._held[who]
        self._free += 1
        for other in list(self._waiting):
            if self._held.get(other, 0) < self._share and self._wake(other):
                return

    def _wake(self, who: str) -> bool:
        queue = self._waiting.pop(who)
        while queue:
            turn = queue.popleft()
            if turn.done():
                continue
            if queue:
                self._waiting[who] = queue  # behind the others
            self._hold(who)
            turn.set_result(None)
            return True
        return False


class _Taken(AbstractAsyncContextManager[None]):
    """One slot. Written out, because each call takes some."""

    __slots__ = ("_slots", "_who")

    def __init__(self, slots: FairSlots, who: str) -> None:
        self._slots = slots
        self._who = who

    async def __aenter__(self) -> None:
        await self._slots.take(self._who)

    async def __aexit__(self, *_: object) -> None:
        self._slots.give_back(self._who)
