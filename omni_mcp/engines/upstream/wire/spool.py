"""A spool holds one large message as it comes, outside of the interpreter's memory and never on a disk.

Putting 30 MB together as one `bytes` stalls every other thread for 10 ms; a spool takes it in small writes. It may hold
secrets that nobody has masked yet, so it is a file that only memory backs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator

SPOOL_BYTES = 256 * 1024  # a message up to this is kept as it is
ROOM_BYTES = 512 * 1024 * 1024  # of all spools together
ENDS_BYTES = 256
AT_ONCE_BYTES = 4 * 1024 * 1024  # are given back within half a millisecond


class Room:
    """How much the spools of one gateway may hold together. Safe to use from several threads."""

    def __init__(self, limit_bytes: int = ROOM_BYTES) -> None:
        self._lock = threading.Lock()
        self.left_bytes = limit_bytes

    def take(self, size_bytes: int) -> bool:
        """Take room; False where there is not so much."""
        with self._lock:
            if size_bytes > self.left_bytes:
                return False
            self.left_bytes -= size_bytes
            return True

    def give_back(self, size_bytes: int) -> None:
        """Undo `take`."""
        with self._lock:
            self.left_bytes += size_bytes


class Spool:
    """A message from `start` on in `file`. Gone when it is closed, or nobody has it any more."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._taken = 0
        self.file = os.memfd_create("message")
        self.start = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return self.size_bytes - self.start

    def add(self, data: bytes) -> bool:
        """Add *data*; False, and nothing changed, where there is no room."""
        if not self._room.take(len(data)):
            return False
        self._taken += len(data)
        self.size_bytes += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self.file, view) :]
        return True

    def add_spool(self, other: Spool) -> bool:
        """Add what *other* holds; False, and nothing changed, where there is no room."""
        if not self._room.take(len(other)):
            return False
        self._taken += len(other)
        self.size_bytes += len(other)
        at = other.start
        while at < other.size_bytes:
            at += os.sendfile(self.file, other.file, at, other.size_bytes - at)
        return True

    def ends(self) -> tuple[bytes, bytes]:
        """Return the first and the last bytes: an id may stand there."""
        tail = max(self.start, self.size_bytes - ENDS_BYTES)
        return os.pread(self.file, ENDS_BYTES, self.start), os.pread(self.file, ENDS_BYTES, tail)

    def close(self) -> None:
        """Give the memory back: 100 MB take 15 ms. Safe to call twice."""
        file = self.let_go()
        if file >= 0:
            os.close(file)

    def drop(self) -> None:
        """As `close`, for an event loop: much memory is given back in a thread that nobody waits for."""
        if self.size_bytes <= AT_ONCE_BYTES:
            self.close()
            return
        file = self.let_go()
        if file >= 0:
            try:
                threading.Thread(target=os.close, args=(file,), name="spool").start()
            except RuntimeError:  # there are no more threads
                os.close(file)

    def let_go(self) -> int:
        """Return the file, for the caller to close, and give the room back; -1 if that was done before."""
        file, self.file = self.file, -1
        if file >= 0:
            self._room.give_back(self._taken)
        return file

    def __del__(self) -> None:
        self.drop()


class Gathering:
    """The bytes of one message while they come: a list at first, a spool where they are many."""

    def __init__(self, limit_bytes: int, room: Room) -> None:
        self._limit = limit_bytes
        self._room = room
        self._parts: list[bytes] = []
        self._spool: Spool | None = None
        self.size_bytes = 0

    def add(self, part: bytes | Spool) -> bool:
        """Add *part*; False, and nothing changed, where that is over the limit, or there is no room for it."""
        size = self.size_bytes + len(part)
        if size > self._limit or not self._add(part, size):
            return False
        self.size_bytes = size
        return True

    def ends(self) -> tuple[bytes, bytes]:
        """Return the first and the last bytes of what came so far."""
        return ends_of(self._spool if self._spool is not None else b"".join(self._parts))

    def take(self) -> bytes | Spool:
        """Return everything, and begin again."""
        found: bytes | Spool
        if self._spool is not None:
            found = self._spool
        else:
            found = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self.clear()
        return found

    def clear(self) -> None:
        """Begin again."""
        self._parts, self._spool, self.size_bytes = [], None, 0

    def _add(self, part: bytes | Spool, size: int) -> bool:
        if self._spool is None and isinstance(part, bytes) and size <= SPOOL_BYTES:
            self._parts.append(part)
            return True
        if self._spool is None:
            if isinstance(part, Spool) and not self.size_bytes:
                self._spool = part
                return True
            spool = Spool(self._room)
            if not spool.add(b"".join(self._parts)):
                return False
            self._spool, self._parts = spool, []
        return self._spool.add_spool(part) if isinstance(part, Spool) else self._spool.add(part)


def ends_of(data: bytes | Spool) -> tuple[bytes, bytes]:
    """Return the first and the last bytes of *data*."""
    return data.ends() if isinstance(data, Spool) else (data[:ENDS_BYTES], data[-ENDS_BYTES:])


async def gathered(chunks: AsyncIterator[bytes], *, limit_bytes: int, room: Room) -> bytes | Spool | None:
    """Return all *chunks* as one message; None as soon as they are over the limit, or there is no room for them."""
    found = Gathering(limit_bytes, room)
    async for chunk in chunks:
        if not found.add(chunk):
            return None
    return found.take()
