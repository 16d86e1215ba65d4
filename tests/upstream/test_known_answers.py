"""A server that heads its answers alike has each of them taken as it is, in one piece, in parts or with too much."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from omni_mcp.engines.upstream.wire.web import Web, place_of
from omni_mcp.testing import WAIT_S

HEAD = b"HTTP/1.1 200 OK\r\nserver: x\r\nContent-Type: application/json\r\n"


def answer(body: bytes, *, head: bytes = HEAD) -> bytes:
    return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)


@asynccontextmanager
async def server(answers: Sequence[Sequence[bytes]]) -> AsyncIterator[Web]:
    """Yield a way to a server that gives these answers in turn, each in its parts, on whatever connection."""
    left = iter(answers)
    open_now: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_now.add(task)
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                for part in next(left):
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0.01)  # else the parts may come as one, which is taken as well
        except (EOFError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    web = Web(place_of(f"http://127.0.0.1:{port}/mcp"))
    try:
        async with asyncio.timeout(WAIT_S):
            yield web
    finally:
        await web.close()
        listening.close()
        await asyncio.gather(*open_now)


async def taken(web: Web) -> tuple[int, dict[str, str], bytes]:
    reply = await web.send("POST", "/mcp", [])
    body = await reply.read(1_000_000)
    assert body is not None
    return reply.status, reply.headers, body


async def test_answers_with_the_same_head_are_each_their_own() -> None:
    bodies = [b"{}", b"[1]", b"", b"x" * 20_000, b"\r\n\r\n", b"content-length: 3\r\n"]
    async with server([[answer(body)] for body in bodies]) as web:
        for body in bodies:
            headers = {"server": "x", "content-type": "application/json", "content-length": str(len(body))}
            assert await taken(web) == (200, headers, body)
        assert web.open_connections == 1


async def test_another_head_or_one_that_comes_in_parts_is_read_as_ever() -> None:
    whole, other = answer(b"12345"), answer(b"12345", head=HEAD.replace(b"server: x", b"server: y"))
    chunked = HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n"
    failed = answer(b"12345", head=HEAD.replace(b"200 OK", b"500 No"))
    in_parts = [whole[:30], whole[30:-2], whole[-2:]]
    async with server(
        [[whole], [whole], [whole], in_parts, [other], [chunked], [failed], [failed], [failed], [whole]]
    ) as web:
        found = [await taken(web) for _ in range(10)]
    assert [status for status, _, _ in found] == [200] * 6 + [500] * 3 + [200]
    assert [headers["server"] for _, headers, _ in found] == ["x"] * 4 + ["y"] + ["x"] * 5
    assert {body for _, _, body in found} == {b"12345"}


@pytest.mark.parametrize("parts", [[answer(b"12345") + b"6"], [answer(b"12345"), b"6"]])
async def test_bytes_behind_an_answer_whose_head_is_known_end_its_connection(parts: list[bytes]) -> None:
    whole = answer(b"12345")
    async with server([[whole], [whole], [whole], parts, [whole]]) as web:
        for _ in range(4):
            assert (await taken(web))[2] == b"12345"
        while web.open_connections:
            await asyncio.sleep(0)
        assert (await taken(web))[2] == b"12345", "over a new one"


@pytest.mark.parametrize("start", [b"204 No Content", b"304 Not Modified"])
async def test_an_answer_that_has_no_body_is_none_of_those_that_are_known(start: bytes) -> None:
    head = HEAD.replace(b"200 OK", start)
    async with server([[answer(b"", head=head)]] * 3 + [[answer(b"12345", head=head)]]) as web:
        for _ in range(4):
            status, _, body = await taken(web)
            assert (status, body) == (int(start[:3]), b"")


async def test_a_server_that_closes_behind_each_answer_is_asked_over_a_new_connection() -> None:
    whole = answer(b"12345", head=HEAD + b"connection: close\r\n")
    async with server([[whole]] * 4) as web:
        for _ in range(4):
            assert (await taken(web))[2] == b"12345"
            while web.open_connections:
                await asyncio.sleep(0)
