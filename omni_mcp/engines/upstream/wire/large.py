"""Large messages are handled in a process of their own, because a parser holds up every other thread of this one.

A message comes as a spool and stays one: the gateway learns what kind of message it is, and a large result is checked,
masked and measured over there as well, so that no large object is ever made or freed here. What the gateway needs whole
(a list of tools, a result within its tool's limit) comes back without its long texts, and these beside it.
The process starts with the first large message and ends when there was none for a while.
"""

from __future__ import annotations

import asyncio
import codecs
import mmap
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from omni_mcp.contracts.errors import InvalidResult
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.contracts.large import KeptFile, LookedAt
from omni_mcp.engines.upstream.wire.large_worker import ASK, DONE, GIVE_BACK
from omni_mcp.engines.upstream.wire.seam import FRAME_LIMIT_BYTES
from omni_mcp.engines.upstream.wire.spool import Room, Spool
from omni_mcp.protocol.frames import BadFrame, Response
from omni_mcp.protocol.rpc import PARSE_ERROR

IDLE_S = 60.0
ANSWER_S = 30.0  # 128 MiB of the worst kind take 3 s
UNWANTED_S = 5.0  # for an answer that nobody waits for any more
PIECE_BYTES = 1024 * 1024
CUT_BYTES = 1024 * 1024  # a result in a message up to this comes whole
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # a third of the helper's time went into page faults
PARSER = "omni_mcp.engines.upstream.wire.large_worker"


class LargeParser:
    """Handles one large message at a time. A server that sends many waits in its own reader, and nobody else does.

    Args:
        unwanted_s: how long the process may go on with what nobody waits for; then it is ended.
        program: the module that runs over there.
        marks: what is masked, form by form (`SecretMasker.marks`); without it, every message comes back whole.
    """

    def __init__(
        self, *, idle_s: float = IDLE_S, unwanted_s: float = UNWANTED_S, program: str = PARSER,
        marks: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:  # fmt: skip
        self.room = Room()
        self._idle_s = idle_s
        self._unwanted_s = unwanted_s
        self._program = program
        self._marks = marks
        self._turn = asyncio.Lock()
        self._working: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._channel: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process is not None else None

    async def parse(self, data: bytes | Spool, *, limit_bytes: int, whole: bool = False) -> JsonValue | LargeResponse:
        """Parse as `omni_mcp.protocol.frames.parse` does; a large result may stay where it is, unless *whole*.

        A spool of which nothing is needed any more is closed; one that is refused stays open.

        Raises:
            BadFrame: it is not one unambiguous JSON value, or the process gave up on it.
        """
        spool = data if isinstance(data, Spool) else await asyncio.to_thread(self._spooled, data)
        cut_bytes = CUT_BYTES if self._marks is not None and not whole else sys.maxsize
        asked = {"what": "parse", "start": spool.start, "limit_bytes": limit_bytes, "cut_bytes": cut_bytes}
        answer = os.memfd_create("answer")
        try:
            await self._answered(asked, spool, answer)
            head, texts_at = await asyncio.to_thread(_head_of, answer)
            if "fault" in head:
                fault = head["fault"]
                raise BadFrame(fault["code"], fault["reason"], fault["message"], id=fault["id"])
            if "cut" in head:
                cut = head["cut"]
                return LargeResponse(cut["id"], result=cut["shape"], large=LargeResult(self, spool))
            value = await asyncio.to_thread(_joined, answer, head, texts_at)
            await self._closed(spool.let_go())
            return value
        except (TimeoutError, OSError) as error:
            raise BadFrame(PARSE_ERROR, "too_costly", "the message could not be parsed within bounds") from error
        finally:
            await self._closed(answer)

    @asynccontextmanager
    async def look(
        self, spool: Spool, *, schema: JsonObject | None, limit_bytes: int, keep: bool
    ) -> AsyncIterator[LookedAt]:
        """As `LargeBody.looked_at`, of the result in *spool*."""
        marks = self._marks() if self._marks is not None else {}
        asked = {
            "what": "look", "start": spool.start, "schema": schema, "limit_bytes": limit_bytes, "keep": keep,
            "marks": marks,
        }  # fmt: skip
        answer = os.memfd_create("answer")
        try:
            try:
                await self._answered(asked, spool, answer)
                head, start = await asyncio.to_thread(_head_of, answer)
                if "fault" in head:
                    raise OSError(head["fault"])
                body = await asyncio.to_thread(_joined, answer, head, start) if "value" in head else None
            except (TimeoutError, OSError) as error:
                detail = f"{len(spool)} bytes: {error or type(error).__name__}"
                raise InvalidResult("the result is too large to be checked", detail=detail) from error
            finally:
                await self._closed(spool.let_go())
            kept = KeptFile(file=answer, start=start, **head["kept"]) if "kept" in head else None
            yield LookedAt(
                size_bytes=head["size_bytes"], is_structured=head["is_structured"], problems=tuple(head["problems"]),
                body=body, kept=kept,
            )  # fmt: skip
        finally:
            await self._closed(answer)

    async def close(self) -> None:
        """End the process, whatever it is at."""
        if self._working is not None:
            self._working.cancel()
        async with self._turn:
            if self._timer is not None:
                self._timer.cancel()
            await self._stop()

    async def _closed(self, file: int) -> None:
        """Close *file*. To give 100 MB back takes 15 ms of a processor: the process does that, where there is one."""
        if file < 0:
            return
        if self._channel is not None:
            with suppress(OSError):
                socket.send_fds(self._channel, [GIVE_BACK], [file])
                os.close(file)
                return
        await asyncio.shield(asyncio.to_thread(os.close, file))

    def _spooled(self, data: bytes) -> Spool:
        spool = Spool(self.room)
        if not spool.add(data):
            raise BadFrame(PARSE_ERROR, "too_costly", "there is no room for the message")
        return spool

    async def _answered(self, asked: JsonObject, spool: Spool, answer: int) -> None:
        """Have *asked* answered.

        Whoever stops waiting leaves the process at its work for a while, and the turn ends with that: the fork of
        another one would hold up everybody for 10 ms. So one message may be held beyond the room of all spools.

        Raises:
            TimeoutError, OSError: it was not; the process is gone.
        """
        request = orjson.dumps(asked)
        await self._turn.acquire()
        files: list[int] = []
        try:
            files += [os.memfd_create("asking")]
            os.write(files[0], request)
            files += [os.dup(spool.file)]
            files += [os.dup(answer)]
            self._working = asyncio.create_task(self._work(files), name="large message")
        except BaseException:
            self._end_turn(files)
            raise
        self._working.add_done_callback(partial(self._done, files))
        working = self._working
        try:
            await asyncio.shield(working)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if working.cancelled() and task is not None and not task.cancelling():
                raise OSError("the process was ended") from None
            asyncio.get_running_loop().call_later(self._unwanted_s, working.cancel)
            raise

    async def _work(self, files: list[int]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            async with asyncio.timeout(ANSWER_S):
                if await self._ask(files) != DONE:
                    raise OSError("the process gave up on it or ended")
        except BaseException:  # after this, its answer would be taken for the next one's
            await self._stop()
            raise
        finally:
            self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._say_idle)

    def _done(self, files: list[int], work: asyncio.Task[None]) -> None:
        if not work.cancelled():
            work.exception()  # somebody may have stopped waiting for it
        self._working = None
        self._end_turn(files)

    def _end_turn(self, files: list[int]) -> None:
        for file in files:
            os.close(file)
        self._turn.release()

    async def _ask(self, files: list[int]) -> bytes:
        if self._channel is None:
            await self._start()
        assert self._channel is not None
        socket.send_fds(self._channel, [ASK], files)
        return await asyncio.get_running_loop().sock_recv(self._channel, 1)

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._channel = ours
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", self._program, str(theirs.fileno()), pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL, env={**HUGE_PAGES, **os.environ},
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


class LargeResult:
    """A `LargeBody`: the result of a message that was parsed and stays in its spool."""

    def __init__(self, parser: LargeParser, spool: Spool) -> None:
        self._parser = parser
        self._spool = spool
        self.looked_at = partial(parser.look, spool)

    def close(self) -> None:
        """Give its memory back, where nobody looks at it. Safe to call twice."""
        self._spool.drop()

    async def whole(self) -> JsonObject:
        """Return all of it, for what has to be held here.

        Raises:
            BadFrame: it could not be had within bounds.
        """
        found = await self._parser.parse(self._spool, limit_bytes=FRAME_LIMIT_BYTES, whole=True)
        assert isinstance(found, dict)
        result: JsonObject = found["result"]
        return result


@dataclass(slots=True)
class LargeResponse(Response):
    """A response whose `result` shows only what kind of result it is; `large` is all of it."""

    large: LargeResult | None = None


def _head_of(answer: int) -> tuple[JsonObject, int]:
    """Return the head of an answer, and where what follows begins."""
    size = int.from_bytes(os.pread(answer, 8, 0), "big")
    head: JsonObject = orjson.loads(os.pread(answer, size, 8))
    return head, 8 + size


def _joined(answer: int, head: JsonObject, start: int) -> JsonValue:
    """Put the long texts of an answer back into their places."""
    with mmap.mmap(answer, 0, prot=mmap.PROT_READ) as view, memoryview(view) as texts:
        for path, size in head["texts"]:
            node: Any = head
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = _text(texts[start : start + size])
            start += size
    return head["value"]


def _text(data: memoryview) -> str:
    """Decode in pieces: between two of them other threads get their turn."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    pieces = [decoder.decode(data[at : at + PIECE_BYTES]) for at in range(0, len(data), PIECE_BYTES)]
    return "".join([*pieces, decoder.decode(b"", final=True)])
