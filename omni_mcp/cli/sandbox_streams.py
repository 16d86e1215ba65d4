"""Our standard streams and those of a job: pumped by threads, so that a stuck reader or writer never holds us up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import select
import threading
from collections.abc import Callable

_CHUNK_BYTES = 64 * 1024


class InputPump:
    """Copies a descriptor of ours into a pipe of which the job gets the reading end, never the descriptor itself."""

    def __init__(self, source: int) -> None:
        self._source = source
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC)

    def start(self) -> None:
        """Begin to read; the thread ends by itself, at the end of the input or of the process."""
        threading.Thread(target=self._pump, daemon=True, name="stdin").start()

    def close(self) -> None:
        """Close our copy of the reading end, once the job has ended."""
        os.close(self.reader)

    def _pump(self) -> None:
        try:
            with contextlib.suppress(OSError):  # nobody reads any more, or our input cannot be read
                while self._is_ours():
                    try:
                        data = os.read(self._source, _CHUNK_BYTES)
                    except BlockingIOError:  # whoever started us shares a descriptor with us that does not wait
                        select.select([self._source], [], [])
                        continue
                    if not data:
                        break
                    _write_all(self._writer, data)
        finally:
            os.close(self._writer)

    def _is_ours(self) -> bool:
        """Whether reading is for us: from a terminal in whose background we run, it would stop the whole process."""
        return not os.isatty(self._source) or os.tcgetpgrp(self._source) == os.getpgrp()


class OutputPump:
    """Writes to a descriptor of ours, one piece at a time: whoever waits for `write` is slowed down by our reader.

    After a failed write everything is thrown away, and `on_lost` was told once, in the event loop.
    """

    def __init__(self, target: int, on_lost: Callable[[OSError], None]) -> None:
        self._target = target
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._pieces: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]]] = queue.SimpleQueue()
        self._last: asyncio.Future[None] | None = None
        self._lost = False
        self.at_line_start = True
        threading.Thread(target=self._pump, daemon=True, name=f"output {target}").start()

    async def write(self, data: bytes) -> None:
        """Return when all of *data* is written, or lost. Cancelling this stops the waiting, not the writing."""
        if self._lost or not data:
            await asyncio.sleep(0)  # whoever gives us more in a loop must not keep the event loop from turning
            return
        self.at_line_start = data.endswith(b"\n")
        self._last = self._loop.create_future()
        self._pieces.put((data, self._last))
        await asyncio.shield(self._last)

    def give_up(self) -> None:
        """Throw away what is still to be written: nobody waits for it."""
        self._lost = True
        if self._last is not None and not self._last.done():
            self._last.set_result(None)

    async def settle(self, limit_s: float) -> None:
        """Wait until what was given to `write` is out, but not longer than *limit_s*."""
        if self._last is not None:
            await asyncio.wait([self._last], timeout=limit_s)

    def _pump(self) -> None:
        while True:
            data, written = self._pieces.get()
            error: OSError | None = None
            try:
                _write_all(self._target, data)
            except OSError as caught:
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._written, written, error)

    def _written(self, written: asyncio.Future[None], error: OSError | None) -> None:
        if error is not None and not self._lost:
            self._lost = True
            self._on_lost(error)
        if not written.done():
            written.set_result(None)


def open_missing_descriptors() -> None:
    """Put /dev/null wherever one of descriptors 0 to 2 is closed, so that none of ours is mistaken for it.

    Of 1 it cannot be written to: output for which there is no place is lost, and that is an error.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            mode = os.O_RDONLY if number == 1 else os.O_RDWR
            os.open(os.devnull, mode)  # becomes the lowest free number, which is this one


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # as above
            select.select([], [descriptor], [])
