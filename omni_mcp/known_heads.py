"""KnownHeads: heads of HTTP messages that come again and again, alike but for the length of the body, are read once.

The same bytes say the same thing. So what the parser made of a message that came whole, head and body in one piece and
nothing behind them, holds for the next one whose head is the same to the byte, the digits of its length left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Generic, TypeVar

HEAD_LIMIT_BYTES = 2048
MESSAGE_LIMIT_BYTES = 64 * 1024
HEADS_KEPT = 8
FIELDS_LIMIT = 32  # what is read of a line takes ten times the bytes of the shortest one

_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,8})\r\n", re.IGNORECASE)
_LENGTH_LEFT_OUT = b"\0"  # no parser takes it in a head, so it says in which place the digits were
_FRAMED_OTHERWISE = frozenset({b"transfer-encoding", b"upgrade", b"expect", b"trailer"})

T = TypeVar("T")


class KnownHeads(Generic[T]):
    """Those of one peer, *kept* at most. A head is learned when it comes the second time: many come once."""

    def __init__(self, kept: int = HEADS_KEPT) -> None:
        self._kept = kept
        self._read: dict[bytes, T | None] = {}
        self._to_learn: bytes | None = None

    def find(self, data: bytes) -> tuple[T, bytes, bytes] | None:
        """Return what was read of the head of *data*, the digits of its length, and the body.

        None: it is no whole message, or its head is not known. Then the parser reads it, and `learn` may follow.
        """
        self._to_learn = None
        if len(data) > MESSAGE_LIMIT_BYTES or (length := _LENGTH.search(data, 0, HEAD_LIMIT_BYTES)) is None:
            return None
        start, end = length.span(1)
        head_end = data.find(b"\r\n\r\n", end)
        digits = length[1]
        if head_end < 0 or head_end > HEAD_LIMIT_BYTES or len(data) != head_end + 4 + int(digits):
            return None
        key = data[:start] + _LENGTH_LEFT_OUT + data[end:head_end]
        read = self._read.get(key)
        if read is not None:
            return read, digits, data[head_end + 4 :]
        if key in self._read:
            self._to_learn = key
            return None
        if len(self._read) >= self._kept:
            self._read.clear()
        self._read[key] = None
        return None

    def learns(self, fields: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether `learn` would keep what was read of the data of the last `find`: of all of it, as one message.

        Args:
            fields: the headers that the parser found. They have to be the lines, or the parser saw another end of the
                head.
        """
        if self._to_learn is None or len(fields) > FIELDS_LIMIT:
            return False
        lines = self._to_learn.split(b"\r\n")[1:]
        if b"\n" in b"".join(lines):
            return False
        names = [line.partition(b":")[0].lower() for line in lines]
        return names == [name.lower() for name, _ in fields] and _FRAMED_OTHERWISE.isdisjoint(names)

    def learn(self, read: T) -> None:
        """Keep what was read of the data of the last `find`."""
        if self._to_learn is not None:
            self._read[self._to_learn] = read
            self._to_learn = None
