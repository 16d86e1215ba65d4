"""Bodies: read to the end that their head announced, in pieces, and written with framing of our own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

from omni_mcp.engines.sandbox.egress.head import Framing, Malformed, read_fields, read_line
from omni_mcp.engines.sandbox.egress.stream import CHUNK_BYTES, deadline

LAST_CHUNK = b"0\r\n\r\n"
_MOST_SIZE_LINE_BYTES = 16
_SIZE = re.compile(rb"[0-9a-fA-F]{1,8}")  # no extensions: readers disagree about where they end


async def read_body(reader: asyncio.StreamReader, framing: Framing, *, idle_s: float) -> AsyncIterator[bytes]:
    """Yield the body's bytes; without a length and chunks, up to the end of the stream. Trailers are dropped.

    Raises:
        Malformed: a chunk is not framed as it must be.
        EOFError: the stream ends before the body does.
        Ended: nothing came for *idle_s* seconds.
    """
    if framing.chunked:
        while size := await _next_chunk(reader, idle_s=idle_s):
            async for piece in _exactly(reader, size, idle_s=idle_s):
                yield piece
            async with deadline(idle_s):
                await read_line(reader, most_bytes=0)
    elif framing.length is not None:
        async for piece in _exactly(reader, framing.length, idle_s=idle_s):
            yield piece
    else:
        while piece := await _some(reader, CHUNK_BYTES, idle_s=idle_s):
            yield piece


def framed(piece: bytes, framing: Framing) -> bytes:
    """Return *piece* of a body as it goes out."""
    return b"%x\r\n%b\r\n" % (len(piece), piece) if framing.chunked else piece


async def _next_chunk(reader: asyncio.StreamReader, *, idle_s: float) -> int:
    async with deadline(idle_s):
        line = await read_line(reader, most_bytes=_MOST_SIZE_LINE_BYTES)
        if not _SIZE.fullmatch(line):
            raise Malformed("size of chunk")
        size = int(line, 16)
        if not size:
            await read_fields(reader)
        return size


async def _exactly(reader: asyncio.StreamReader, count: int, *, idle_s: float) -> AsyncIterator[bytes]:
    while count:
        piece = await _some(reader, min(count, CHUNK_BYTES), idle_s=idle_s)
        if not piece:
            raise EOFError
        count -= len(piece)
        yield piece


async def _some(reader: asyncio.StreamReader, most_bytes: int, *, idle_s: float) -> bytes:
    async with deadline(idle_s):
        return await reader.read(most_bytes)
