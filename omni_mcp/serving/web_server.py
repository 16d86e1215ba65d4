"""The web server: uvicorn with an end to every wait for a client, a cap on connections, and a port known at once."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from omni_mcp.deadline import Deadline
from omni_mcp.known_heads import KnownHeads
from omni_mcp.serving.asgi import AT_ONCE, HEADERS, ON_GONE, AsgiApp, DoubleHeader, HeaderList, Scope, headers_of

HEADER_DEADLINE_S = 10.0
BODY_DEADLINE_S = 30.0
STALL_DEADLINE_S = 60.0  # a client that takes nothing of its answer for this long has gone
KEEP_ALIVE_S = 75  # longer than a proxy in front, which should be the one to close
CONNECTIONS_LIMIT = 1024
OTHER_FILES = 512  # descriptors that are not connections: the log, cells and their cgroups, clients on the local socket
HEADER_LIMIT_BYTES = 64 * 1024
HEADER_COUNT_LIMIT = 128
HEADS_KEPT = 4  # of one connection, whoever opened it: what is read of each takes some kilobytes
STOP_TIMEOUT_S = 2

_BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
_LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_WHOLE_URL = (  # whose host could be another than the one that Host names
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 51\r\n"
    b"connection: close\r\n\r\nbegin the request with a path, such as: POST /mcp\r\n"
)
_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """What was read of the head of a request. `length_at` is the place of its length among the headers."""

    scope: Scope
    url: bytes
    headers: list[tuple[bytes, bytes]]
    length_at: int
    named: dict[str, str]


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with an end to every wait for the client (uvicorn itself waits for a request without one).

    By its extensions an application learns at once that the client has gone, without a task that waits for it, and
    writes a whole answer in one piece.
    """

    header_deadline_s = HEADER_DEADLINE_S
    body_deadline_s = BODY_DEADLINE_S
    stall_deadline_s = STALL_DEADLINE_S
    connections_limit: int | None = None  # None: as many as this process has descriptors for

    _deadline: Deadline | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0  # of a head that is not complete, without what came together with its beginning
    _extensions: dict[str, dict[object, object]]  # of every request of this connection
    _answered: RequestResponseCycle | None = None  # what is being answered; `cycle` is what came last
    _is_in_head = False
    _awaited = ""  # the part of a request whose deadline counts
    _is_receiving = False  # a request is there in part: its own deadline counts, whatever was answered meanwhile
    _hearers: set[Callable[[], None]]
    _heads: KnownHeads[_Head]

    def connection_made(self, transport: Any) -> None:
        limit = connections_cap() if self.connections_limit is None else self.connections_limit
        if len(self.connections) >= limit:
            transport.write(_BUSY)
            transport.close()
            self.transport = transport
            return
        super().connection_made(transport)
        self._hearers = set()
        self._heads = KnownHeads(HEADS_KEPT)
        self._extensions = {ON_GONE: {"tell": self.on_gone}, AT_ONCE: {"body": self.body, "answer": self.answer}}
        self._deadline = Deadline()
        self._arm(self.header_deadline_s)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.end()
        self._stop_stall_timer()
        if self not in self.connections:
            return
        super().connection_lost(exc)
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True  # uvicorn tells only the last of the requests that came
            self._answered.message_event.set()
        hearers, self._hearers = self._hearers, set()
        for told in hearers:
            told()
        self._extensions.clear()  # they refer to what refers to them

    def on_gone(self, told: Callable[[], None]) -> Callable[[], None]:
        """Call *told* when the client has closed the connection; returns how to stop hearing of that."""
        if self not in self.connections:
            self.loop.call_soon(told)
        self._hearers.add(told)
        return partial(self._hearers.discard, told)

    def data_received(self, data: bytes) -> None:
        if self not in self.connections:
            return
        earlier = self.cycle
        may_be_whole = not self._is_receiving and (earlier is None or earlier.response_complete)
        if may_be_whole and (known := self._heads.find(data)) is not None:
            self._begin_known(*known)
            return
        self._head_bytes += len(data)
        self._feed(data)
        if self._is_receiving:
            self._await_rest()
        elif may_be_whole and self.cycle is not earlier:
            self._learn_head()

    def _begin_known(self, head: _Head, length: bytes, body: bytes) -> None:
        """As everything that the parser calls for one request, where it would say what it said before."""
        if self.transport.is_closing():
            return
        self._disarm()
        self.url = head.url
        self.expect_100_continue = False
        self.headers = headers = head.headers.copy()
        headers[head.length_at] = (b"content-length", length)
        named = {**head.named, "content-length": length.decode()}
        scope: Any = {**head.scope, "headers": headers, "state": self.app_state.copy(), HEADERS: named}
        self.scope = scope
        self.cycle = cycle = RequestResponseCycle(
            scope, self.transport, self.flow, self.logger, self.access_logger, self.access_log,
            self.server_state.default_headers, asyncio.Event(), False, True, self.on_response_complete,
        )  # fmt: skip
        cycle.body += body
        cycle.more_body = False
        cycle.message_event.set()
        self._start_asgi_task(cycle, self.app)

    def _learn_head(self) -> None:
        """Keep what was read of a head that came with the whole of its request, if no error or refusal came of it."""
        cycle = self.cycle
        scope: Scope = dict(self.scope)
        is_plain = cycle.keep_alive and not cycle.more_body and scope["http_version"] == "1.1"
        if not is_plain or self.transport.is_closing() or not self._heads.learns(self.headers):
            return
        try:
            named = headers_of(scope)
        except DoubleHeader:
            return
        length_at = [name for name, _ in self.headers].index(b"content-length")
        self._heads.learn(
            _Head(scope=scope, url=self.url, headers=self.headers, length_at=length_at, named=named)
        )  # fmt: skip

    def _feed(self, data: bytes) -> None:
        """As uvicorn's; a request with an upgrade, which is not offered, is read again without it, with its body."""
        rest = memoryview(data)
        try:
            while rest:
                try:
                    self.parser.feed_data(rest)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    if self.transport.is_closing():
                        return
                    rest = rest[upgrade.args[0] :]
                    lines = [b"%b: %b" % pair for pair in self.headers if pair[0] != b"upgrade"]
                    version = self.parser.get_http_version().encode()
                    start = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)
                    self.parser = httptools.HttpRequestParser(self)
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                    self.parser.feed_data(b"\r\n".join((start, *lines, b"\r\n")))
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def on_chunk_header(self) -> None:
        self._head_bytes = 0

    def _await_rest(self) -> None:
        """A request is there in part: what is left of its head, or of its body, has to come in time."""
        part = "head" if self._is_in_head else "body"
        if part != self._awaited:
            self._awaited = part
            if part == "head":
                self._arm(self.header_deadline_s)
            elif not self.pipeline:  # else its body is not read before its turn comes
                self._arm(self.body_deadline_s)
        elif self._head_bytes > HEADER_LIMIT_BYTES:  # of a head, of trailers or of what is beside a chunk's size
            self._give_up(_LARGE)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_stall_timer()
        self._stall_timer = self.loop.call_later(self.stall_deadline_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: an upgrade that is not offered is served as the plain request that it is."""

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def body(self, scope: Scope) -> bytes | None:
        """Take the whole body of the request of *scope*; None where it has to be waited for."""
        cycle = self.cycle
        if cycle.scope is not scope or cycle.more_body or cycle.disconnected or cycle.response_complete:
            return None
        data, cycle.body = bytes(cycle.body), bytearray()
        cycle.message_event.clear()
        self.flow.resume_reading()
        return data

    def answer(self, scope: Scope, status: int, headers: HeaderList, body: bytes) -> bool:
        """Write the whole answer to the request of *scope*; False where it has to take the usual way."""
        cycle = self.cycle
        is_plain = status in STATUS_LINE and status not in (204, 304) and scope["method"] != "HEAD"
        if not is_plain or cycle.scope is not scope or cycle.response_started or self.flow.write_paused:
            return False
        if cycle.disconnected:
            return True
        lines = [*map(b": ".join, self.server_state.default_headers), *map(b": ".join, headers)]
        head = b"\r\n".join((STATUS_LINE[status][:-2], *lines, b"content-length: %d\r\n\r\n" % len(body)))
        ends = len(lines) + 3
        if not cycle.keep_alive or b"\r\nconnection: " in head:
            return False
        if head.count(b"\n") != ends or head.count(b"\r") != ends:
            return False  # uvicorn refuses it by its own rules
        self.transport.write(head + body)
        cycle.waiting_for_100_continue = False
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        cycle.on_response()
        return True

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        self._is_in_head = self._is_receiving = True
        self._awaited = ""
        super().on_message_begin()
        self.scope["extensions"] = self._extensions

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # what comes behind a body changes nothing
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.transport.is_closing():
            return
        self._is_in_head = False
        size_bytes = len(self.url) + len(b"".join(chain.from_iterable(self.headers)))
        if size_bytes > HEADER_LIMIT_BYTES or len(self.headers) > HEADER_COUNT_LIMIT:
            self._give_up(_LARGE)
            return
        if self.url[:1] != b"/" or self.parser.get_method() == b"CONNECT":
            self._give_up(_WHOLE_URL)
            return
        if self.parser.should_upgrade():
            return
        self.expect_100_continue = dict(self.headers).get(b"expect", b"").lower() == b"100-continue"
        super().on_headers_complete()
        if self.pipeline:
            self._disarm()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope or cycle.response_complete:
            return  # with another scope: a request that was refused at its head, behind one that is being answered
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._is_receiving = False
        cycle = self.cycle
        if cycle is not None and cycle.response_complete:
            self._await_next()  # it was answered before all of it was there
            return
        self._disarm()
        if cycle is not None:
            cycle.more_body = False
            cycle.message_event.set()

    def on_response_complete(self) -> None:
        """As uvicorn's, with this connection's one timer in place of a new one for each answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            if self._is_receiving and not self.pipeline:
                self._arm(self.body_deadline_s)
        elif not self._is_receiving:
            self._await_next()

    def _arm(self, deadline_s: float) -> None:
        if self._deadline is not None:
            self._deadline.set(deadline_s, self._come_late)

    def _await_next(self) -> None:
        if self._deadline is not None:
            self._deadline.set(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _come_late(self) -> None:
        self._give_up(_LATE)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.clear()

    def _give_up(self, answer: bytes) -> None:
        self._disarm()
        if self.transport.is_closing():
            return
        if self._may_refuse():
            self.transport.write(answer)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        if self._may_refuse():
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _may_refuse(self) -> bool:
        """Whether a refusal of what comes in now would not be read as the answer to an earlier request."""
        earlier = self._answered
        if earlier is None or earlier.response_complete:
            return True
        return earlier.scope is self.scope and self._is_receiving and not earlier.response_started


def connections_cap(descriptors: int | None = None) -> int:
    """Return how many connections fit into *descriptors* (of this process, if not given) beside everything else: a
    quarter of them at least."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if descriptors is None else descriptors
    if soft == resource.RLIM_INFINITY:
        return CONNECTIONS_LIMIT
    return min(CONNECTIONS_LIMIT, max(soft - OTHER_FILES, soft // 4))


class _Server(uvicorn.Server):
    """A server that leaves signals to whoever runs it."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        """Tick for the Date header, and end at once when asked; uvicorn's own loop looks ten times a second."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 0.5)

    def stop(self) -> None:
        """Ask the server to end."""
        self.should_exit = True
        self._stopping.set()


@asynccontextmanager
async def serve_http(
    app: AsgiApp, host: str, port: int, *, protocol: type[BoundedHttp] = BoundedHttp
) -> AsyncIterator[int]:
    """Serve *app* and yield the port that it got; leaving the context stops accepting and closes what is open.

    Raises:
        OSError: the address cannot be bound.
    """
    listener = _bind(host, port)
    config = uvicorn.Config(
        app, http=protocol, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, date_header=True, timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_TIMEOUT_S, backlog=512,
    )  # fmt: skip
    server = _Server(config)
    serving = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]))
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.stop()
        await asyncio.wait({serving})
        listener.close()
        if not serving.cancelled() and (error := serving.exception()) is not None:
            raise error


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio: no delay for TCP only
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(512)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
