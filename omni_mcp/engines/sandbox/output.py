"""Outputs: what comes out of a cell's pipes, never more than a job may write, without waiting for an end of file."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable

_CHUNK_BYTES = 1 << 16
_LAST_DELIVERY_S = 5.0  # for whoever was given the output while it came and is slow to take the rest

Sink = Callable[[bytes], Awaitable[None]]


class Budget:
    """How many bytes a group of pipes may still bring; calls *exceeded* once when they bring more."""

    def __init__(self, limit_bytes: int, exceeded: Callable[[], None]) -> None:
        self._left = limit_bytes
        self._exceeded = exceeded
        self.taken = 0
        self.over = False

    def take(self, data: bytes) -> bytes:
        """Return the part of *data* that still fits."""
        fits = data[: self._left]
        self._left -= len(fits)
        self.taken += len(fits)
        if len(fits) < len(data):
            self.over = True
            self._exceeded()
        return fits


class Output:
    """The reading end of one pipe: kept, or passed on to *sink* while it comes. Owns the descriptor."""

    def __init__(self, descriptor: int, budget: Budget, sink: Sink | None = None) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._budget = budget
        self._sink = sink
        self._parts: list[bytes] = []
        self._delivery: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._loop.add_reader(descriptor, self._read_some)

    async def finish(self) -> bytes:
        """Take what is still in the pipe, close it, and return what was kept. The writers are dead by now."""
        if self._sink is None:
            while self._open and self._read_some():
                pass
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_DELIVERY_S):
                    await self._deliver_the_rest()
        self.abandon()
        return b"".join(self._parts)

    async def _deliver_the_rest(self) -> None:
        while self._open:
            if self._delivery is not None:
                await asyncio.wait([self._delivery])
                await asyncio.sleep(0)  # for `_delivered`
            elif not self._read_some():
                break

    def abandon(self) -> None:
        """Close the pipe whatever is in it: nobody wants it any more."""
        if self._delivery is not None:
            self._delivery.cancel()
        self._stop()

    def _read_some(self) -> bool:
        try:
            data = os.read(self._descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._stop()
            return False
        fits = self._budget.take(data)
        if self._sink is None:
            self._parts.append(fits)
        elif fits:
            self._deliver(self._sink, fits)
        if len(fits) < len(data) and self._delivery is None:
            self._stop()  # whoever goes on writing blocks, and is killed
            return False
        return True

    def _deliver(self, sink: Sink, data: bytes) -> None:
        """Hand *data* on and read no more until it is taken: a slow reader slows the job down."""
        self._loop.remove_reader(self._descriptor)
        self._delivery = asyncio.ensure_future(sink(data))
        self._delivery.add_done_callback(self._delivered)

    def _delivered(self, delivery: asyncio.Task[None]) -> None:
        self._delivery = None
        if delivery.cancelled() or delivery.exception() is not None or self._budget.over:
            self._stop()  # nobody takes it any more
        elif self._open:
            self._loop.add_reader(self._descriptor, self._read_some)

    def _stop(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
