"""A client of event streams that can be cut off at any byte, and the record to hold what it got against."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.engines.runlog.erase import Eraser
from omni_mcp.engines.runlog.store import open_ledger
from omni_mcp.testing import WAIT_S, LocalGateway

Place = tuple[str, int]


class Cut(Exception):
    """The connection was cut, by us or by the gateway, before the stream's own end."""


@dataclass
class Listener:
    """One connection. `last_id` is what a next one begins behind."""

    port: int
    token: str
    path: str
    last_id: str | None = None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    comments: int = 0
    end: str | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Listener]:
        """Connect; leaving closes without a word."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port, limit=64 * 1024 * 1024)
        self._budget: int | None = None
        self._decoded = bytearray()
        last = f"Last-Event-ID: {self.last_id}\r\n" if self.last_id is not None else ""
        self._writer.write(
            f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {self.token}\r\n"
            f"{last}\r\n".encode()
        )
        try:
            head = (await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), WAIT_S)).decode().split("\r\n")
            self.status = int(head[0].split()[1])
            self.headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
            yield self
        finally:
            self._writer.transport.abort()

    def cut_after(self, count: int) -> None:
        """Take *count* more bytes of the wire and no other."""
        self._budget = count

    async def body(self) -> Any:
        """The whole body of an answer that is no stream."""
        return orjson.loads(await self._reader.readexactly(int(self.headers["content-length"])))

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        """Yield events until the stream says that it is over."""
        kind = block_id = data = None
        while True:
            line = await asyncio.wait_for(self._line(), WAIT_S)
            if line.startswith(b":"):
                self.comments += 1
            elif line.startswith(b"event: "):
                kind = line[7:].decode()
            elif line.startswith(b"id: "):
                block_id = line[4:].decode()
            elif line.startswith(b"data: "):
                data = line[6:]
            elif not line:
                if kind == "end":
                    self.end = orjson.loads(data or b"{}")["reason"]
                    return
                self.last_id = block_id or self.last_id
                if data is not None:
                    yield orjson.loads(data)
                kind = block_id = data = None

    async def begin(self) -> None:
        """Read the first block: it holds a place and no event."""
        while line := await asyncio.wait_for(self._line(), WAIT_S):
            if line.startswith(b"id: "):
                self.last_id = line[4:].decode()

    async def take(self, count: int) -> list[dict[str, Any]]:
        """Return the next *count* events."""
        found: list[dict[str, Any]] = []
        async for event in self:
            found.append(event)
            if len(found) == count:
                break
        return found

    async def rest(self) -> list[dict[str, Any]]:
        """Return everything up to the end of the stream."""
        return [event async for event in self]

    async def _line(self) -> bytes:
        while (at := self._decoded.find(b"\r\n")) < 0:
            await self._chunk()
        line = bytes(self._decoded[:at])
        del self._decoded[: at + 2]
        return line

    async def _chunk(self) -> None:
        size = int((await self._wire_line()), 16)
        self._decoded += await self._wire(size)
        await self._wire(2)
        if not size:
            raise Cut

    async def _wire_line(self) -> bytes:
        found = bytearray()
        while not found.endswith(b"\r\n"):
            found += await self._wire(1)
        return bytes(found[:-2])

    async def _wire(self, count: int) -> bytes:
        taken = count if self._budget is None else min(count, self._budget)
        try:
            data = await self._reader.readexactly(taken)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Cut from error
        if self._budget is not None:
            self._budget -= taken
            if taken < count or not self._budget:
                raise Cut
        return data


def places(events: list[dict[str, Any]]) -> list[Place]:
    """Where each event stands."""
    return [(event["run"], event["seq"]) for event in events]


async def recorded(here: LocalGateway, principal: str, run: str | None = None) -> list[Place]:
    """Where everything of a principal stands, in the order in which it was committed."""
    own = {facts["id"] for facts in await here.gateway.log.runs(principal=principal, limit=1000)}
    return [(e.run, e.seq) for e in await here.events() if e.run in own and (run is None or e.run == run)]


@contextmanager
def eraser(here: LocalGateway) -> Iterator[Eraser]:
    """What the command line makes beside a running gateway."""
    home = here.home
    ledger = open_ledger(home.log_file, home.secrets, events_per_run=100_000).ledger
    blobs = BlobStore(home.artifacts)
    try:
        yield Eraser(ledger, home.log_file, blobs, by="operator:test")
    finally:
        blobs.close()
        ledger.connection.close()
