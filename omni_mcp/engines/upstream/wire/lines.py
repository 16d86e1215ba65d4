"""Lines: one JSON message a line over the pipes of a child process."""

from __future__ import annotations

import asyncio
import os
from typing import Protocol

from omni_mcp.contracts.call import Era
from omni_mcp.engines.upstream.wire.large import LargeParser
from omni_mcp.engines.upstream.wire.pace import others_turn
from omni_mcp.engines.upstream.wire.reading import FrameReader
from omni_mcp.engines.upstream.wire.seam import FRAME_LIMIT_BYTES, Outgoing, Receiver, WireFault
from omni_mcp.engines.upstream.wire.splitting import Line, LineSplitter, TooLong
from omni_mcp.engines.upstream.wire.spool import Spool

UNREAD_LIMIT_BYTES = 16 * 1024 * 1024  # of ours that the server has not read; then it is asked nothing more
CHUNK_BYTES = 128 * 1024


class Child(Protocol):
    """A started server process."""

    async def read(self) -> bytes:
        """Return the next bytes of its standard output; nothing when it is closed."""
        ...

    def write(self, data: bytes) -> None:
        """Queue bytes for its standard input."""
        ...

    @property
    def unread_bytes(self) -> int:
        """How many bytes are queued that it has not read."""
        ...

    async def stop(self) -> str:
        """End it and everything it started; returns how it ended, for the record. Safe to call twice."""
        ...


class PipeChild:
    """A child whose ends are asyncio streams, for whoever started it that way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
                 process: asyncio.subprocess.Process | None = None) -> None:  # fmt: skip
        self._reader = reader
        self._writer = writer
        self._process = process

    async def read(self) -> bytes:
        """As the port."""
        return await self._reader.read(CHUNK_BYTES)

    def write(self, data: bytes) -> None:
        """As the port."""
        if self._writer.transport.is_closing():
            raise WireFault("its standard input is closed", sent=False)
        self._writer.write(data)

    @property
    def unread_bytes(self) -> int:
        """As the port."""
        return self._writer.transport.get_write_buffer_size()

    async def stop(self, *, grace_s: float = 1.0) -> str:
        """Close its input, wait a moment, then kill it."""
        if not self._writer.transport.is_closing():
            self._writer.transport.abort()
        if self._process is None:
            return "closed"
        try:
            async with asyncio.timeout(grace_s):
                code = await self._process.wait()
        except TimeoutError:
            self._process.kill()
            code = await self._process.wait()
        return f"exit status {code}"


async def child_of_pipes(stdin_fd: int, stdout_fd: int) -> PipeChild:
    """Return a child of the two descriptors: the writing end of its input and the reading end of its output."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=CHUNK_BYTES)
    output, entry = os.fdopen(stdout_fd, "rb", buffering=0), os.fdopen(stdin_fd, "wb", buffering=0)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), output)
    transport, protocol = await loop.connect_write_pipe(lambda: asyncio.streams.FlowControlMixin(loop=loop), entry)
    return PipeChild(reader, asyncio.StreamWriter(transport, protocol, None, loop))


class LinesWire:
    """A `Wire` over a child that somebody started."""

    closing_cancels = False
    outlives_its_server = False

    def __init__(self, child: Child, *, large: LargeParser, limit_bytes: int = FRAME_LIMIT_BYTES) -> None:
        self._child = child
        self._large = large
        self._limit = limit_bytes
        self._pump: asyncio.Task[None] | None = None
        self._gone = False

    async def open(self, receiver: Receiver) -> None:
        """Begin to read."""
        self._pump = asyncio.create_task(self._read(receiver))

    def settle(self, era: Era, version: str) -> None:
        """Nothing of a line depends on it."""

    def stand(self) -> None:
        """There is one stream for everything."""

    async def send(self, message: Outgoing) -> None:
        """Queue one line.

        Raises:
            WireFault: the process is gone, or has not read what it was sent before.
        """
        if self._gone:
            raise WireFault("the process is gone", sent=False)
        if self._child.unread_bytes > UNREAD_LIMIT_BYTES:
            raise WireFault("the process does not read its input", sent=False)
        self._child.write(message.data + b"\n")

    def forget(self, id: int) -> None:
        """A line holds nothing."""

    async def close(self) -> None:
        """End the process."""
        self._gone = True
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        await self._child.stop()

    async def _read(self, receiver: Receiver) -> None:
        reader = FrameReader(receiver, large=self._large, limit_bytes=self._limit)
        lines = LineSplitter(self._limit, self._large.room)
        reason = "the process closed its output"
        try:
            while chunk := await self._child.read():
                await _hand_on(reader, lines.feed(chunk))
            last = lines.rest()
            if isinstance(last, bytes | Spool):
                await reader.take_last(last)
        except Exception as error:  # a broken pipe; and whatever it is, callers must not wait for an answer
            reason = f"{type(error).__name__}: {error}"
        self._gone = True
        receiver.lost(WireFault(reason, sent=True))


async def _hand_on(reader: FrameReader, lines: list[Line]) -> None:
    """Hand on what one chunk ended; a function of its own, so that no large line is kept until the next one comes."""
    if not lines:  # the next chunk may be there already: others get a turn between two of them
        await others_turn()
    for line in lines:
        if isinstance(line, TooLong):
            await reader.refuse(line.head, line.tail)
        elif isinstance(line, Spool) or line.strip():
            await reader.take(line)
