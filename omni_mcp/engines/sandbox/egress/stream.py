"""Streams: one end of a connection, with its reader and writer closed together."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator

from omni_mcp.engines.sandbox.egress.ending import Ended

CHUNK_BYTES = 64 << 10
_MOST_DISCARDED_BYTES = 1 << 20
_RESET = struct.pack("ii", 1, 0)


class Stream:
    """A connected socket. Owns it."""

    def __init__(self, sock: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._sock = sock
        self._writer = writer
        self._broken = False
        self.reader = reader

    @classmethod
    async def over(cls, sock: socket.socket, *, tls: ssl.SSLContext | None = None, host: str = "") -> Stream:
        """Take over a connected socket; with *tls*, as a client of *host*."""
        reader, writer = await asyncio.open_connection(
            sock=sock, limit=CHUNK_BYTES, ssl=tls, server_hostname=host if tls else None
        )
        if tls is None:
            writer.transport.set_write_buffer_limits(high=0)  # a drain is a flush
        return cls(sock, reader, writer)

    async def send(self, data: bytes) -> None:
        """Write *data* and wait until there is room for more.

        Raises:
            OSError: the other side has gone.
        """
        if self._writer.is_closing():
            raise ConnectionResetError
        self._writer.write(data)
        await self._writer.drain()

    def end_sending(self) -> None:
        """Tell the other side that no more will come."""
        with contextlib.suppress(OSError):
            if self._writer.can_write_eof() and not self._writer.is_closing():
                self._writer.write_eof()

    def reset_on_close(self) -> None:
        """Let the other side see, when this is closed, that what it got is not whole."""
        self._broken = True
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    async def linger(self, seconds: float) -> None:
        """Give the other side time to read the last words: a close with bytes unread would destroy them."""
        if self._broken:
            return
        self.end_sending()
        with contextlib.suppress(OSError):  # a time-out, too
            async with asyncio.timeout(seconds):
                left = _MOST_DISCARDED_BYTES
                while left > 0 and (data := await self.reader.read(CHUNK_BYTES)):
                    left -= len(data)

    async def close(self) -> None:
        """Close at once; what is not flushed is lost."""
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


@contextlib.asynccontextmanager
async def deadline(seconds: float) -> AsyncIterator[None]:
    """Raises:
    Ended: the body took longer than *seconds*.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise Ended("timeout") from error
