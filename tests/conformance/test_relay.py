"""The relay adds one header and is otherwise not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tests.conformance.relay import Relay, with_line

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def behind(handler: Handler) -> AsyncIterator[Relay]:
    """A relay in front of a server that runs *handler* for each connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, Relay(server.sockets[0].getsockname()[1], "sesame") as relay:
        yield relay


async def test_the_token_is_added_and_a_forged_host_and_origin_arrive_unchanged() -> None:
    heads: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 421 Misdirected Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with behind(handler) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(b"GET /mcp HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n\r\n")
        status = await reader.readline()
        writer.close()

    assert status == b"HTTP/1.1 421 Misdirected Request\r\n"
    assert heads == [
        b"GET /mcp HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n"
        b"Authorization: Bearer sesame\r\n\r\n"
    ]


async def test_each_request_of_a_kept_connection_gets_the_token_whatever_frames_its_body() -> None:
    received = bytearray()
    enough = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            received.extend(data)
            if received.endswith(b"LAST"):
                enough.set()

    async with behind(handler) as relay:
        _, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(b"POST /a HTTP/1.1\r\nContent-Length: 4\r\n\r\n\r\n\r\n")
        writer.write(b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        writer.write(b"POST /c HTTP/1.1\r\nContent-Length: 4\r\n\r\nLAST")
        await asyncio.wait_for(enough.wait(), 30)
        writer.close()

    token = b"Authorization: Bearer sesame\r\n\r\n"
    assert bytes(received) == (
        b"POST /a HTTP/1.1\r\nContent-Length: 4\r\n" + token + b"\r\n\r\n"
        b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + token + b"3\r\nabc\r\n0\r\n\r\n"
        b"POST /c HTTP/1.1\r\nContent-Length: 4\r\n" + token + b"LAST"
    )


async def test_a_stream_arrives_event_by_event_and_hanging_up_reaches_the_server() -> None:
    go_on, gone = asyncio.Event(), asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"data: 1\n\n")
        await writer.drain()
        await go_on.wait()
        writer.write(b"data: 2\n\n")
        await writer.drain()
        assert await reader.read() == b""
        gone.set()

    async with behind(handler) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(b"GET /mcp HTTP/1.1\r\n\r\n")
        first = await asyncio.wait_for(reader.readexactly(9), 30)  # would hang if the relay waited for more
        go_on.set()
        second = await asyncio.wait_for(reader.readexactly(9), 30)
        writer.close()
        await asyncio.wait_for(gone.wait(), 30)

    assert (first, second) == (b"data: 1\n\n", b"data: 2\n\n")


async def test_what_is_no_http_ends_its_own_connection_only() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"served")
        await writer.drain()

    async with behind(handler) as relay:
        for nonsense in (b"POST / HTTP/1.1\r\nContent-Length: lots\r\n\r\n", b"x" * 200_000):
            reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
            writer.write(nonsense)
            await asyncio.wait_for(_end_of(reader), 30)
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), 30) == b"served"
        writer.close()


async def _end_of(reader: asyncio.StreamReader) -> None:
    try:
        await reader.read()
    except ConnectionResetError:
        return


def test_a_credential_that_is_there_already_is_left_alone() -> None:
    head = b"GET / HTTP/1.1\r\nauthorization: Bearer own\r\n\r\n"
    assert with_line(head, b"Authorization: Bearer sesame\r\n") == head
