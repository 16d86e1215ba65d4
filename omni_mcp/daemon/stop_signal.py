"""StopSignal: the one place where a reason to end arrives, whoever gives it first."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

DRAIN_TIMEOUT_S = 6.0  # of the 10 s in which a gateway ends; the rest is for saying goodbye and closing the log


class StopSignal:
    """A reason to end, once there is one."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._at_once = asyncio.Event()
        self.reason = ""
        self.patience_s = DRAIN_TIMEOUT_S

    def ask(self, reason: str, *, patience_s: float = DRAIN_TIMEOUT_S) -> None:
        """Ask the process to end and to give running calls *patience_s*; asking a second time ends that wait."""
        if self._asked.is_set():
            self._at_once.set()
            return
        self.reason = reason
        self.patience_s = patience_s
        self._asked.set()

    async def asked(self) -> str:
        """Wait until somebody asks; returns the reason."""
        await self._asked.wait()
        return self.reason

    async def asked_twice(self) -> None:
        """Wait until somebody who has asked loses patience."""
        await self._at_once.wait()


@asynccontextmanager
async def stop_signal() -> AsyncIterator[StopSignal]:
    """Yield a `StopSignal` that SIGTERM and SIGINT ask, from before anything is opened until all is closed."""
    stop = StopSignal()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.ask, number.name)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
