"""Web: the few parts of HTTP/1.1 that MCP needs, on httptools: kept connections, streamed answers, bounds everywhere.

A general client costs four times the CPU of the rest of a proxied call. Redirects, cookies, proxies and compression are
left out on purpose: each would be another way for a server to make us send something somewhere.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from omni_mcp.engines.upstream.wire.seam import WireFault

CONNECT_TIMEOUT_S = 10.0
IDLE_S = 4.0  # the servers of both SDKs close an idle connection after 5 s
IDLE_LIMIT = 32
HEADERS_LIMIT_BYTES = 64 * 1024
UNREAD_LIMIT_BYTES = 256 * 1024  # of an answer, before its sender has to wait


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

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self.status = connection.status
        self.headers = connection.headers

    @property
    def media_type(self) -> str:
        """The media type without its parameters, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises:
            WireFault: it ended early.
        """
        while (chunk := await self._connection.next_chunk()) is not None:
            yield chunk

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
        """Let go of the answer: its connection is kept if the body is complete, else closed."""
        self._connection.release()


class Web:
    """Sends requests to one origin over connections that it keeps."""

    def __init__(self, place: Place, *, context: ssl.SSLContext | None = None,
                 connect_timeout_s: float = CONNECT_TIMEOUT_S, idle_s: float = IDLE_S) -> None:  # fmt: skip
        self.place = place
        self._context = context
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    @property
    def open_connections(self) -> int:
        """Connections that are open, in use or not."""
        return len(self._all)

    async def send(self, method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> Reply:
        """Send one request and wait for the head of its answer; cancelling closes the connection.

        Raises:
            WireFault: no connection, or it broke before the answer began.
        """
        head = [f"{method} {target} HTTP/1.1", f"host: {self.place.authority}"]
        head += [f"{name}: {value}" for name, value in headers]
        if body or method == "POST":
            head.append(f"content-length: {len(body)}")
        text = "\r\n".join(head)
        if len(text.splitlines()) != len(head) or not text.isascii():
            raise WireFault("a header holds characters that do not belong there", sent=False)
        connection = await self._take()
        try:
            await connection.ask(text.encode("ascii") + b"\r\n\r\n" + body)
        except BaseException:
            connection.abort()
            raise
        return Reply(connection)

    async def close(self) -> None:
        """Close every connection."""
        for connection in list(self._all):
            connection.abort()
        await asyncio.sleep(0)  # connections hear of their end in the next turn of the loop

    async def _take(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.reuse():
                return connection
        loop = asyncio.get_running_loop()
        place = self.place
        if place.secure and self._context is None:
            self._context = await asyncio.to_thread(ssl.create_default_context)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, protocol = await loop.create_connection(
                    lambda: _Connection(self), place.host, place.port, ssl=self._context if place.secure else None
                )
        except TimeoutError:
            raise WireFault(f"no connection within {self._connect_timeout_s:g} s", sent=False) from None
        except OSError as error:  # TLS errors too
            raise WireFault(f"no connection: {error}", sent=False) from error
        return protocol

    def _keep(self, connection: _Connection) -> None:
        if len(self._idle) >= IDLE_LIMIT:
            connection.abort()
            return
        self._idle.append(connection)
        connection.rest(self._idle_s)

    def _made(self, connection: _Connection) -> None:
        self._all.add(connection)

    def _lost(self, connection: _Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, web: Web) -> None:
        self._web = web
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._gone: str | None = None
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.headers: dict[str, str] = {}
        self.status = 0
        self._headers_bytes = 0
        self._has_head = False
        self._complete = False
        self._reusable = False
        self._chunks: list[bytes] = []
        self._unread = 0
        self._paused = False

    # --- for whoever asks ---

    async def ask(self, data: bytes) -> None:
        """Send a request and wait for the head of the answer."""
        assert self._transport is not None
        self._transport.write(data)
        while not self._has_head:
            if self._gone is not None:
                raise WireFault(f"the connection broke before an answer: {self._gone}", sent=True)
            await self._wait()

    async def next_chunk(self) -> bytes | None:
        """Return more of the body; None at its end."""
        while True:
            if self._chunks:
                chunks, self._chunks, self._unread = self._chunks, [], 0
                self._resume()
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
            if self._complete:
                self.release()
                return None
            if self._gone is not None:
                raise WireFault(f"the answer ended early: {self._gone}", sent=True)
            await self._wait()

    def release(self) -> None:
        """The answer is not read any further."""
        if self._transport is None or self._timer is not None:
            return
        if self._complete and self._reusable and self._gone is None and not self._chunks:
            self._web._keep(self)
        else:
            self.abort()

    def reuse(self) -> bool:
        """Make ready for another request; False if the server has closed it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._gone is not None or self._transport is None or self._transport.is_closing():
            return False
        self._begin()
        return True

    def rest(self, idle_s: float) -> None:
        """Wait for another request, for a while."""
        self._timer = asyncio.get_running_loop().call_later(idle_s, self.abort)

    def abort(self) -> None:
        """Close at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
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

    def _resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._web._made(self)

    def data_received(self, data: bytes) -> None:
        if self._complete or self._timer is not None:  # nothing was asked
            self._fail("bytes that belong to no answer")
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, _Refused) as error:
            cause = error.__context__ if isinstance(error.__context__, _Refused) else error
            self._fail(f"no HTTP answer: {cause}")
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        framed = "content-length" in self.headers or "chunked" in self.headers.get("transfer-encoding", "")
        if self._gone is None:
            self._gone = str(exc) if exc else "closed by the server"
        if self._has_head and not framed and exc is None:
            self._complete = True  # without a length, the end of the connection is the end of the body
        self._reusable = False
        self._web._lost(self)
        self._wake()

    def _fail(self, reason: str) -> None:
        self._gone = self._gone or reason
        self.abort()

    # --- httptools ---

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers_bytes += len(name) + len(value)
        if self._headers_bytes > HEADERS_LIMIT_BYTES:
            raise _Refused(f"headers over {HEADERS_LIMIT_BYTES} bytes")
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
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
            self.headers, self._headers_bytes = {}, 0
            return
        self._complete = True


class _Refused(Exception):
    """An answer that is over a bound."""
