"""Lines: newline-delimited JSON over a pair of streams: stdio and the local socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Literal

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import OmniError, Overloaded, RateLimited
from omni_mcp.protocol.frames import FRAME_LIMIT_BYTES, BadFrame
from omni_mcp.protocol.rpc import PARSE_ERROR
from omni_mcp.protocol.sender import HEAD_BYTES, TAIL_BYTES
from omni_mcp.serving.conversation import Conversation
from omni_mcp.serving.edge import Edge
from omni_mcp.serving.room import Claim

CHUNK_BYTES = 256 * 1024
UNREAD_LIMIT_BYTES = 16 * 1024 * 1024  # what a client may leave unread before it is dropped


class LineTooLong:
    """Stands for a line over the limit; all but its first and last bytes were thrown away as they came."""

    def __init__(self, parts: list[bytes]) -> None:
        self.head = _first(parts)
        self.tail = _last(parts)

    def goes_on(self, more: bytes) -> None:
        """Keep the last bytes."""
        self.tail = (self.tail + more[-TAIL_BYTES:])[-TAIL_BYTES:]


class NoRoom(LineTooLong):
    """Stands for a line that could not be held."""

    def __init__(self, parts: list[bytes], error: OmniError) -> None:
        super().__init__(parts)
        self.error = error


async def split_lines(
    reader: asyncio.StreamReader, *, limit_bytes: int, claim: Claim
) -> AsyncIterator[bytes | LineTooLong]:
    """Yield lines without their newline. Every byte is looked at once, so a long line costs what its length says.

    What is held of a line that goes on in the next chunk is claimed until the line was taken.
    """
    parts: list[bytes] = []
    size = 0
    skipping: LineTooLong | None = None
    while chunk := await reader.read(CHUNK_BYTES):
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            if skipping is not None:
                skipping.goes_on(chunk[start:end])
                yield skipping
            elif size + end - start > limit_bytes:
                yield LineTooLong([*parts, chunk[start:end]])
            else:
                parts.append(chunk[start:end])
                line, parts = b"".join(parts), []
                yield line
            parts, size, skipping, start = [], 0, None, end + 1
            claim.close()
        size += len(chunk) - start
        if skipping is None and start < len(chunk):
            parts.append(chunk[start:])
            skipping = _refused(parts, size, limit_bytes, claim)
            if skipping is not None:
                parts = []
                claim.close()
        elif skipping is not None:
            skipping.goes_on(chunk[start:])
    if skipping is not None:
        yield skipping
    elif parts:
        yield b"".join(parts)  # a last line without its newline is a line


def _refused(parts: list[bytes], size: int, limit_bytes: int, claim: Claim) -> LineTooLong | None:
    """Say why the last of *parts* of a line cannot be held, or claim it."""
    if size > limit_bytes:
        return LineTooLong(parts)
    try:
        claim.grow(len(parts[-1]))
    except (RateLimited, Overloaded) as error:
        return NoRoom(parts, error)
    return None


def _first(parts: list[bytes]) -> bytes:
    head = bytearray()
    for part in parts:
        head += part[: HEAD_BYTES - len(head)]
        if len(head) >= HEAD_BYTES:
            break
    return bytes(head)


def _last(parts: list[bytes]) -> bytes:
    last: list[bytes] = []
    size = 0
    for part in reversed(parts):
        last.insert(0, part[-TAIL_BYTES:])
        size += len(part)
        if size >= TAIL_BYTES:
            break
    return b"".join(last)[-TAIL_BYTES:]


class LineOutlet:
    """Writes one message a line, and drops a client that does not read."""

    def __init__(self, writer: asyncio.StreamWriter, *, unread_limit_bytes: int = UNREAD_LIMIT_BYTES) -> None:
        self._writer = writer
        self._limit = unread_limit_bytes
        self.dropped = False

    def send(self, data: bytes) -> bool:
        """Queue one line; False once the client has gone or was dropped."""
        transport = self._writer.transport
        if self.dropped or transport.is_closing():
            return False
        if transport.get_write_buffer_size() > self._limit:
            self.dropped = True
            transport.abort()
            return False
        self._writer.write(data + b"\n")
        return True


async def serve_lines(
    edge: Edge,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    principal: Principal,
    profile: str,
    transport: Literal["stdio", "socket"],
    frame_limit_bytes: int = FRAME_LIMIT_BYTES,
    unread_limit_bytes: int = UNREAD_LIMIT_BYTES,
    eof_grace_s: float = 0.5,
) -> None:
    """Serve one client until it closes its side, is dropped, or this task is cancelled.

    When the client has closed its side, what is nearly done gets *eof_grace_s* to be answered; the rest is cancelled,
    which is on record before this returns.
    """
    outlet = LineOutlet(writer, unread_limit_bytes=unread_limit_bytes)
    talk = Conversation(
        edge, outlet, principal=principal, profile=profile, transport=transport, frame_limit_bytes=frame_limit_bytes
    )
    claim = edge.room.claim(principal.key)
    try:
        async for line in split_lines(reader, limit_bytes=frame_limit_bytes, claim=claim):
            if isinstance(line, NoRoom):
                talk.turn_away_line(line.error, line.head, line.tail)
            elif isinstance(line, LineTooLong):
                fault = BadFrame(PARSE_ERROR, "too_large", f"a line is over {frame_limit_bytes} bytes")
                talk.refuse(fault, line.head, line.tail)
            elif line.strip():
                await talk.take(line)
        await talk.finish(grace_s=0.0 if outlet.dropped else eof_grace_s)
    except (ConnectionError, BrokenPipeError):
        pass  # the client has gone without a word; ending the conversation is all there is to do
    finally:
        claim.close()
        await talk.end("gateway_stopped" if edge.draining else "client_left")
        await _flush(writer)


async def _flush(writer: asyncio.StreamWriter) -> None:
    """Give the last lines a moment to leave."""
    try:
        async with asyncio.timeout(1.0):
            await writer.drain()
    except (TimeoutError, ConnectionError):
        return
