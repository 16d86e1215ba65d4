"""Outputs: what comes out of a cell's pipes, never more than a job may write, without waiting for an end of file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

_CHUNK_BYTES = 1 << 16


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
    """The reading end of one pipe. Owns the descriptor."""

    def __init__(self, descriptor: int, budget: Budget) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._budget = budget
        self._parts: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._reading = True
        self._loop.add_reader(descriptor, self._read_some)

    def finish(self) -> bytes:
        """Take what is still in the pipe, close it, and return everything. The writers are dead by now."""
        while self._reading and self._read_some():
            pass
        self._stop()
        return b"".join(self._parts)

    def _read_some(self) -> bool:
        try:
            data = os.read(self._descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._stop()
            return False
        fits = self._budget.take(data)
        self._parts.append(fits)
        if len(fits) < len(data):
            self._stop()  # whoever goes on writing blocks, and is killed
            return False
        return True

    def _stop(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
