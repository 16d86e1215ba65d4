"""While a large answer comes in, others get their turn: its bytes are taken in pieces, and given back elsewhere."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from omni_mcp.engines.upstream.wire.large import LargeParser
from omni_mcp.engines.upstream.wire.lines import LinesWire
from omni_mcp.engines.upstream.wire.seam import WireFault
from omni_mcp.engines.upstream.wire.spool import Room, Spool
from omni_mcp.engines.upstream.wire.web import PIECE_BYTES, Web, place_of
from omni_mcp.protocol.frames import Frame
from tests.upstream.servers.web import Asked, web_server
from tests.waiting import until

CHUNKS = 100
CHUNK = b"x" * 10_000
MIB = 1024 * 1024


class Turns:
    """How often another task has run."""

    def __init__(self) -> None:
        self.count = 0

    async def take(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)


class BusyTurns(Turns):
    """Each of them takes a while."""

    async def take(self) -> None:
        while True:
            self.count += 1
            ends_s = time.perf_counter() + 0.001
            while time.perf_counter() < ends_s:
                pass
            await asyncio.sleep(0)


class FastChild:
    """A server whose next bytes are always there already: to read them never waits."""

    unread_bytes = 0

    def __init__(self, chunks: Iterator[bytes], turns: Turns) -> None:
        self._chunks = chunks
        self._turns = turns
        self.had: list[int] = []

    async def read(self) -> bytes:
        self.had.append(self._turns.count)
        return next(self._chunks, b"")

    def write(self, data: bytes) -> None:
        """Nothing is sent to it."""

    async def stop(self) -> str:
        return "stopped"


class Heard:
    """A receiver that notes when the wire is gone, and what was junk."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.refused: list[str] = []

    def take(self, frame: Frame, within: int | None) -> bool:
        return True

    def junk(self, reason: str, id: int | str | None) -> None:
        self.refused.append(reason)

    def failed(self, id: int, fault: WireFault) -> None:
        """Nothing was asked."""

    def lost(self, fault: WireFault) -> None:
        self.gone.set()


@asynccontextmanager
async def another_task(turns: Turns | None = None) -> AsyncIterator[Turns]:
    turns = turns or Turns()
    task = asyncio.create_task(turns.take())
    try:
        yield turns
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_long_line_that_is_there_all_at_once_holds_nobody_up_for_longer_than_one_of_its_chunks() -> None:
    large, heard = LargeParser(), Heard()
    async with another_task() as turns:
        child = FastChild(iter([CHUNK] * CHUNKS), turns)
        wire = LinesWire(child, large=large)
        await wire.open(heard)
        await heard.gone.wait()
    await wire.close()
    await large.close()

    assert len(child.had) == CHUNKS + 1
    assert all(before < after for before, after in pairwise(child.had))


async def test_whoever_has_much_to_do_gets_more_than_one_turn_between_two_chunks_of_a_long_line() -> None:
    large, heard = LargeParser(), Heard()
    async with another_task(BusyTurns()) as turns:
        child = FastChild(iter([CHUNK] * 20), turns)
        wire = LinesWire(child, large=large)
        await wire.open(heard)
        await heard.gone.wait()
    await wire.close()
    await large.close()

    assert len(child.had) == 21
    assert all(before + 1 < after for before, after in pairwise(child.had))


async def test_a_long_answer_over_http_is_taken_in_pieces_between_which_others_run() -> None:
    body = os.urandom(20 * PIECE_BYTES + 17)

    async def answer(asked: Asked) -> None:
        await asked.reply(200, body)

    async with web_server(answer) as server:
        web = Web(place_of(server.url))
        reply = await web.send("POST", "/", [], b"{}")
        pieces: list[bytes] = []
        had: list[int] = []
        async with another_task() as turns:
            async for piece in reply.chunks():
                pieces.append(piece)
                had.append(turns.count)
        await web.close()

    assert b"".join(pieces) == body
    assert max(map(len, pieces)) <= PIECE_BYTES
    assert all(had[at] < had[at + 2] for at in range(len(had) - 2))  # what came meanwhile may follow at once


@pytest.mark.parametrize("size_bytes", [MIB, 16 * MIB])
async def test_a_spool_that_nobody_has_any_more_gives_its_room_back_at_once_and_then_its_file(size_bytes: int) -> None:
    room = Room(limit_bytes=size_bytes)
    spool: Spool | None = Spool(room)
    assert spool is not None and spool.add(b"x" * size_bytes)
    file = spool.file
    place = os.readlink(f"/proc/self/fd/{file}")
    del spool
    gc.collect()

    assert room.left_bytes == size_bytes
    await until(lambda: not os.path.exists(f"/proc/self/fd/{file}") or os.readlink(f"/proc/self/fd/{file}") != place)


async def test_a_spool_that_was_dropped_and_closed_gives_its_room_back_once() -> None:
    room = Room(limit_bytes=16 * MIB)
    spool = Spool(room)
    assert spool.add(b"x" * 8 * MIB)
    spool.drop()
    spool.drop()
    spool.close()

    assert room.left_bytes == 16 * MIB
