"""MCP over this process's own standard input and output, which carry nothing else from here on.

The two descriptors are taken away from descriptor 0 and 1 first, so that a stray `print`, a library or a child
process can neither write into the protocol nor eat from it. Pipes and sockets are read by the event loop; files and
terminals, which no event loop can wait for, by a thread.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import BinaryIO

CHUNK_BYTES = 64 * 1024
READ_AHEAD_BYTES = 256 * 1024


@asynccontextmanager
async def stdio_streams() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Yield this process's stdin and stdout as streams; on leaving, what was written is flushed and both are closed."""
    source, sink = _take_away(0, os.O_RDONLY), _take_away(1, os.O_WRONLY)
    reader = await _reader(source)
    writer, pump = await _writer(sink)
    try:
        yield reader, writer
    finally:
        writer.close()
        try:
            async with asyncio.timeout(5):
                await writer.wait_closed()
        except (OSError, TimeoutError):
            writer.transport.abort()
        if pump is not None:
            await asyncio.to_thread(pump.join, 5)


def _take_away(descriptor: int, flags: int) -> int:
    """Return a private copy of *descriptor*; in its place stands /dev/null for input and stderr for output."""
    private = os.dup(descriptor)
    if flags == os.O_RDONLY:
        stand_in = os.open(os.devnull, os.O_RDONLY)
        os.dup2(stand_in, descriptor)
        os.close(stand_in)
    else:
        os.dup2(2, descriptor)
    return private


def _is_pollable(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


async def _reader(descriptor: int) -> asyncio.StreamReader:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=READ_AHEAD_BYTES)
    source = descriptor
    if not _is_pollable(descriptor):
        source, feed = os.pipe()
        threading.Thread(target=_copy, args=(descriptor, feed), name="stdin", daemon=True).start()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(source, "rb", buffering=0))
    return reader


async def _writer(descriptor: int) -> tuple[asyncio.StreamWriter, threading.Thread | None]:
    loop = asyncio.get_running_loop()
    sink, pump = descriptor, None
    if not _is_pollable(descriptor):
        drain, sink = os.pipe()
        pump = threading.Thread(target=_copy, args=(drain, descriptor), name="stdout", daemon=True)
        pump.start()
    pipe: BinaryIO = os.fdopen(sink, "wb", buffering=0)
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), pipe
    )  # a reader's protocol because only that one can wait until the pipe is closed
    return asyncio.StreamWriter(transport, protocol, None, loop), pump


def _copy(source: int, sink: int) -> None:
    """Copy until the end of *source*, then close both: runs in a thread of its own."""
    try:
        while chunk := os.read(source, CHUNK_BYTES):
            while chunk:
                chunk = chunk[os.write(sink, chunk) :]
    except OSError:
        return  # one side has gone; closing tells the other
    finally:
        os.close(source)
        os.close(sink)
