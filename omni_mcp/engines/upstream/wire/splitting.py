"""Bytes become lines in linear time, whatever the chunks; a line over its limit costs only itself."""

from __future__ import annotations

from dataclasses import dataclass

ENDS_BYTES = 256  # of a refused line, kept from both ends: an id may stand there


@dataclass(frozen=True, slots=True)
class TooLong:
    """A line over the limit: its beginning and its end."""

    head: bytes
    tail: bytes


class LineSplitter:
    """Cuts a stream of chunks at line feeds."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._head: bytes | None = None  # of a line that is skipped
        self._tail = b""

    @property
    def held_bytes(self) -> int:
        """Bytes of the unfinished line that are kept."""
        return self._size if self._head is None else len(self._head) + len(self._tail)

    def feed(self, chunk: bytes) -> list[bytes | TooLong]:
        """Return the lines that *chunk* ends, without their line feeds."""
        found: list[bytes | TooLong] = []
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._add(chunk[start:end])
            found.append(self._line())
            start = end + 1
        if start < len(chunk):
            self._add(chunk[start:] if start else chunk)
        return found

    def rest(self) -> bytes | TooLong | None:
        """Return a last line that has no line feed; None if there is none."""
        return self._line() if self._parts or self._head is not None else None

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._head is None and self._size <= self._limit:
            self._parts.append(part)
            return
        if self._head is None:
            kept = b"".join(self._parts)
            self._head, self._tail, self._parts = (kept + part)[:ENDS_BYTES], kept[-ENDS_BYTES:], []
        self._tail = (self._tail + part[-ENDS_BYTES:])[-ENDS_BYTES:]

    def _line(self) -> bytes | TooLong:
        if self._head is not None:
            line: bytes | TooLong = TooLong(self._head, self._tail)
        else:
            line = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._size, self._head, self._tail = [], 0, None, b""
        return line
