"""Session: one client connection as the edge knows it, whichever transport carries it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, Protocol

from omni_mcp.contracts.call import AskRefused, ClientFacts, Principal
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.protocol.eras import ASKS, at_least, may_ask
from omni_mcp.protocol.frames import RequestId, Response
from omni_mcp.protocol.rpc import Reply, notification, request

Transport = Literal["stdio", "socket", "http", "sse", "memory"]

ASK_TIMEOUT_S = 600.0  # a person may be asked; the call's own deadline usually ends it sooner
ASKS_LIMIT = 32  # open questions to one client
SUBSCRIPTIONS_LIMIT = 256


class Outlet(Protocol):
    """Where messages to the client go that are no replies. Bounded: never waits, never grows without end."""

    def send(self, data: bytes) -> bool:
        """Pass on one encoded message; False if the client has gone or was dropped for not reading."""
        ...


class Nowhere:
    """The outlet of a client that cannot be sent anything but replies."""

    def send(self, data: bytes) -> bool:
        return False


class Session:
    """What is known of one connection. A modern HTTP request has one for itself alone.

    A connection that speaks lines may use both eras: the handshake fills `version` and `client`, modern requests
    bring their own.
    """

    version = ""  # set by the handshake
    log_level = "info"
    run: str | None = None
    thread: str | None = None  # which its runs belong to
    closed = False
    on_close: Callable[[], None] | None = None  # the transport lets go of what it holds
    _opening: asyncio.Lock | None = None
    _asked = 0

    def __init__(self, *, principal: Principal, profile: str, transport: Transport, outlet: Outlet) -> None:
        self.principal = principal
        self.profile = profile
        self.transport: Transport = transport
        self.outlet = outlet
        self.client = _nothing_said(transport)
        self.run_users: dict[str, int] = defaultdict(int)  # requests under way by run: a full run makes way for another
        self.calls: dict[RequestId, asyncio.Future[Reply]] = {}
        self.subscriptions: set[str] = set()
        self._asks: dict[str, asyncio.Future[JsonObject]] = {}

    @property
    def opening(self) -> asyncio.Lock:
        """Held while its run is opened."""
        if self._opening is None:
            self._opening = asyncio.Lock()
        return self._opening

    @property
    def opened(self) -> bool:
        """Whether the handshake is done."""
        return bool(self.version)

    def notify(self, method: str, params: JsonObject) -> bool:
        """Send a notification that belongs to no request."""
        return self.outlet.send(notification(method, params))

    def wants(self, kind: str) -> bool:
        """A handshake client hears of every list."""
        return True

    def tell(self, method: str, params: JsonObject) -> bool:
        """As a listener: a client that cannot be reached now is not forgotten, it may open its stream later."""
        self.notify(method, params)
        return not self.closed

    def can_ask(self, method: str) -> bool:
        """Whether this client declared that it answers *method* in the version that it speaks."""
        known = ASKS.get(method)
        return known is not None and at_least(self.version, known[1]) and may_ask(method, self.client.capabilities)

    async def ask(
        self, method: str, params: JsonObject, outlet: Outlet, *, timeout_s: float = ASK_TIMEOUT_S
    ) -> JsonObject:
        """Send a request over *outlet* and wait for its result.

        Raises:
            AskRefused: it could not be sent, was answered with an error, or was not answered in time.
        """
        if len(self._asks) >= ASKS_LIMIT or self.closed:
            raise AskRefused(f"{method}: the client has too many open questions")
        self._asked += 1
        key = f"ask-{self._asked}"
        answer: asyncio.Future[JsonObject] = asyncio.get_running_loop().create_future()
        self._asks[key] = answer
        answered = False
        try:
            if not outlet.send(request(key, method, params)):
                raise AskRefused(f"{method}: the client has gone")
            async with asyncio.timeout(timeout_s):
                result = await answer
            answered = True
            return result
        except TimeoutError as error:
            raise AskRefused(f"{method}: no answer within {timeout_s:g} s") from error
        except AskRefused:
            answered = True
            raise
        finally:
            del self._asks[key]
            if not answered:
                outlet.send(notification("notifications/cancelled", {"requestId": key, "reason": "no longer needed"}))

    def take_answer(self, frame: Response) -> bool:
        """Hand an answer to whoever asked; False if nobody did."""
        waiting = self._asks.get(frame.id) if isinstance(frame.id, str) else None
        if waiting is None or waiting.done():
            return False
        if frame.result is not None:
            waiting.set_result(frame.result)
        else:
            waiting.set_exception(AskRefused(_reason(frame.error)))
        return True

    def cancel_calls(self) -> None:
        """Cancel everything that is under way for this client."""
        for call in list(self.calls.values()):
            call.cancel()

    def hang_up(self) -> None:
        """Nobody will answer any more: every open question fails."""
        self.closed = True
        for waiting in self._asks.values():
            if not waiting.done():
                waiting.set_exception(AskRefused("the client has gone"))
        on_close, self.on_close = self.on_close, None  # it refers to what refers to this: let both go now
        if on_close is not None:
            on_close()


@lru_cache
def _nothing_said(transport: Transport) -> ClientFacts:
    return ClientFacts(transport=transport)


def _reason(error: JsonValue) -> str:
    message = error.get("message") if isinstance(error, dict) else None
    return f"the client refused: {str(message)[:200]}"
