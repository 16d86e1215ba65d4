"""Web: the few parts of HTTP/1.1 that MCP needs, on httptools: kept connections, streamed answers, bounds everywhere.

A general client costs four times the CPU of the rest of a proxied call. Redirects, cookies, proxies and compression are
left out on purpose: each would be another way for a server to make us send something somewhere.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import cast
from urllib.parse import urlsplit

import httptools

from omni_mcp.deadline import Deadline
from omni_mcp.engines.upstream.wire.pace import others_turn
from omni_mcp.engines.upstream.wire.seam import WireFault
from omni_mcp.known_heads import KnownHeads

CONNECT_TIMEOUT_S = 10.0
IDLE_S = 4.0  # the servers of both SDKs close an idle connection after 5 s
IDLE_LIMIT = 32
HEADERS_LIMIT_BYTES = 64 * 1024
UNREAD_LIMIT_BYTES = 64 * 1024  # of an answer, before its sender has to wait
PIECE_BYTES = 64 * 1024  # of an answer, before others get a turn
AT_ONCE_BYTES = 32 * 1024  # an answer over that is worth a task


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a server is: an http or https URL, taken apart."""

    secure: bool
    host: str
    port: int
    target: str  # path and query

    @property
    def authority(self) -> str:
        """The `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


def place_of(url: str) -> Place:
    """Take *url* apart.

    Raises:
        ValueError: it is no http or https URL, carries credentials, or has characters that do not belong there.
    """
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("must be an ASCII URL without spaces")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http or https URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must carry no credentials; use headers")
    secure = parts.scheme == "https"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Place(secure=secure, host=parts.hostname, port=parts.port or (443 if secure else 80), target=target)


class Reply:
    """One answer: its status and headers are there, its body comes while it is read."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._is_over = False  # its connection may be another request's already
        self.status = connection.status
        self.headers = connection.headers

    @property
    def media_type(self) -> str:
        """The media type without its parameters, in lower case."""
        return _media_type(self.headers.get("content-type", ""))

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes, in pieces; between two of them others get a turn.

        Raises:
            WireFault: it ended early.
        """
        is_first = True
        while (chunk := await self._connection.next_chunk()) is not None:
            for at in range(0, len(chunk), PIECE_BYTES):
                if not is_first:
                    await others_turn()
                is_first = False
                yield chunk[at : at + PIECE_BYTES]
        self.close()

    async def read(self, limit_bytes: int) -> bytes | None:
        """Return the whole body; None if it is over *limit_bytes*, and then the connection is closed."""
        parts, size = [], 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > limit_bytes:
                self.close()
                return None
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Let go of the answer: its connection is kept if the body is complete, else closed. Safe to call twice."""
        if not self._is_over:
            self._is_over = True
            self._connection.release()


class Asked:
    """A request that was sent at once; its answer is told of. `taken_json` with a body, `reply` or `forget` ends it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def taken_json(self) -> bytes | None:
        """Return the body of an answer that is there in full, and let go of it; None where it is no success in JSON."""
        connection = self._connection
        kind = connection.headers.get("content-type", "")
        is_json = kind == "application/json" or _media_type(kind) == "application/json"
        if connection.status != 200 or not is_json:
            return None
        body = connection.taken()
        connection.release()
        return body

    async def reply(self) -> Reply:
        """Return the answer, once its head is there.

        Raises:
            WireFault: the connection broke before the answer began.
        """
        return await _begun(self._connection)

    def forget(self) -> None:
        """Nobody waits for the answer: close the connection."""
        self._connection.on_answer = None
        self._connection.abort()


class Web:
    """Sends requests to one origin over connections that it keeps."""

    def __init__(self, place: Place, *, context: ssl.SSLContext | None = None,
                 connect_timeout_s: float = CONNECT_TIMEOUT_S, idle_s: float = IDLE_S) -> None:  # fmt: skip
        self.place = place
        self._context = context
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self.heads: KnownHeads[dict[str, str]] = KnownHeads()  # of answers with the status 200

    @property
    def open_connections(self) -> int:
        """Connections that are open, in use or not."""
        return len(self._all)

    async def send(self, method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> Reply:
        """Send one request and wait for the head of its answer; cancelling closes the connection.

        Raises:
            WireFault: no connection, or it broke before the answer began.
        """
        data = self.head_of(method, target, headers) + _framed(method, body)
        connection = self._kept() or await self._connected()
        connection.ask(data)
        return await _begun(connection)

    def post_at_once(self, head: bytes, body: bytes, told: Callable[[bool], None]) -> Asked | None:
        """Send a POST request over a kept connection; None if there is none.

        Args:
            head: from `head_of`.
            told: called once, in a later turn of the loop: with True when the whole answer is there, with False when
                more has to be done for it: it is large, comes in parts, or broke off.
        """
        connection = self._kept()
        if connection is None:
            return None
        connection.on_answer = told
        connection.ask(b"%b\r\ncontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        return Asked(connection)

    def head_of(self, method: str, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
        """Return the lines of a request's head that are the same for each body.

        Raises:
            WireFault: a header has characters that do not belong there.
        """
        head = [f"{method} {target} HTTP/1.1", f"host: {self.place.authority}"]
        head += [f"{name}: {value}" for name, value in headers]
        text = "\r\n".join(head)
        if len(text.splitlines()) != len(head) or not text.isascii():
            raise WireFault("a header holds characters that do not belong there", sent=False)
        return text.encode("ascii")

    async def close(self) -> None:
        """Close every connection."""
        for connection in list(self._all):
            connection.abort()
        await asyncio.sleep(0)  # connections hear of their end in the next turn of the loop

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reuse():
                return connection
        return None

    async def _connected(self) -> Connection:
        loop = asyncio.get_running_loop()
        place = self.place
        if place.secure and self._context is None:
            self._context = await asyncio.to_thread(ssl.create_default_context)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, protocol = await loop.create_connection(
                    lambda: Connection(self), place.host, place.port, ssl=self._context if place.secure else None
                )
        except TimeoutError:
            raise WireFault(f"no connection within {self._connect_timeout_s:g} s", sent=False) from None
        except OSError as error:  # TLS errors too
            raise WireFault(f"no connection: {error}", sent=False) from error
        return protocol

    def keep(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        if len(self._idle) >= IDLE_LIMIT:
            connection.abort()
            return
        self._idle.append(connection)
        connection.rest(self._idle_s)

    def made(self, connection: Connection) -> None:
        """Hear of a new connection."""
        self._all.add(connection)

    def lost(self, connection: Connection) -> None:
        """Hear that a connection is closed."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


def _framed(method: str, body: bytes) -> bytes:
    """Return the rest of a request behind the head that `head_of` makes."""
    if body or method == "POST":
        return b"\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    return b"\r\n\r\n"


async def _begun(connection: Connection) -> Reply:
    """Wait for the head of the answer; cancelling closes the connection."""
    try:
        await connection.begun()
    except BaseException:
        connection.abort()
        raise
    return Reply(connection)


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, web: Web) -> None:
        self._web = web
        self._transport: asyncio.Transport | None = None
        self._idle = Deadline()
        self._rests = False
        self.on_answer: Callable[[bool], None] | None = None  # told once, of the answer that is awaited without a task
        self._waiter: asyncio.Future[None] | None = None
        self._gone: str | None = None
        self._begin()

    def _begin(self) -> None:
        self._parser: httptools.HttpResponseParser | None = None  # made once it is needed
        self.headers: dict[str, str] = {}
        self.status = 0
        self._fields: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0  # of a head that is not complete
        self._has_head = False
        self._complete = False
        self._reusable = False
        self._chunks: list[bytes] = []
        self._unread = 0
        self._paused = False

    def ask(self, data: bytes) -> None:
        """Send a request."""
        assert self._transport is not None
        self._transport.write(data)

    async def begun(self) -> None:
        """Wait for the head of the answer."""
        while not self._has_head:
            if self._gone is not None:
                raise WireFault(f"the connection broke before an answer: {self._gone}", sent=True)
            await self._wait()

    async def next_chunk(self) -> bytes | None:
        """Return more of the body; None at its end."""
        while True:
            if self._chunks:
                self._resume()
                return self.taken()
            if self._complete:
                return None
            if self._gone is not None:
                raise WireFault(f"the answer ended early: {self._gone}", sent=True)
            await self._wait()

    def release(self) -> None:
        """The answer is not read any further."""
        if self._transport is None or self._rests:
            return
        if self._complete and self._reusable and self._gone is None and not self._chunks:
            self._web.keep(self)
        else:
            self.abort()

    def reuse(self) -> bool:
        """Make ready for another request; False if the server has closed it."""
        self._rests = False
        self._idle.clear()
        if self._gone is not None or self._transport is None or self._transport.is_closing():
            return False
        self._begin()
        return True

    def rest(self, idle_s: float) -> None:
        """Wait for another request, for a while."""
        self._rests = True
        self._idle.set(idle_s, self.abort)

    def taken(self) -> bytes:
        """Return what came of the body and was not read yet."""
        chunks, self._chunks, self._unread = self._chunks, [], 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def abort(self) -> None:
        """Close at once."""
        self._rests = False
        self._idle.end()
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.on_answer is not None and (self._complete or self._gone is not None or self._comes_in_parts()):
            told, self.on_answer = self.on_answer, None
            told(self._complete)

    def _comes_in_parts(self) -> bool:
        """Whether the rest of the answer may be long in coming, or long."""
        return self._unread > AT_ONCE_BYTES or (
            self._has_head and self.headers.get("content-type", "")[:17].lower() == "text/event-stream"
        )

    def _resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._web.made(self)

    def data_received(self, data: bytes) -> None:
        if self._complete or self._rests:  # nothing was asked
            self._fail("bytes that belong to no answer")
            return
        is_whole = self._parser is None  # maybe: nothing came before it
        if is_whole and (known := self._web.heads.find(data)) is not None:
            headers, length, body = known
            self.status, self.headers = 200, {**headers, "content-length": length.decode()}
            self._has_head = self._reusable = self._complete = True
            self._chunks, self._unread = [body], len(body)
            self._wake()
            return
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, _Refused) as error:
            cause = error.__context__ if isinstance(error.__context__, _Refused) else error
            self._fail(f"no HTTP answer: {cause}")
        if not self._has_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEADERS_LIMIT_BYTES:
                self._fail(f"no HTTP answer: headers over {HEADERS_LIMIT_BYTES} bytes")
        elif is_whole and self._is_plain() and self._web.heads.learns(self._fields):
            self._web.heads.learn(self.headers)
        self._wake()

    def _is_plain(self) -> bool:
        """Whether the answer was taken, after which the connection is as it was before."""
        return self._complete and self._reusable and self._gone is None and self.status == 200

    def connection_lost(self, exc: Exception | None) -> None:
        framed = "content-length" in self.headers or "chunked" in self.headers.get("transfer-encoding", "")
        if self._gone is None:
            self._gone = str(exc) if exc else "closed by the server"
        if self._has_head and not framed and exc is None:
            self._complete = True  # without a length, the end of the connection is the end of the body
        self._reusable = False
        self._idle.end()
        self._web.lost(self)
        self._wake()

    def _fail(self, reason: str) -> None:
        self._gone = self._gone or reason
        self.abort()

    def on_message_begin(self) -> None:
        if self._complete:
            raise _Refused("bytes that belong to no answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:  # what comes behind the body changes nothing
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if len(b"".join(chain.from_iterable(self._fields))) > HEADERS_LIMIT_BYTES:
            raise _Refused(f"headers over {HEADERS_LIMIT_BYTES} bytes")
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1").strip() for name, value in self._fields}
        assert self._parser is not None
        self.status = self._parser.get_status_code()
        if self.status < 200:
            return
        self._has_head = True
        self._reusable = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._unread += len(body)
        if self._unread > UNREAD_LIMIT_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.status < 200:
            self._fields = []
            return
        self._complete = True


def _media_type(value: str) -> str:
    return value.partition(";")[0].strip().lower()


class _Refused(Exception):
    """An answer that is over a bound."""
