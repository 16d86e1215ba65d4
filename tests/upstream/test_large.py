"""Large messages are parsed elsewhere and mean the same as if they had been parsed here."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import orjson
import pytest

from omni_mcp.contracts.json import JsonValue
from omni_mcp.engines.upstream.wire.large import LargeParser, LargeResponse
from omni_mcp.protocol.frames import BadFrame
from tests.waiting import until

LONG = 'ä€\n"\\' + "x" * 100_000 + "😀"


async def stopped_at(parser: LargeParser, data: bytes) -> tuple[int, asyncio.Task[JsonValue | LargeResponse]]:
    """Have the process stopped while somebody waits for *data*; return its pid, and who waits."""
    await parser.parse(b"1", limit_bytes=100)
    pid = parser.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    waiting = asyncio.create_task(parser.parse(data, limit_bytes=100))
    await until(parser._turn.locked)
    return pid, waiting


def memory_files(pid: int) -> int:
    """Return how many files of large messages a process has open."""
    links = [os.readlink(place) for place in Path(f"/proc/{pid}/fd").iterdir() if place.is_symlink()]
    return sum(link.startswith(("/memfd:message", "/memfd:answer")) for link in links)


async def test_long_texts_come_back_where_they_were() -> None:
    value = {"a": [LONG, {"b": LONG * 20, LONG: 1}], "c": "short", "d": [1, None, 2.5, True]}
    parser = LargeParser()
    assert await parser.parse(orjson.dumps(value), limit_bytes=1 << 24) == value
    assert await parser.parse(orjson.dumps(LONG * 3), limit_bytes=1 << 24) == LONG * 3
    assert await parser.parse(b"[]", limit_bytes=1 << 24) == []
    pid = parser.pid
    await parser.close()

    assert pid is not None and parser.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a":1,"a":2}', "duplicate_key"),
        (b"x", "not_json"),
        (b"[" * 100 + b"]" * 100, "too_deep"),
        (b"[1,2]", "too_large"),
    ],
)
async def test_what_is_refused_here_is_refused_there(data: bytes, reason: str) -> None:
    parser = LargeParser()
    with pytest.raises(BadFrame) as refused:
        await parser.parse(data, limit_bytes=4 if reason == "too_large" else 1 << 20)
    await parser.close()

    assert refused.value.reason == reason


async def test_a_process_that_dies_costs_one_message() -> None:
    parser = LargeParser()
    pid, waiting = await stopped_at(parser, b'"never seen"')
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(BadFrame):
        await waiting
    assert await parser.parse(b"2", limit_bytes=100) == 2
    await parser.close()


async def test_who_stops_waiting_costs_no_process_and_nobody_gets_their_answer() -> None:
    parser = LargeParser()
    pid, waiting = await stopped_at(parser, b'"cancelled"')
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    next_one = asyncio.create_task(parser.parse(b"2", limit_bytes=100))
    os.kill(pid, signal.SIGCONT)

    assert waiting.cancelled()
    assert await next_one == 2
    assert parser.pid == pid
    await parser.close()


async def test_a_process_that_hangs_at_what_nobody_waits_for_is_ended() -> None:
    parser = LargeParser(unwanted_s=0.01)
    pid, waiting = await stopped_at(parser, b'"cancelled"')
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    assert await parser.parse(b"2", limit_bytes=100) == 2
    assert parser.pid != pid
    await parser.close()


async def test_who_still_waits_when_all_ends_is_told() -> None:
    parser = LargeParser()
    _, waiting = await stopped_at(parser, b'"late"')
    await parser.close()

    with pytest.raises(BadFrame):
        await waiting
    assert parser.pid is None


async def test_a_process_that_nobody_needs_goes_away() -> None:
    parser = LargeParser(idle_s=0.01)
    await parser.parse(b"1", limit_bytes=100)
    process = parser._process
    assert process is not None
    await asyncio.wait_for(process.wait(), 30)

    assert await parser.parse(b"2", limit_bytes=100) == 2
    await parser.close()


async def test_the_process_gives_the_memory_of_a_message_back_and_keeps_none_of_it() -> None:
    parser = LargeParser()
    before = memory_files(os.getpid())
    await parser.parse(orjson.dumps(LONG * 20), limit_bytes=1 << 24)
    pid = parser.pid
    assert pid is not None
    here = memory_files(os.getpid())
    await until(lambda: memory_files(pid) == 0)
    await parser.close()

    assert here == before


async def test_a_process_that_takes_nothing_back_holds_nobody_up() -> None:
    parser = LargeParser()
    await parser.parse(b"1", limit_bytes=100)
    pid = parser.pid
    assert pid is not None
    before = memory_files(os.getpid())
    os.kill(pid, signal.SIGSTOP)
    for _ in range(1000):  # more than its socket takes
        await asyncio.wait_for(parser._closed(os.memfd_create("message")), 30)
    after = memory_files(os.getpid())
    os.kill(pid, signal.SIGCONT)

    assert await parser.parse(b"2", limit_bytes=100) == 2
    assert after == before
    assert parser.pid == pid
    await parser.close()
