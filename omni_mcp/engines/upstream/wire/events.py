"""Server-sent events: bytes become events in linear time (WHATWG HTML, "Server-sent events")."""

from __future__ import annotations

from dataclasses import dataclass

from omni_mcp.engines.upstream.wire.splitting import Line, LineSplitter, TooLong
from omni_mcp.engines.upstream.wire.spool import Gathering, Room, Spool, ends_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event. `data` is None where it was larger than allowed; `head` and `tail` are its ends then."""

    name: str
    data: bytes | Spool | None
    id: str | None
    head: bytes = b""
    tail: bytes = b""


class EventParser:
    """Parses one stream. `last_id` and `retry_s` are what a reconnection needs."""

    def __init__(self, limit_bytes: int, room: Room | None = None) -> None:
        room = room or Room()
        self._lines = LineSplitter(limit_bytes + 64, room)
        self._after_cr = False
        self._data = Gathering(limit_bytes, room)
        self._has_data = False
        self._refused: TooLong | None = None
        self._name = ""
        self._began = False
        self.last_id: str | None = None
        self.retry_s: float | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that *chunk* completes."""
        if not self._began and chunk:
            self._began = True
            chunk = chunk.removeprefix(b"\xef\xbb\xbf")
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        found = []
        for line in self._lines.feed(chunk):
            event = self._take(line)
            if event is not None:
                found.append(event)
        return found

    def _take(self, line: Line) -> Event | None:
        if isinstance(line, TooLong):
            self._refused = line
            return None
        if isinstance(line, Spool):
            head, _ = line.ends()
            if head.startswith(b"data:"):
                line.start = 6 if head.startswith(b"data: ") else 5
                self._add(line)
            return None
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._add(value)
        elif name == b"event":
            self._name = value.decode("utf-8", "replace")[:64]
        elif name == b"id" and b"\0" not in value and len(value) <= 4096:
            self.last_id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit() and len(value) < 10:
            self.retry_s = int(value) / 1000
        return None

    def _add(self, value: bytes | Spool) -> None:
        if self._refused is not None:
            return
        if (not self._has_data or self._data.add(b"\n")) and self._data.add(value):
            self._has_data = True
            return
        first, last = ends_of(value)
        self._refused = TooLong(self._data.ends()[0] if self._has_data else first, last)
        self._data.clear()

    def _dispatch(self) -> Event | None:
        has_data, name, refused = self._has_data, self._name or "message", self._refused
        self._has_data, self._name, self._refused = False, "", None
        data = self._data.take()
        if refused is not None:
            head = refused.head.removeprefix(b"data:").removeprefix(b" ")
            return Event(name=name, data=None, id=self.last_id, head=head, tail=refused.tail)
        return Event(name=name, data=data, id=self.last_id) if has_data else None
