"""Bytes become lines in linear time, whatever the chunks; a line over its limit costs only itself."""

from __future__ import annotations

from dataclasses import dataclass

from omni_mcp.engines.upstream.wire.spool import ENDS_BYTES, Gathering, Room, Spool


@dataclass(frozen=True, slots=True)
class TooLong:
    """A line over the limit, or one that there was no room for: its beginning and its end."""

    head: bytes
    tail: bytes


Line = bytes | Spool | TooLong


class LineSplitter:
    """Cuts a stream of chunks at line feeds. A large line comes as a spool."""

    def __init__(self, limit_bytes: int, room: Room | None = None) -> None:
        self._kept = Gathering(limit_bytes, room or Room())
        self._began = False
        self._head: bytes | None = None  # of a line that is skipped
        self._tail = b""

    @property
    def held_bytes(self) -> int:
        """Bytes of the unfinished line that are kept."""
        return self._kept.size_bytes if self._head is None else len(self._head) + len(self._tail)

    def feed(self, chunk: bytes) -> list[Line]:
        """Return the lines that *chunk* ends, without their line feeds."""
        found: list[Line] = []
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._add(chunk[start:end])
            found.append(self._line())
            start = end + 1
        if start < len(chunk):
            self._add(chunk[start:] if start else chunk)
        return found

    def rest(self) -> Line | None:
        """Return a last line that has no line feed; None if there is none."""
        return self._line() if self._began else None

    def _add(self, part: bytes) -> None:
        self._began = True
        if self._head is None:
            if self._kept.add(part):
                return
            head, tail = self._kept.ends()
            self._head, self._tail = (head + part)[:ENDS_BYTES], tail
            self._kept.clear()
        self._tail = (self._tail + part[-ENDS_BYTES:])[-ENDS_BYTES:]

    def _line(self) -> Line:
        line: Line = self._kept.take() if self._head is None else TooLong(self._head, self._tail)
        self._began, self._head, self._tail = False, None, b""
        return line
