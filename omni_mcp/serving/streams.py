"""EventStream: what goes to a client over one HTTP answer, numbered, bounded, and kept for a client that comes back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

EVENTS_LIMIT = 1024  # undelivered events before a slow reader is dropped, and all that is kept for resuming
BYTES_LIMIT = 8 * 1024 * 1024


class EventStream:
    """A queue of messages with one reader at a time. Writing never waits.

    Event ids are `<stream>-<number>`. A reader that is more than EVENTS_LIMIT behind is dropped; what is still held
    can be read again from any number after the oldest one held.
    """

    finished = False
    overrun = False
    on_change: Callable[[], None] | None = None  # told of each change, without a wait
    _held_bytes = 0
    _last = 0
    _delivered = 0
    _reader = 0  # number of the attached reader; a newer one ends an older one
    _attached = False
    _changed: asyncio.Event | None = None  # for whoever waits

    def __init__(
        self,
        name: str = "",
        *,
        events_limit: int = EVENTS_LIMIT,
        bytes_limit: int = BYTES_LIMIT,
        on_held: Callable[[int], None] | None = None,
    ) -> None:
        """Make an empty stream; *on_held* is called with what it holds when that is more and nobody reads."""
        self.name = name
        self._events_limit = events_limit
        self._bytes_limit = bytes_limit
        self._held: deque[tuple[int, bytes]] = deque()
        self._on_held = on_held

    def send(self, data: bytes) -> bool:
        """Add one message; False if the stream is over or its reader was dropped for being slow."""
        if self.finished:
            return False
        self._add(data)
        self._trim()
        self._change()
        self._tell_held()
        return not self.overrun and not self.finished

    def finish(self, data: bytes | None = None) -> None:
        """Add the last message, if there is one, and end the stream. It is the reply: no limit pushes it out."""
        if self.finished:
            return
        if data is not None:
            self._add(data)
        self.finished = True
        self._change()
        self._tell_held()

    def abandon(self) -> None:
        """End the stream and let go of what it holds: nobody will come for it."""
        self.finished = True
        self._held.clear()
        self._held_bytes = 0
        self._on_held = None
        self._change()

    def _change(self) -> None:
        if self._changed is not None:
            self._changed.set()
        if self.on_change is not None:
            self.on_change()

    def _tell_held(self) -> None:
        if self._on_held is not None and not self._attached:
            self._on_held(self._held_bytes)

    def _add(self, data: bytes) -> None:
        self._last += 1
        self._held.append((self._last, data))
        self._held_bytes += len(data)

    def _trim(self) -> None:
        """Forget what was delivered first; what was not delivered and is too much drops the reader."""
        while len(self._held) > self._events_limit or (self._held_bytes > self._bytes_limit and len(self._held) > 1):
            number, data = self._held.popleft()
            self._held_bytes -= len(data)
            if number > self._delivered and self._attached:
                self.overrun = True

    @property
    def held_bytes(self) -> int:
        """Bytes kept for a client that comes back."""
        return self._held_bytes

    @property
    def attached(self) -> bool:
        """Whether somebody reads."""
        return self._attached

    @property
    def last(self) -> int:
        """Number of the newest event."""
        return self._last

    def attach(self, *, again: bool = False) -> int:
        """Become the reader; whoever read before is ended. Returns the reader's number.

        *again*: the reader knows that it may have missed something, so an overrun is forgotten.
        """
        self._reader += 1
        self._attached = True
        self.overrun = self.overrun and not again
        if self._changed is not None:
            self._changed.set()
        return self._reader

    def detach(self, reader: int) -> None:
        """Stop reading, unless a newer reader has taken over."""
        if reader == self._reader:
            self._attached = False
            self._tell_held()

    def read_by(self, reader: int) -> bool:
        """Whether *reader* is still the one that reads."""
        return reader == self._reader

    def after(self, number: int) -> list[tuple[int, bytes]]:
        """Return what is held after event *number*."""
        return [(held, data) for held, data in self._held if held > number]

    async def wait(self, reader: int, number: int, *, timeout_s: float) -> list[tuple[int, bytes]] | None:
        """Return the events after *number*, waiting for one; an empty list when the time is over.

        None: nothing more will come for this reader (finished and read, dropped, or another one took over).
        """
        self._delivered = max(self._delivered, number)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if reader != self._reader or self.overrun:
                        return None
                    if found := self.after(number):
                        return found
                    if self.finished:
                        return None
                    if self._changed is None:
                        self._changed = asyncio.Event()
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return []
