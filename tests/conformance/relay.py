"""A loopback relay that adds a bearer token to each request and otherwise changes no byte in either direction.

The conformance suite cannot send a credential, and authentication stays on in the gateway. `Host` and `Origin` go on as
the suite sent them, so its forged ones reach the gateway's own check; answers are copied as they come, so a stream
stays a stream.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

HEAD_LIMIT_BYTES = 64 * 1024
COPY_BYTES = 64 * 1024


class BadHead(Exception):
    """A request head that this relay does not follow."""


class Relay:
    """Listens on a free port of the loopback and passes every connection on to one of its own at *target_port*."""

    def __init__(self, target_port: int, token: str, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._target_port = target_port
        self._line = b"Authorization: Bearer " + token.encode("ascii") + b"\r\n"
        self._host = host
        self._wanted_port = port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None, "enter the relay first"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def point_at(self, target_port: int, token: str) -> None:
        """Send what connects from now on to another port, with another token."""
        self._target_port = target_port
        self._line = b"Authorization: Bearer " + token.encode("ascii") + b"\r\n"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self._host, self._wanted_port, limit=HEAD_LIMIT_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        try:
            await self._relay(reader, writer)
        except (OSError, BadHead, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # one side is gone or speaks no HTTP: the connection ends, which is all that either can be told
        except asyncio.CancelledError:
            pass  # the relay closes; asyncio's stream server would report the cancellation as a fault
        finally:
            await _close(writer)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
        up = asyncio.ensure_future(self._pass_requests(reader, back))
        down = asyncio.ensure_future(_copy(there, writer))
        try:
            # Whichever side ends first ends the connection: that is how a client's hanging up reaches the gateway.
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            await _close(back)

    async def _pass_requests(self, reader: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            there.write(with_line(head, self._line))
            await there.drain()
            await _pass_body(head, reader, there)


def with_line(head: bytes, line: bytes) -> bytes:
    """Return the request head with *line* as its last header, unless it carries that header already."""
    name = line.split(b":", 1)[0].lower()
    if any(header.split(b":", 1)[0].strip().lower() == name for header in head.split(b"\r\n")[1:]):
        return head
    return head[:-2] + line + b"\r\n"


def header(head: bytes, name: bytes) -> bytes | None:
    """Return the value of the first header *name* (lower case), or None."""
    for line in head.split(b"\r\n")[1:]:
        found, _, value = line.partition(b":")
        if found.strip().lower() == name:
            return value.strip()
    return None


async def _pass_body(head: bytes, reader: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
    if (header(head, b"transfer-encoding") or b"").lower() == b"chunked":
        await _pass_chunks(reader, there)
        return
    length = header(head, b"content-length") or b"0"
    if not length.isdigit():
        raise BadHead(length)
    await _pass_exactly(int(length), reader, there)


async def _pass_chunks(reader: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
    while True:
        line = await reader.readuntil(b"\r\n")
        there.write(line)
        size = int(line.split(b";", 1)[0], 16)
        if size:
            await _pass_exactly(size + 2, reader, there)
            continue
        while line != b"\r\n":  # trailers, then the empty line
            line = await reader.readuntil(b"\r\n")
            there.write(line)
        await there.drain()
        return


async def _pass_exactly(count: int, reader: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
    while count:
        data = await reader.read(min(count, COPY_BYTES))
        if not data:
            raise asyncio.IncompleteReadError(b"", count)
        there.write(data)
        await there.drain()
        count -= len(data)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(COPY_BYTES):
        writer.write(data)
        await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):  # it had gone already
        await writer.wait_closed()
