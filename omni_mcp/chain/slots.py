"""Slots that are shared fairly: whoever has waited takes turns with the other principals, not with its own queue."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from omni_mcp.contracts.errors import RateLimited


class FairSlots:
    """At most *capacity* holders at once; a free slot goes to the principals that wait in turn, oldest wait first."""

    def __init__(self, capacity: int, *, wait_s: float = 120.0) -> None:
        self._free = capacity
        self._wait_s = wait_s
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._users = 0

    @property
    def idle(self) -> bool:
        """Whether nobody holds a slot or waits for one."""
        return self._users == 0

    @asynccontextmanager
    async def taken(self, who: str) -> AsyncIterator[None]:
        """Hold a slot.

        Raises:
            RateLimited: none came free in time; nothing has run.
        """
        self._users += 1
        try:
            await self._take(who)
            try:
                yield
            finally:
                self._pass_on()
        finally:
            self._users -= 1

    async def _take(self, who: str) -> None:
        if self._free > 0:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(who, deque()).append(turn)
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except TimeoutError as error:
            self._leave(who, turn)
            raise RateLimited(
                f"no slot came free within {self._wait_s:g} s; try again later", data={"retry_after_s": self._wait_s}
            ) from error
        except asyncio.CancelledError:
            self._leave(who, turn)
            raise

    def _leave(self, who: str, turn: asyncio.Future[None]) -> None:
        """Stop waiting; a slot that was given in the same moment goes to the next."""
        if turn.done() and not turn.cancelled():
            self._pass_on()
            return
        queue = self._waiting.get(who)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[who]

    def _pass_on(self) -> None:
        while self._waiting:
            who, queue = next(iter(self._waiting.items()))
            turn = queue.popleft()
            if queue:
                self._waiting.move_to_end(who)
            else:
                del self._waiting[who]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
