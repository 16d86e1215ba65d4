"""A ticket is what an append returns at once: it learns its seq, or why there is none, when its group is committed."""

from __future__ import annotations

import asyncio

from omni_mcp.contracts.call import Durable
from omni_mcp.contracts.errors import OmniError


class Ticket:
    """The `Durable` of one event.

    `written` and `error` belong to the writer thread until `settle` runs in the event loop. An outcome that waits in
    the backlog has both in the end: its waiters were told that it could not be written, later it was.
    """

    __slots__ = ("_settled", "_waiters", "error", "written")

    def __init__(self) -> None:
        self.written: int | None = None
        self.error: OmniError | None = None
        self._settled = False
        self._waiters: list[asyncio.Future[None]] = []

    async def durable(self) -> int:
        """Wait until the event is on disk; returns its seq.

        Raises:
            LogUnavailable: it could not be written.
            QuotaExceeded: its run has as many events as it may have.
            NotFound: there is no such run.
            Conflict: its call has its outcome already.
        """
        if not self._settled:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        if self.error is not None:
            raise self.error.with_traceback(None)
        assert self.written is not None
        return self.written

    def settle(self) -> None:
        """Wake whoever waits. Only the event loop calls this."""
        self._settled = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


def seq_of_parent(parent: Durable | int | None) -> int | None:
    """Return the seq that *parent* has got.

    Raises:
        OmniError: the parent could not be written, so its child is not written either.
    """
    if parent is None or isinstance(parent, int):
        return parent
    if not isinstance(parent, Ticket):
        raise TypeError("the parent of an event is a seq, or what an append to the same log returned")
    if parent.written is None:
        raise parent.error or RuntimeError("the parent of an event must be appended before it")
    return parent.written
