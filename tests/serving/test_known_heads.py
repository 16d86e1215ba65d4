"""A head that was read once is not read again, and a client or a server cannot tell: what comes out is the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import product
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from omni_mcp.known_heads import FIELDS_LIMIT, HEAD_LIMIT_BYTES, KnownHeads
from omni_mcp.serving.asgi import HEADERS, headers_of
from omni_mcp.serving.web_server import HEADS_KEPT, BoundedHttp, serve_http
from omni_mcp.testing import WAIT_S

START = b"POST /mcp?x=1 HTTP/1.1\r\n"
FIELDS = (b"Host: h", b"X-Key: one", b"Content-Type:application/json")


def message(body: bytes, *lines: bytes, start: bytes = START, name: bytes = b"Content-Length") -> bytes:
    return start + b"\r\n".join((*lines, b"%b: %d" % (name, len(body)))) + b"\r\n\r\n" + body


def fields_of(data: bytes) -> list[tuple[bytes, bytes]]:
    lines = data.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]


def taught(*data: bytes, kept: int = 8) -> KnownHeads[str]:
    """Return what knows the heads of *data*, as `read 0`, `read 1` and so on."""
    heads: KnownHeads[str] = KnownHeads(kept)
    for number, one in enumerate(data):
        for _ in range(2):
            heads.find(one)
        assert heads.learns(fields_of(one))
        heads.learn(f"read {number}")
    return heads


def test_a_head_is_known_from_the_third_time_on_whatever_the_length_of_the_body() -> None:
    heads: KnownHeads[str] = KnownHeads()
    first = message(b"12345", *FIELDS)
    assert heads.find(first) is None and not heads.learns(fields_of(first)), "many come once"
    assert heads.find(first) is None and heads.learns(fields_of(first))
    heads.learn("read")
    assert heads.find(message(b"x" * 1234, *FIELDS)) == ("read", b"1234", b"x" * 1234)
    assert heads.find(message(b"", *FIELDS)) == ("read", b"0", b"")


@pytest.mark.parametrize(
    "other",
    [
        message(b"12345", *FIELDS)[:-1],
        message(b"12345", *FIELDS) + b"6",
        message(b"12345", *FIELDS) + message(b"12345", *FIELDS),
        message(b"12345", *FIELDS, b"X-More: 1"),
        message(b"12345", *FIELDS[:1], b"X-Key: two", *FIELDS[2:]),
        message(b"12345", *FIELDS, start=START.replace(b"x=1", b"x=2")),
        message(b"12345", *FIELDS, name=b"content-length"),
        message(b"12345", *FIELDS).replace(b": 5\r\n", b": +5\r\n"),
        message(b"12345", *FIELDS).replace(b": 5\r\n", b": 5 \r\n"),
        message(b"12345", *FIELDS).replace(b": 5\r\n", b": \0\r\n"),
        message(b"12345", *FIELDS).replace(b": 5\r\n", b": \0\r\nContent-Length: 5\r\n"),
        message(b"12345", *FIELDS).replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n"),
        message(b"12345", *FIELDS, b"X-Long: " + b"y" * HEAD_LIMIT_BYTES),
    ],
)
def test_what_is_not_the_same_to_the_byte_is_for_the_parser(other: bytes) -> None:
    heads = taught(message(b"1", *FIELDS))
    assert heads.find(message(b"12345", *FIELDS)) is not None
    assert heads.find(other) is None


def test_a_length_that_stands_in_the_body_is_no_head() -> None:
    tricky = START + b"Host: h\r\n\r\nx\r\nContent-Length: 2\r\n\r\nab"
    heads: KnownHeads[str] = KnownHeads()
    assert heads.find(tricky) is None and heads.find(tricky) is None
    assert not heads.learns([(b"Host", b"h")])


@pytest.mark.parametrize(
    "line", [b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Upgrade: h2c", b"X: a\nContent-Length: 7"]
)
def test_a_head_after_which_a_body_may_be_framed_otherwise_is_never_learned(line: bytes) -> None:
    data = message(b"12345", *FIELDS, line)
    heads: KnownHeads[str] = KnownHeads()
    heads.find(data)
    heads.find(data)
    assert not heads.learns(fields_of(data))


def test_a_head_in_which_the_parser_saw_other_lines_is_not_learned() -> None:
    data = message(b"12345", *FIELDS)
    heads: KnownHeads[str] = KnownHeads()
    heads.find(data)
    heads.find(data)
    assert not heads.learns(fields_of(data)[1:])


def test_no_more_than_a_few_heads_are_kept() -> None:
    heads = taught(*(message(b"1", b"Host: h%d" % number) for number in range(4)), kept=3)
    assert heads.find(message(b"12", b"Host: h3")) == ("read 3", b"2", b"12")
    assert heads.find(message(b"12", b"Host: h0")) is None


def test_a_head_of_very_many_fields_is_not_learned() -> None:
    most = [b"X-%d:" % number for number in range(FIELDS_LIMIT - 1)]
    assert taught(message(b"1", *most)).find(message(b"12", *most)) is not None
    data = message(b"1", *most, b"X:")
    heads: KnownHeads[str] = KnownHeads()
    assert heads.find(data) is None and heads.find(data) is None
    assert not heads.learns(fields_of(data))


async def mirror(scope: Any, receive: Any, send: Any) -> None:
    """Answer with all that the server says of a request."""
    body, more = b"", True
    while more:
        part = await receive()
        body, more = body + part.get("body", b""), part.get("more_body", False)
    told = {name: scope[name] for name in ("method", "path", "query_string", "http_version", "raw_path", "scheme")}
    told["headers"] = sorted((name.decode(), value.decode("latin-1")) for name, value in scope["headers"])
    told["named"] = headers_of(scope)
    scope.pop(HEADERS, None)
    assert headers_of(scope) == told["named"], "what is known says what would be read"
    data = json.dumps({**told, "body": body.decode("latin-1")}, default=bytes.decode).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]}
    )  # fmt: skip
    await send({"type": "http.response.body", "body": data})


class ByTheParser(BoundedHttp):
    """The same, to which each head is new."""

    def _learn_head(self) -> None:
        pass


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def answers(port: int, sent: Sequence[bytes]) -> list[bytes]:
    """Send each on one connection after the answer to the one before; return the bodies of the answers."""
    found = []
    async with asyncio.timeout(WAIT_S), connected(port) as (reader, writer):
        for data in sent:
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            found.append(head.partition(b"\r\n")[0] + await reader.readexactly(length))
            if b"connection: close" in head.lower():
                break
    return found


STARTS = (START, b"PUT /a%20b HTTP/1.1\r\n", b"POST / HTTP/1.0\r\n", b"GET /mcp HTTP/1.1\r\n")
MORE: tuple[tuple[bytes, ...], ...] = (
    (), (b"X-One: a", b"x-one: b"), (b"Connection: keep-alive",), (b"Connection: close",), (b"X-One:  \xe9 ",),
    (b"X-One: content-length: 3", b"Cookie:"), (b"content-type: text/plain", b"Content-Type: application/json"),
)  # fmt: skip


async def test_requests_say_the_same_to_an_application_whether_their_heads_are_known_or_read() -> None:
    async with (
        serve_http(mirror, "127.0.0.1", 0) as knows, serve_http(mirror, "127.0.0.1", 0, protocol=ByTheParser) as reads
    ):  # fmt: skip
        for start, more in product(STARTS, MORE):
            sent = [
                message(body, b"Host: h", *more, start=start) for body in (b"1", b"22", b"", b"4" * 40, b"\r\n\r\n")
            ]
            assert await answers(knows, sent) == await answers(reads, sent)


class Wire(asyncio.Transport):
    """A connection to whose server a test hands what a client sends, in the parts that it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.was_known: asyncio.Queue[bool] = asyncio.Queue()
        self.written = b""
        self._closed = False
        config = uvicorn.Config(self._noted, interface="asgi3", lifespan="off", log_config=None)
        config.load()
        self.server = BoundedHttp(config, ServerState(), {})
        self.server.connection_made(self)

    async def _noted(self, scope: Any, receive: Any, send: Any) -> None:
        is_known = HEADERS in scope
        await mirror(scope, receive, send)
        self.was_known.put_nowait(is_known)

    async def served(self, *parts: bytes, requests: int = 1) -> list[bool]:
        """Return of which of the requests in *parts* the head was known; they are answered."""
        for part in parts:
            self.server.data_received(part)
        return [await self.was_known.get() for _ in range(requests)]

    def bodies(self) -> list[str]:
        """Return what the server saw as the bodies of all requests."""
        answers = (answer.partition(b"\r\n\r\n")[2] for answer in self.written.split(b"HTTP/1.1 200 OK\r\n")[1:])
        return [json.loads(answer)["body"] for answer in answers]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def pause_reading(self) -> None:
        """A test hands over what it has to, and no more."""

    def resume_reading(self) -> None:
        """It does so all the time."""

    def is_closing(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True


@asynccontextmanager
async def wired() -> AsyncIterator[Wire]:
    wire = Wire()
    try:
        async with asyncio.timeout(WAIT_S):
            yield wire
    finally:
        wire.server.connection_lost(None)


async def test_a_known_head_is_no_way_round_what_comes_in_parts_or_behind_another() -> None:
    whole, close = message(b"12345", *FIELDS), message(b"12", *FIELDS, b"Connection: close")
    async with wired() as wire:
        assert [await wire.served(whole) for _ in range(3)] == [[False], [False], [True]]
        assert await wire.served(whole + whole, requests=2) == [False, False]
        assert await wire.served(whole[:60], whole[60:]) == [False]
        assert await wire.served(whole) == [True]
        assert await wire.served(close) == [False]
        assert wire.bodies() == ["12345"] * 7 + ["12"] and wire.is_closing()


async def test_a_connection_holds_no_more_than_a_few_heads_of_its_client() -> None:
    heads = [message(b"1", b"Host: h%d" % number) for number in range(HEADS_KEPT + 1)]
    async with wired() as wire:
        for head in heads[:-1]:
            assert [await wire.served(head) for _ in range(3)] == [[False], [False], [True]]
        assert [await wire.served(head) for head in heads[:-1]] == [[True]] * HEADS_KEPT
        assert await wire.served(heads[-1]) == [False]
        assert [await wire.served(head) for head in heads[:-1]] == [[False]] * HEADS_KEPT
