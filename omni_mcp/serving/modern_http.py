"""The modern era over HTTP: one POST, one request, one answer; closing the connection is a cancel.

Source: MCP 2026-07-28, basic/transports, "Streamable HTTP".
"""

from __future__ import annotations

from collections.abc import Awaitable

from omni_mcp.chain.crashpoint import reach
from omni_mcp.protocol.eras import check_version
from omni_mcp.protocol.frames import BadFrame, Frame, Notification, Request, Response
from omni_mcp.protocol.headers import VERSION_HEADER
from omni_mcp.protocol.rpc import INVALID_REQUEST, Reply, RpcError, error_reply
from omni_mcp.serving.asgi import Exchange, accepts
from omni_mcp.serving.calls import KINDS
from omni_mcp.serving.edge import Edge
from omni_mcp.serving.event_answer import KEEPALIVE_S, answer_events
from omni_mcp.serving.first_word import answer_in_time
from omni_mcp.serving.session import Nowhere
from omni_mcp.serving.streams import EventStream
from omni_mcp.time_limits import TimeLimits


class ModernHttp:
    """Serves requests of the modern era."""

    def __init__(self, edge: Edge, *, quiet_s: float = KEEPALIVE_S) -> None:
        self._edge = edge
        self._limits = TimeLimits()
        self._quiet_s = quiet_s  # a call that says nothing for this long gets its stream, so that proxies keep it open

    def serve(self, exchange: Exchange, profile: str, frame: Frame) -> Awaitable[None]:
        """Answer one POST."""
        if isinstance(frame, Notification):
            return self._notified(exchange)
        if isinstance(frame, Response):
            fault = BadFrame(INVALID_REQUEST, "answer", "clients send no answers in this version")
            return _send_reply(exchange, self._edge.reject("http", fault))
        takes_json, takes_events = accepts(exchange.headers)
        if not takes_json or (frame.method == "subscriptions/listen" and not takes_events):
            return exchange.refuse(406, "accept application/json and text/event-stream")
        return self._request(exchange, profile, frame, takes_events=takes_events)

    async def _notified(self, exchange: Exchange) -> None:
        """The version has no notifications from clients over HTTP; they are taken and dropped."""
        try:
            check_version(exchange.headers.get(VERSION_HEADER, ""))
        except RpcError as fault:
            await _send_reply(exchange, error_reply(None, fault.code, fault.message, fault.data))
            return
        await exchange.answer(202)

    async def _request(self, exchange: Exchange, profile: str, frame: Request, *, takes_events: bool) -> None:
        assert exchange.principal is not None  # the gate let it pass
        stream = EventStream()
        stream.attach()
        outlet = stream if takes_events else Nowhere()
        session = self._edge.open(principal=exchange.principal, profile=profile, transport="http", outlet=outlet)

        async def as_stream() -> None:
            await answer_events(exchange, stream, keepalive_s=self._quiet_s)

        try:
            reply = await answer_in_time(
                exchange, stream, self._edge.answer(session, frame, outlet, headers=exchange.headers, era="modern"),
                limits=self._limits, quiet_s=self._quiet_s if takes_events else None, as_stream=as_stream,
                on_gone=session.cancel_calls,
            )  # fmt: skip
            if reply is not None:
                await _send_reply(exchange, reply)
            if frame.method in KINDS:
                reach("replied")
        finally:
            await self._edge.close(session)


def _send_reply(exchange: Exchange, reply: Reply) -> Awaitable[None]:
    return exchange.answer_json(reply.http_status, reply.body)
