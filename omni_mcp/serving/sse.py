"""HTTP+SSE of 2024-11-05: one GET stream carries everything to the client, POSTs carry everything from it."""

from __future__ import annotations

import secrets
from urllib.parse import parse_qs

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import Overloaded, RateLimited, TooLarge
from omni_mcp.protocol.frames import BadFrame
from omni_mcp.protocol.rpc import PARSE_ERROR
from omni_mcp.serving.asgi import Exchange, accepts, refuse_room
from omni_mcp.serving.conversation import Conversation
from omni_mcp.serving.edge import Edge
from omni_mcp.serving.event_answer import KEEPALIVE_S, answer_events, encoded_event
from omni_mcp.serving.shares import share_of
from omni_mcp.serving.streams import EventStream

MESSAGES_PATH = "/messages"


class SseHttp:
    """Serves the older transport. When its GET stream ends, so do its calls: there is no way to come back."""

    def __init__(
        self, edge: Edge, *, sessions_limit: int, frame_limit_bytes: int, keepalive_s: float = KEEPALIVE_S
    ) -> None:
        self._edge = edge
        self._sessions_limit = sessions_limit
        self._limit = frame_limit_bytes
        self._keepalive_s = keepalive_s
        self._talks: dict[str, Conversation] = {}

    @property
    def sessions(self) -> int:
        """How many streams are open."""
        return len(self._talks)

    async def get(self, exchange: Exchange, profile: str) -> None:
        """Open a session and stay with it until the client leaves."""
        assert exchange.principal is not None  # the gate let it pass
        if not accepts(exchange.headers)[1]:
            await exchange.refuse(406, "accept text/event-stream")
            return
        if len(self._talks) >= self._sessions_limit or self._edge.draining:
            await exchange.refuse(503, "too many open sessions; close one, or try again later")
            return
        share, who = share_of(self._sessions_limit), exchange.principal.key
        if sum(talk.session.principal.key == who for talk in self._talks.values()) >= share:
            self._edge.rejections.note("sse", "too_many_of_one")
            await exchange.refuse(429, f"you have {share} open sessions, as many as one client may have; close one")
            return
        stream = EventStream()
        talk = Conversation(
            self._edge, stream, principal=exchange.principal, profile=profile, transport="sse",
            frame_limit_bytes=self._limit,
        )  # fmt: skip
        session_id = secrets.token_urlsafe(24)
        talk.session.on_close = stream.finish
        self._talks[session_id] = talk
        place = encoded_event(f"{MESSAGES_PATH}?session_id={session_id}".encode(), event="endpoint")
        try:
            await answer_events(exchange, stream, first=place, keepalive_s=self._keepalive_s)
        finally:
            del self._talks[session_id]
            await talk.end("gateway_stopped" if self._edge.draining else "client_left")

    async def post(self, exchange: Exchange) -> None:
        """Take one message. Another principal's session is not there."""
        query = parse_qs(exchange.scope.get("query_string", b"").decode("latin-1"))
        talk = self._talks.get((query.get("session_id") or [""])[0])
        if talk is not None and exchange.principal is not None and _changed(talk, exchange.principal):
            talk.session.hang_up()  # its stream ends, and with it everything it has under way
            talk = None
        if talk is None or talk.session.principal != exchange.principal:
            self._edge.rejections.note("sse", "unknown_session")
            await exchange.refuse(404, "there is no such session; open one with GET /sse")
            return
        with self._edge.room.claim(talk.session.principal.key) as claim:
            try:
                claim.grow(exchange.expected_bytes(self._limit))
                data = await exchange.body(self._limit)
            except (RateLimited, Overloaded) as error:
                self._edge.rejections.note("sse", "no_room")
                await refuse_room(exchange, error)
                return
            except TooLarge as error:
                talk.refuse(BadFrame(PARSE_ERROR, "too_large", error.message))
                await exchange.refuse(413, error.message)
                return
            claim.shrink_to(len(data))
            await talk.take(data)
        await exchange.answer(202, b"Accepted", [(b"content-type", b"text/plain; charset=utf-8")])


def _changed(talk: Conversation, now: Principal) -> bool:
    """Whether the session was opened by the same principal with other roles."""
    return talk.session.principal.key == now.key and talk.session.principal != now
