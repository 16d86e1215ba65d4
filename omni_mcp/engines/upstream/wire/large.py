"""Large messages are parsed in a process of their own, because a parser holds up every other thread of this one.

Measured with a message of 30 MB full of escapes (best of five): in a thread it costs 210 ms of CPU and stalls the loop
for 55 ms; this way 38 ms and 8 ms. With 100 MB: 900 and 230 ms against 180 and 60 ms. What is left here is copying.
The process starts with the first large message and ends when there was none for a while.
"""

from __future__ import annotations

import asyncio
import codecs
import mmap
import os
import socket
import sys
from typing import Any

import orjson

from omni_mcp.contracts.json import JsonValue
from omni_mcp.engines.upstream.wire.large_worker import DONE
from omni_mcp.protocol.frames import BadFrame
from omni_mcp.protocol.rpc import PARSE_ERROR

IDLE_S = 60.0
ANSWER_S = 30.0  # 128 MiB of the worst kind take 3 s
PIECE_BYTES = 1024 * 1024
WORKER = "omni_mcp.engines.upstream.wire.large_worker"


class LargeParser:
    """Parses one large message at a time. A server that sends many waits in its own reader, and nobody else does."""

    def __init__(self, *, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._channel: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process is not None else None

    async def parse(self, data: bytes, *, limit_bytes: int) -> JsonValue:
        """Parse as `omni_mcp.protocol.frames.parse` does.

        Raises:
            BadFrame: it is not one unambiguous JSON value, or the process gave up on it.
        """
        async with self._turn:
            if self._timer is not None:
                self._timer.cancel()
            message, answer = os.memfd_create("message"), os.memfd_create("answer")
            try:
                await asyncio.to_thread(_write, message, data)
                async with asyncio.timeout(ANSWER_S):
                    reply = await self._ask(message, answer, limit_bytes)
                if reply != DONE:
                    await self._stop()
                    raise _too_costly()
                return await asyncio.to_thread(_joined, answer)
            except (TimeoutError, OSError) as error:
                await self._stop()
                raise _too_costly() from error
            except asyncio.CancelledError:
                await self._stop()  # its answer would be taken for the next one's
                raise
            finally:
                os.close(message)
                os.close(answer)
                self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._say_idle)

    async def close(self) -> None:
        """End the process."""
        async with self._turn:
            if self._timer is not None:
                self._timer.cancel()
            await self._stop()

    async def _ask(self, message: int, answer: int, limit_bytes: int) -> bytes:
        if self._channel is None:
            await self._start()
        assert self._channel is not None
        socket.send_fds(self._channel, [str(limit_bytes).encode()], [message, answer])
        return await asyncio.get_running_loop().sock_recv(self._channel, 1)

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._channel = ours
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", WORKER, str(theirs.fileno()), pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip

    async def _stop(self) -> None:
        channel, self._channel = self._channel, None
        process, self._process = self._process, None
        if channel is not None:
            channel.close()
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def _say_idle(self) -> None:
        """Closing the channel is the word to go; the next message starts another process."""
        if not self._turn.locked() and self._channel is not None:
            self._channel.close()
            self._channel = None


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _joined(answer: int) -> JsonValue:
    """Put the long texts of an answer back into their places."""
    with mmap.mmap(answer, 0, prot=mmap.PROT_READ) as view:
        start = 8 + int.from_bytes(view[:8], "big")
        head = orjson.loads(view[8:start])
        if "fault" in head:
            fault = head["fault"]
            raise BadFrame(fault["code"], fault["reason"], fault["message"])
        root: dict[str, Any] = {"value": head["value"]}
        with memoryview(view) as texts:
            for path, size in head["texts"]:
                node: Any = root
                for key in ["value", *path[:-1]]:
                    node = node[key]
                node[path[-1]] = _text(texts[start : start + size])
                start += size
        return root["value"]


def _text(data: memoryview) -> str:
    """Decode in pieces: between two of them other threads get their turn."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    pieces = [decoder.decode(data[at : at + PIECE_BYTES]) for at in range(0, len(data), PIECE_BYTES)]
    return "".join([*pieces, decoder.decode(b"", final=True)])


def _too_costly() -> BadFrame:
    return BadFrame(PARSE_ERROR, "too_costly", "the message could not be parsed within bounds")
