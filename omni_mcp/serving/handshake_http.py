"""The handshake era over HTTP: sessions, a standing GET stream, and answers that survive a lost connection.

Source: MCP 2025-11-25, basic/transports, "Streamable HTTP". A closed connection is no cancel in this era.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from omni_mcp.chain.crashpoint import reach
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.json import JsonValue
from omni_mcp.protocol.eras import at_least
from omni_mcp.protocol.frames import BadFrame, Frame, Request, frame_of
from omni_mcp.protocol.rpc import INVALID_REQUEST, PARSE_ERROR, Reply, error_reply
from omni_mcp.serving.asgi import Exchange, accepts
from omni_mcp.serving.calls import KINDS
from omni_mcp.serving.conversation import batch_of, gathered
from omni_mcp.serving.edge import Edge
from omni_mcp.serving.event_answer import KEEPALIVE_S, answer_events
from omni_mcp.serving.first_word import answer_in_time
from omni_mcp.serving.session import Nowhere, Outlet, Session
from omni_mcp.serving.shares import share_of
from omni_mcp.serving.streams import EventStream
from omni_mcp.time_limits import TimeLimits

SESSION_HEADER = "mcp-session-id"
STREAMS_LIMIT = 64  # answers that a client may come back to, per session
SENT_LIMIT_BYTES = 1024 * 1024  # of answers that were sent, but may have been lost with their connection
SENT_KEEP_S = 60.0
KEPT_LIMIT_BYTES = 32 * 1024 * 1024  # of answers that one principal may come back for, over all its sessions
STANDING_LIMIT_BYTES = 256 * 1024  # of news that were not read
STANDING = "s"  # name of the GET stream
SWEEP_S = 15.0


class StandingOutlet:
    """Messages that belong to no request: kept only once the client has opened its GET stream."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream

    def send(self, data: bytes) -> bool:
        """Pass on one message, or drop it while nobody ever listened."""
        return (self._stream.attached or self._stream.last > 0) and self._stream.send(data)


@dataclass(slots=True)
class HttpSession:
    """One handshake session and the streams that its client may come back to."""

    id: str
    session: Session
    standing: EventStream
    touched_s: float
    streams: OrderedDict[str, EventStream] = field(default_factory=OrderedDict)
    sent: OrderedDict[str, float] = field(default_factory=OrderedDict)  # finished streams and when they were sent
    posts: int = 0

    @property
    def kept_bytes(self) -> int:
        """What is held for a client that nobody reads for now."""
        return sum(stream.held_bytes for stream in self.streams.values() if not stream.attached)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way and nobody listens."""
        return not self.session.calls and not self.standing.attached

    def keep(self, stream: EventStream) -> None:
        """Remember a stream; the oldest finished one makes room."""
        self.streams[stream.name] = stream
        while len(self.streams) > STREAMS_LIMIT:
            self._drop(next((name for name, held in self.streams.items() if held.finished), next(iter(self.streams))))

    def note_sent(self, stream: EventStream, now_s: float) -> None:
        """All of *stream* was sent. Whether it arrived nobody knows yet, so it is kept for a while, within bounds."""
        if self.streams.get(stream.name) is not stream:
            return  # the standing stream, or one that made room
        self.sent[stream.name] = now_s
        while len(self.sent) > 1 and sum(self.streams[name].held_bytes for name in self.sent) > SENT_LIMIT_BYTES:
            self._drop(next(iter(self.sent)))

    def forget_sent(self, before_s: float) -> None:
        """Let go of what was sent before *before_s*."""
        for name in [name for name, sent_s in self.sent.items() if sent_s < before_s]:
            self._drop(name)

    def drop_kept(self) -> bool:
        """Let go of one stream that nobody reads, the one that is missed least first; False if there is none."""
        kept = [name for name, stream in self.streams.items() if stream.held_bytes and not stream.attached]
        if not kept:
            return False
        sent = [name for name in kept if name in self.sent]
        done = [name for name in kept if self.streams[name].finished]
        self._drop((sent or done or kept)[0])
        return True

    def drop_all(self) -> None:
        """Let go of everything: the session is over."""
        for name in list(self.streams):
            self._drop(name)

    def _drop(self, name: str) -> None:
        stream = self.streams.pop(name, None)
        self.sent.pop(name, None)
        if stream is not None and not stream.attached:
            stream.abandon()


class HandshakeHttp:
    """Serves POST, GET and DELETE of the handshake era."""

    def __init__(
        self,
        edge: Edge,
        *,
        sessions_limit: int,
        idle_s: float,
        quiet_s: float = 0.05,
        keepalive_s: float = KEEPALIVE_S,
        kept_limit_bytes: int = KEPT_LIMIT_BYTES,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._edge = edge
        self._limits = TimeLimits()
        self._sessions_limit = sessions_limit
        self._idle_s = idle_s
        self._quiet_s = quiet_s
        self._keepalive_s = keepalive_s
        self._kept_limit_bytes = kept_limit_bytes
        self._now_s = now_s
        self._sessions: dict[str, HttpSession] = {}
        self._kept_at_most: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def sessions(self) -> int:
        """How many sessions are open."""
        return len(self._sessions)

    async def post(self, exchange: Exchange, profile: str, value: JsonValue) -> None:
        """Answer one POST."""
        takes_json, takes_events = accepts(exchange.headers)
        if not takes_json:
            await exchange.refuse(406, "accept application/json and text/event-stream")
            return
        if isinstance(value, dict) and value.get("method") == "initialize" and "id" in value:
            await self._initialize(exchange, profile, frame_of(value))
            return
        held = await self._find(exchange, profile)
        if held is None:
            return
        batch = batch_of(value, held.session.version)
        if batch is not None:
            await self._batch(exchange, held, batch, takes_events=takes_events)
            return
        frame = frame_of(value)
        if isinstance(frame, Request):
            await self._request(exchange, held, frame, takes_events=takes_events)
            return
        self._edge.take(held.session, frame)
        await exchange.answer(202)

    async def _initialize(self, exchange: Exchange, profile: str, frame: Frame) -> None:
        assert isinstance(frame, Request)
        assert exchange.principal is not None  # the gate let it pass
        if SESSION_HEADER in exchange.headers:
            await self._fault(exchange, 400, frame.id, "initialize begins a session: send it without Mcp-Session-Id")
            return
        if len(self._sessions) >= self._sessions_limit:
            await self._fault(exchange, 503, frame.id, "too many open sessions; close one, or try again later")
            return
        share, who = share_of(self._sessions_limit), exchange.principal.key
        if sum(held.session.principal.key == who for held in self._sessions.values()) >= share:
            message = f"you have {share} open sessions, as many as one client may have; close one (DELETE) first"
            await self._fault(exchange, 429, frame.id, message)
            return
        standing = EventStream(STANDING, bytes_limit=STANDING_LIMIT_BYTES)
        session = self._edge.open(
            principal=exchange.principal, profile=profile, transport="http", outlet=StandingOutlet(standing)
        )
        held = HttpSession(secrets.token_urlsafe(24), session, standing, self._now_s())
        reply = await self._edge.answer(session, frame, Nowhere(), era="handshake")
        if reply.code is not None:
            await self._edge.close(session)
            await exchange.answer_json(_status(reply), reply.body)
            return
        self._sessions[held.id] = held
        session.on_close = lambda: self._forget(held)
        self._arm()
        await exchange.answer_json(200, reply.body, [(SESSION_HEADER.encode(), held.id.encode())])

    async def _request(self, exchange: Exchange, held: HttpSession, frame: Request, *, takes_events: bool) -> None:
        stream = self._stream_of(held)
        reader = stream.attach()
        outlet: Outlet = stream if takes_events else Nowhere()

        def on_gone() -> None:
            if stream.name not in held.streams:  # it never learned an event id, so there is nothing to come back to
                stream.detach(reader)
                stream.abandon()

        reply = await answer_in_time(
            exchange, stream, self._edge.answer(held.session, frame, outlet, era="handshake"),
            limits=self._limits, quiet_s=self._quiet_s if takes_events else None,
            as_stream=lambda: self._stream(exchange, held, stream), on_gone=on_gone,
        )  # fmt: skip
        if reply is not None:
            await exchange.answer_json(_status(reply), reply.body)
        if frame.method in KINDS:
            reach("replied")

    def _stream_of(self, held: HttpSession) -> EventStream:
        held.posts += 1
        who = held.session.principal.key
        return EventStream(str(held.posts), on_held=partial(self._make_room, who))

    def _make_room(self, who: str, more_bytes: int) -> None:
        """Let go of answers of a principal that keeps too much, those of its longest unused session first.

        They are only counted once all that was told since the last time could be too much.
        """
        self._kept_at_most[who] += more_bytes
        if self._kept_at_most[who] <= self._kept_limit_bytes:
            return
        mine = sorted((h for h in self._sessions.values() if h.session.principal.key == who), key=_touched)
        spare = sum(held.kept_bytes for held in mine) - self._kept_limit_bytes
        for held in mine:
            while spare > 0 and (before := held.kept_bytes) and held.drop_kept():
                spare -= before - held.kept_bytes
        self._kept_at_most[who] = spare + self._kept_limit_bytes

    async def _stream(self, exchange: Exchange, held: HttpSession, stream: EventStream) -> None:
        """Answer with events; what the client did not get waits for it."""
        held.keep(stream)
        complete = await answer_events(
            exchange, stream, first=self._priming(held, stream, 0), keepalive_s=self._keepalive_s
        )
        held.touched_s = self._now_s()
        if complete:
            held.note_sent(stream, held.touched_s)

    async def _batch(
        self, exchange: Exchange, held: HttpSession, batch: list[JsonValue], *, takes_events: bool
    ) -> None:
        """Each member is its own request with its own call; the answers share one HTTP answer."""
        stream = self._stream_of(held)
        outlet: Outlet = stream if takes_events else Nowhere()
        tasks: list[asyncio.Task[Reply]] = []
        refused: list[Reply] = []
        for member in batch:
            try:
                frame = frame_of(member)
            except BadFrame as fault:
                refused.append(self._edge.reject("http", fault))
                continue
            if isinstance(frame, Request):
                tasks.append(self._edge.begin(held.session, frame, outlet, era="handshake"))
            else:
                self._edge.take(held.session, frame)
        if not tasks and not refused:
            await exchange.answer(202)
        elif not takes_events or not tasks:
            await exchange.answer_json(200, await gathered(tasks, refused))
        else:
            collecting = asyncio.ensure_future(_collect(stream, tasks, refused))
            await self._stream(exchange, held, stream)
            await collecting

    async def get(self, exchange: Exchange, profile: str) -> None:
        """Open the standing stream, or go on with one that broke off (Last-Event-ID)."""
        if not accepts(exchange.headers)[1]:
            await exchange.refuse(406, "accept text/event-stream")
            return
        held = await self._find(exchange, profile)
        if held is None:
            return
        stream, after = self._resumed(held, exchange.headers.get("last-event-id"))
        complete = await answer_events(
            exchange, stream, after=after, first=self._priming(held, stream, after), again=True,
            keepalive_s=self._keepalive_s,
        )  # fmt: skip
        held.touched_s = self._now_s()
        if complete:
            held.note_sent(stream, held.touched_s)
        elif not exchange.still_valid():
            await self._edge.close(held.session)

    def _resumed(self, held: HttpSession, event_id: str | None) -> tuple[EventStream, int]:
        name, _, number = (event_id or "").rpartition("-")
        stream = held.standing if name == STANDING else held.streams.get(name)
        if stream is not None and number.isdigit() and len(number) < 12:
            return stream, int(number)
        return held.standing, held.standing.last

    def _priming(self, held: HttpSession, stream: EventStream, after: int) -> bytes:
        """An empty event with an id, so that the client can come back even if nothing else reaches it."""
        if not at_least(held.session.version, "2025-11-25"):
            return b": stream\r\n\r\n"
        return f"id: {stream.name}-{after}\r\nretry: 1000\r\ndata:\r\n\r\n".encode()

    async def delete(self, exchange: Exchange, profile: str) -> None:
        """End the session; what it has under way is cancelled."""
        held = await self._find(exchange, profile)
        if held is None:
            return
        await self._edge.close(held.session)
        await exchange.answer(204)

    def session_of(self, exchange: Exchange) -> Session | None:
        """Return the session that a request names, if it is the caller's."""
        held = self._sessions.get(exchange.headers.get(SESSION_HEADER, ""))
        return held.session if held is not None and held.session.principal == exchange.principal else None

    async def _find(self, exchange: Exchange, profile: str) -> HttpSession | None:
        """Return the session of a request, or answer why there is none. Another principal's is not there.

        A session lasts as long as everything about its principal does: with other roles, the client begins another.

        The version header only has to name a handshake version: clients are known to send another than they agreed
        on, and what was agreed on is what counts.
        """
        session_id = exchange.headers.get(SESSION_HEADER)
        if session_id is None:
            await self._fault(exchange, 400, None, "send initialize first, then its Mcp-Session-Id with every request")
            return None
        held = self._sessions.get(session_id)
        caller = exchange.principal
        if held is not None and caller is not None and _changed(held.session.principal, caller):
            await self._edge.close(held.session)
            held = None
        if held is None or held.session.principal != caller or held.session.profile != profile:
            await self._fault(exchange, 404, None, "there is no such session; send initialize to begin one")
            return None
        held.touched_s = self._now_s()
        return held

    async def _fault(self, exchange: Exchange, status: int, request_id: int | str | None, message: str) -> None:
        reason = {400: "no_session", 404: "unknown_session", 429: "too_many_of_one", 503: "too_many_sessions"}[status]
        self._edge.rejections.note("http", reason)
        await exchange.answer_json(status, error_reply(request_id, INVALID_REQUEST, message).body)

    def _forget(self, held: HttpSession) -> None:
        self._sessions.pop(held.id, None)
        held.standing.finish()
        held.drop_all()

    def _arm(self) -> None:
        if self._timer is None and self._sessions:
            pause_s = min(SWEEP_S, self._idle_s)
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._sweep)

    def _sweep(self) -> None:
        """End sessions that nobody used for `idle_s`."""
        self._timer = None
        before = self._now_s() - self._idle_s
        for held in list(self._sessions.values()):
            held.forget_sent(self._now_s() - SENT_KEEP_S)
            if held.idle and held.touched_s <= before:
                task = asyncio.ensure_future(self._edge.close(held.session, "idle"))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        self._arm()

    def close(self) -> None:
        """Stop the sweeper; the edge ends the sessions."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _touched(held: HttpSession) -> float:
    return held.touched_s


def _changed(before: Principal, now: Principal) -> bool:
    """Whether it is the same principal with other roles."""
    return before.key == now.key and before != now


async def _collect(stream: EventStream, tasks: list[asyncio.Task[Reply]], refused: list[Reply]) -> None:
    for reply in refused:
        stream.send(reply.body)
    for done in asyncio.as_completed(tasks):
        try:
            stream.send((await done).body)
        except asyncio.CancelledError:
            continue  # a cancelled member gets no answer
    stream.finish()


def _status(reply: Reply) -> int:
    return 400 if reply.code in (PARSE_ERROR, INVALID_REQUEST) else 200
