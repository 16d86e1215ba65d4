"""The web server waits for no client without end, and takes only so many."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest

from omni_mcp.serving.web_server import BoundedHttp, serve_http
from omni_mcp.testing import WAIT_S
from tests.serving.edge_world import World


class Hasty(BoundedHttp):
    """The same with short deadlines."""

    header_deadline_s = 0.2
    body_deadline_s = 0.2
    stall_deadline_s = 0.2
    connections_limit = 3


async def hello(scope: Any, receive: Any, send: Any) -> None:
    size = int(scope["query_string"] or b"2")
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
    if message["type"] == "http.request":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(max(1, size // 65536)):
            await send({"type": "http.response.body", "body": b"x" * min(size, 65536), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize(
    ("sent", "answer"),
    [(b"", b"408"), (b"GET / HT", b"408"), (b"GET / HTTP/1.1\r\nHost: x\r\nA: ", b"408"),
     (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12", b"408"),
     (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", b"431"),
     (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n", b"431"),
     (b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"431")],
)  # fmt: skip
async def test_a_client_that_does_not_finish_its_request_is_let_go(sent: bytes, answer: bytes) -> None:
    async with serve_http(hello, "127.0.0.1", 0, protocol=Hasty) as port:
        async with connected(port) as (reader, writer):
            writer.write(sent)
            assert (await asyncio.wait_for(reader.read(), WAIT_S)).startswith(b"HTTP/1.1 " + answer)
        async with connected(port) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), WAIT_S)).startswith(b"HTTP/1.1 200"), "the next one is served"


@pytest.mark.parametrize("target", [b"http://evil.example/", b"http://x/", b"https://evil.example:1/mcp", b"*"])
async def test_a_request_line_with_a_host_of_its_own_is_refused_with_a_clear_answer(target: bytes) -> None:
    async with serve_http(hello, "127.0.0.1", 0) as port:
        async with connected(port) as (reader, writer):
            writer.write(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nxx")
            answer = await asyncio.wait_for(reader.read(), WAIT_S)
        async with connected(port) as (reader, writer):
            writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            both = await asyncio.wait_for(reader.read(), WAIT_S)
    assert answer.startswith(b"HTTP/1.1 400") and b"begin the request with a path" in answer
    assert b"HTTP/1.1 200" not in both.partition(b"HTTP/1.1 400")[2]


async def test_a_head_that_goes_on_and_on_is_refused_before_it_ends() -> None:
    async with serve_http(hello, "127.0.0.1", 0) as port, connected(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
        reading = asyncio.create_task(reader.read())
        sent = 0
        while not reading.done() and sent < 8 * 1024 * 1024:
            writer.write(b"a: " + b"b" * 1000 + b"\r\n")
            sent += 1005
            with suppress(ConnectionError):
                await writer.drain()
            await asyncio.wait({reading}, timeout=0.001)
        with suppress(ConnectionError):  # what it writes after the end can cost it the answer
            assert (await asyncio.wait_for(reading, WAIT_S)).startswith(b"HTTP/1.1 431")


POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"


async def test_a_body_may_come_in_parts() -> None:
    async with serve_http(hello, "127.0.0.1", 0) as port, connected(port) as (reader, writer):
        for parts in ((POST, b"12", b"34"), (POST + b"1234",), (POST[:9], POST[9:] + b"1", b"234")):
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0)
            assert (await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), WAIT_S)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("late", [POST[:9], POST, POST + b"12"])
async def test_a_request_that_does_not_come_whole_is_let_go_also_after_one_that_came_in_parts(late: bytes) -> None:
    came = asyncio.Event()

    class Watched(BoundedHttp):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            came.set()

    async with serve_http(hello, "127.0.0.1", 0, protocol=Watched) as port, connected(port) as (reader, writer):
        for part in (POST[:9], POST[9:], b"12", b"34"):
            came.clear()
            writer.write(part)
            await asyncio.wait_for(came.wait(), WAIT_S)
        assert (await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), WAIT_S)).startswith(b"HTTP/1.1 200")
        Watched.header_deadline_s = Watched.body_deadline_s = 0.1
        writer.write(late)
        assert (await asyncio.wait_for(reader.read(), WAIT_S)).startswith(b"HTTP/1.1 408")


async def test_a_head_may_begin_in_the_piece_in_which_a_large_body_ends() -> None:
    first = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 150000\r\n\r\n" + b"y" * 150_000 + POST[:9]

    class InOnePiece(BoundedHttp):
        held = b""

        def data_received(self, data: bytes) -> None:
            self.held += data
            if len(self.held) >= len(first):
                super().data_received(self.held[: len(first)])
                super().data_received(self.held[len(first) :])

    async with serve_http(hello, "127.0.0.1", 0, protocol=InOnePiece) as port, connected(port) as (reader, writer):
        writer.write(first + POST[9:] + b"1234")
        assert (await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), WAIT_S)).startswith(b"HTTP/1.1 200")
        assert (await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), WAIT_S)).startswith(b"HTTP/1.1 200")


async def test_what_comes_behind_a_body_is_no_header() -> None:
    seen: list[Any] = []

    async def listening(scope: Any, receive: Any, send: Any) -> None:
        await hello(scope, receive, send)
        seen.extend(name for name, _ in scope["headers"])

    async with serve_http(listening, "127.0.0.1", 0) as port, connected(port) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nLate: 1\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), WAIT_S)).startswith(b"HTTP/1.1 200")
    assert seen == [b"host", b"transfer-encoding"]


async def test_a_client_that_drips_its_headers_is_let_go() -> None:
    """One byte now and then does not start the deadline again."""
    async with serve_http(hello, "127.0.0.1", 0, protocol=Hasty) as port, connected(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n")
        reading = asyncio.create_task(reader.read())
        while not reading.done():
            writer.write(b"a: b\r\n")
            await asyncio.wait({reading}, timeout=0.02)
        with suppress(ConnectionError):  # what it writes after the end can cost it the word that it was late
            assert (await reading).startswith(b"HTTP/1.1 408")


async def test_parts_of_an_answer_are_not_held_back_until_the_client_has_told_that_it_has_the_last_one() -> None:
    """Without `TCP_NODELAY` each part but the first waits for the client's delayed acknowledgement, 40 ms on Linux."""
    accepted: list[socket.socket] = []

    class Watched(Hasty):
        def connection_made(self, transport: Any) -> None:
            accepted.append(transport.get_extra_info("socket"))
            super().connection_made(transport)
            asked.set()

    asked = asyncio.Event()
    async with serve_http(hello, "127.0.0.1", 0, protocol=Watched) as port, connected(port):
        await asyncio.wait_for(asked.wait(), WAIT_S)
        assert accepted[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_connections_over_the_cap_are_turned_away_and_others_go_on() -> None:
    async with (
        serve_http(hello, "127.0.0.1", 0, protocol=Hasty) as port,
        connected(port) as (a_reader, a),
        connected(port) as (_, b),
        connected(port) as (_, c),
    ):
        for writer in (a, b, c):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(a_reader.readuntil(b"0\r\n\r\n"), WAIT_S)
        async with connected(port) as (reader, _):
            assert (await asyncio.wait_for(reader.read(), WAIT_S)).startswith(b"HTTP/1.1 503")
        a.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await asyncio.wait_for(a_reader.readuntil(b"\r\n\r\n"), WAIT_S)


async def test_a_client_that_does_not_take_its_answer_is_let_go() -> None:
    gone = asyncio.Event()

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        try:
            await hello(scope, receive, send)
        finally:
            gone.set()

    async with serve_http(watched, "127.0.0.1", 0, protocol=Hasty) as port, connected(port) as (reader, writer):
        cast(Any, reader)._transport.pause_reading()
        writer.write(b"GET /?50000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(gone.wait(), WAIT_S)


async def test_the_port_is_known_at_once_and_taken_ones_are_refused() -> None:
    async with serve_http(hello, "127.0.0.1", 0) as port:
        assert port > 0
        with pytest.raises(OSError, match="in use"):
            async with serve_http(hello, "127.0.0.1", port):
                pass


async def test_the_whole_gateway_stops_while_streams_are_open() -> None:
    world = World()
    async with world.client() as http, http.stream("GET", "/sse") as stream:
        lines = stream.aiter_lines()
        assert (await anext(lines)).startswith("event: endpoint")
        await asyncio.wait_for(world.edge.drain(timeout_s=0.1), WAIT_S)
        async with asyncio.timeout(WAIT_S):
            assert not [line async for line in lines if line.startswith("event: message")]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"<" + scope["raw_path"] + b":" + body + b">"})


UPGRADE = b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n"


@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_request_that_offers_an_upgrade_keeps_its_body(pieces: int) -> None:
    inner = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    head = UPGRADE + b"Content-Length: %d\r\n\r\n" % len(inner)
    async with serve_http(echo, "127.0.0.1", 0) as port, connected(port) as (reader, writer):
        for piece in [head + inner] if pieces == 1 else [head, inner]:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)  # two segments, if that can be had
        writer.write(b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = await asyncio.wait_for(reader.read(), WAIT_S)
    assert b"</a:" + inner + b">" in answers and b"</last:>" in answers
    assert answers.count(b"HTTP/1.1 200") == 2


async def test_the_body_of_a_refused_request_is_not_that_of_the_one_before() -> None:
    first = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nAAA"
    second = b"POST http://x/b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nBBBBB"
    async with serve_http(echo, "127.0.0.1", 0) as port, connected(port) as (reader, writer):
        writer.write(first + second)
        answers = await asyncio.wait_for(reader.read(), WAIT_S)
    assert b"BBBBB" not in answers and answers.count(b"HTTP/1.1 200") <= 1


async def test_trailers_have_an_end() -> None:
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "
    async with serve_http(echo, "127.0.0.1", 0) as port, connected(port) as (reader, writer):
        writer.write(head)
        reading = asyncio.create_task(reader.read())
        sent = 0
        while not reading.done() and sent < 8 * 1024 * 1024:
            writer.write(b"a" * 1000)
            sent += 1000
            with suppress(ConnectionError):
                await writer.drain()
            await asyncio.wait({reading}, timeout=0.001)
        with suppress(ConnectionError):
            await asyncio.wait_for(reading, WAIT_S)
    assert sent < 8 * 1024 * 1024
