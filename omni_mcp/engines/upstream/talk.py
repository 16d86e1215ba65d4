"""Talk: everything said over one open wire: requests find their answers, and what the server says finds its request."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.upstream.envelope import NOBODY, Caller, ClientInfo, enveloped, mirrored_headers
from omni_mcp.engines.upstream.exchange import Exchange, Logged, Progress, Question
from omni_mcp.engines.upstream.faults import Garbled, remote_error_of
from omni_mcp.engines.upstream.pages import Pages
from omni_mcp.engines.upstream.peer import Peer
from omni_mcp.engines.upstream.wire.large import LargeResponse
from omni_mcp.engines.upstream.wire.seam import Misasked, Outgoing, Receiver, Wire, WireFault
from omni_mcp.protocol.eras import ASKS
from omni_mcp.protocol.frames import Frame, Notification, Request, RequestId, Response
from omni_mcp.protocol.rpc import INVALID_REQUEST, METHOD_NOT_FOUND, error_reply, notification, request, result_reply

PENDING_LIMIT = 256
ERRANDS_LIMIT = 64  # small messages that are on their way at once
LIST_CHANGES = {f"notifications/{kind}/list_changed": kind for kind in ("tools", "resources", "prompts")}
HeaderDeclarations = tuple[tuple[tuple[str, ...], str, str], ...]


class Listener(Protocol):
    """Who hears what belongs to no request. No method waits or raises."""

    def list_changed(self, kind: str) -> None:
        """Hear that `tools`, `resources` or `prompts` may be others now."""
        ...

    def resource_updated(self, uri: str) -> None:
        """Hear that a resource (the server's own URI) has changed."""
        ...

    def asks_roots(self) -> None:
        """Hear that the server asks for its client's directories outside of any call."""
        ...


class Talk(Receiver):
    """One open wire. Used up when it is `ended`."""

    def __init__(
        self, wire: Wire, listener: Listener, *, info: ClientInfo, pending_limit: int = PENDING_LIMIT,
        roots: Sequence[JsonObject] = (),
    ) -> None:  # fmt: skip
        """Take the wire.

        Args:
            roots: what the server is told when it asks for directories outside of any call.
        """
        self.wire = wire
        self.roots = list(roots)
        self.roots_asked = asyncio.Event()
        self.pages = Pages()
        self.peer = Peer(era="handshake", version="")
        self.ended = asyncio.Event()
        self.fault: WireFault | None = None
        self.oddities: Counter[str] = Counter()
        self._listener = listener
        self._info = info
        self._pending_limit = pending_limit
        self._numbers = itertools.count(1)
        self._exchanges: dict[int, Exchange] = {}
        self._errands: set[asyncio.Task[None]] = set()

    @property
    def pending(self) -> int:
        """Requests that wait for their answers, those of the gateway itself not counted."""
        return sum(exchange.caller.link is not None for exchange in self._exchanges.values())

    @property
    def session_lost(self) -> bool:
        """Whether it ended because the server forgot the session: it is there, and only a new handshake is due."""
        return self.fault is not None and self.fault.session_lost

    async def start(
        self, method: str, params: JsonObject, *, caller: Caller = NOBODY, declared: HeaderDeclarations = (),
        era: str | None = None,
    ) -> Exchange:  # fmt: skip
        """Send a request.

        Args:
            declared: headers that the tool wants some arguments mirrored in.
            era: while none is agreed on.

        Raises:
            WireFault: it could not be sent, or too many are under way.
        """
        if self.ended.is_set():
            raise WireFault(self.fault.reason if self.fault else "the connection is closed", sent=False)
        if len(self._exchanges) >= self._pending_limit:
            raise WireFault("too many requests are under way", sent=False, retry_after_s=1.0)
        id = next(self._numbers)
        modern = (era or self.peer.era) == "modern"
        sent = enveloped(params, era="modern" if modern else "handshake", caller=caller, info=self._info, id=id)
        headers = mirrored_headers(method, params, declared) if modern else {}
        exchange = self._exchanges[id] = Exchange(id, method, caller, let_go=self._let_go)
        try:
            data = request(id, method, sent)
            await self.wire.send(Outgoing(data=data, id=id, method=method, headers=headers))
        except WireFault:
            self._exchanges.pop(id, None)
            raise
        except BaseException:
            exchange.cancel("the caller cancelled")  # it may have been sent
            raise
        return exchange

    async def request(
        self, method: str, params: JsonObject | None = None, *, timeout_s: float, caller: Caller = NOBODY,
        era: str | None = None,
    ) -> JsonObject:  # fmt: skip
        """Send a request and return its result.

        Raises:
            RemoteError, Garbled, WireFault: there is none.
            TimeoutError: none came in time; the server was told.
        """
        exchange = await self.start(method, params or {}, caller=caller, era=era)
        try:
            async with asyncio.timeout(timeout_s):
                return await exchange.answer()
        except BaseException:
            exchange.cancel("no longer needed")
            raise

    async def notify(self, method: str, params: JsonObject | None = None) -> None:
        """Send a notification.

        Raises:
            WireFault: it was not sent.
        """
        headers = mirrored_headers(method, {}) if self.peer.era == "modern" else {}
        await self.wire.send(Outgoing(data=notification(method, params or {}), method=method, headers=headers))

    def reply(self, exchange: Exchange, id: RequestId, result: JsonObject) -> None:
        """Answer a question of the server."""
        if exchange.open_questions.pop(id, None) is not None:
            self._errand(self._send_quietly(result_reply(id, result).body))

    def refuse(self, exchange: Exchange, id: RequestId, code: int, message: str) -> None:
        """Answer a question of the server with an error."""
        if exchange.open_questions.pop(id, None) is not None:
            self._errand(self._send_quietly(error_reply(id, code, message).body))

    async def close(self, reason: str = "the connection was closed") -> None:
        """Fail what is under way and let go of the server."""
        self.lost(WireFault(reason, sent=True))
        for errand in list(self._errands):  # a last word, such as a cancellation, may still leave
            try:
                async with asyncio.timeout(0.5):
                    await asyncio.wait({errand})
            except TimeoutError:
                errand.cancel()
        await self.wire.close()

    def take(self, frame: Frame, within: int | None) -> bool:
        """As `Receiver`."""
        if isinstance(frame, Response):
            return self._take_answer(frame, within)
        if isinstance(frame, Request):
            self._take_question(frame, within)
            return False
        return self._take_notification(frame, within)

    def junk(self, reason: str, id: RequestId | None) -> None:
        """As `Receiver`."""
        self.oddities[reason] += 1
        exchange = self._exchanges.pop(id, None) if isinstance(id, int) else None
        if exchange is not None:
            exchange.fail(Garbled(reason))

    def failed(self, id: int, fault: WireFault) -> None:
        """As `Receiver`."""
        exchange = self._exchanges.pop(id, None)
        if exchange is not None:
            exchange.fail(fault)
        if fault.session_lost:
            self.lost(fault)

    def lost(self, fault: WireFault) -> None:
        """As `Receiver`."""
        if self.ended.is_set():
            return
        self.fault = fault
        self.ended.set()
        exchanges, self._exchanges = self._exchanges, {}
        told = WireFault(f"meanwhile: {fault.reason}", sent=True) if fault.session_lost else fault  # may be at work
        for exchange in exchanges.values():
            exchange.fail(told)

    def _take_answer(self, frame: Response, within: int | None) -> bool:
        if within is not None and frame.id != within:
            self.oddities["not_its_answer"] += 1  # the reply to one request answers no other
            return False
        exchange = self._exchanges.pop(frame.id, None) if isinstance(frame.id, int) else None
        if exchange is None:
            self.oddities["unknown_id"] += 1  # a second answer, one that came too late, or an invented one
            return False
        if frame.result is not None:
            exchange.settle(frame.result, frame.large if isinstance(frame, LargeResponse) else None)
        else:
            exchange.fail(remote_error_of(frame.error or {}))
        self.wire.forget(exchange.id)
        return True

    def _take_question(self, frame: Request, within: int | None) -> None:
        if frame.method == "ping":
            self._errand(self._send_quietly(result_reply(frame.id, {}).body))
            return
        if isinstance(frame, Misasked):
            self._turn_away(frame.id, frame.code, frame.message)
            return
        if frame.method not in ASKS or self.peer.era == "modern":
            self._turn_away(frame.id, METHOD_NOT_FOUND, f"Method not found: {frame.method}")
            return
        if frame.method == "roots/list" and within is None and (self.roots or not self.pending):
            self._give_roots(frame.id)
            return
        exchange = self._whose(within)
        if exchange is not None:
            if not exchange.ask(Question(frame.id, frame.method, frame.params)):
                self._turn_away(frame.id, INVALID_REQUEST, "too many questions are open")
        else:
            self._turn_away(frame.id, INVALID_REQUEST, "this request cannot be tied to a call that is under way")

    def _give_roots(self, id: RequestId) -> None:
        self._errand(self._send_quietly(result_reply(id, {"roots": self.roots}).body))
        self.roots_asked.set()
        self._listener.asks_roots()

    def _turn_away(self, id: RequestId, code: int, message: str) -> None:
        self.oddities["question_refused"] += 1
        self._errand(self._send_quietly(error_reply(id, code, message).body))

    def _take_notification(self, frame: Notification, within: int | None) -> bool:
        method, params = frame.method, frame.params
        if method == "notifications/progress":
            return self._take_progress(params)
        if method == "notifications/message":
            exchange = self._whose(within)
            if exchange is not None and isinstance(params.get("level"), str):
                logger = params.get("logger")
                exchange.tell(Logged(params["level"], params.get("data"), logger if isinstance(logger, str) else None))
        elif method in LIST_CHANGES:
            self._listener.list_changed(LIST_CHANGES[method])
        elif method == "notifications/resources/updated" and isinstance(params.get("uri"), str):
            self._listener.resource_updated(params["uri"])
        elif method == "notifications/cancelled":
            for exchange in self._exchanges.values():
                exchange.withdraw(params.get("requestId", ""))
        elif method == "notifications/elicitation/complete":
            if not self.pages.done(params.get("elicitationId")):
                self.oddities["unknown_page"] += 1
        elif method == "notifications/subscriptions/acknowledged":
            self._take_acknowledgement(params, within)
        else:
            self.oddities["unknown_notification"] += 1
        return False

    def _take_progress(self, params: JsonObject) -> bool:
        token, progress, message = params.get("progressToken"), _number(params.get("progress")), params.get("message")
        exchange = self._exchanges.get(token) if type(token) is int else None
        if exchange is None or not exchange.caller.wants_progress or progress is None:
            self.oddities["unknown_progress"] += 1
            return False
        exchange.tell(Progress(progress, _number(params.get("total")), message if isinstance(message, str) else None))
        return False

    def _take_acknowledgement(self, params: JsonObject, within: int | None) -> None:
        """A subscription stands; it is told as progress, so that whoever began it can wait for it."""
        listens = [e for e in self._exchanges.values() if e.method == "subscriptions/listen"]
        exchange = self._exchanges.get(within) if within is not None else (listens[-1] if listens else None)
        if exchange is not None:
            exchange.tell(Progress(1, None, "acknowledged"))

    def _whose(self, within: int | None) -> Exchange | None:
        """Return the request that something without an address belongs to.

        Where one stream carries everything and requests of several clients are under way, nobody can tell; then it
        reaches none of them, be they one principal's or not. Requests of one client share what is said.

        One that is parked waits for its answer and asks nothing meanwhile, unless it has asked twice at once; but what
        another principal's may say is not for anybody else in any case.
        """
        if within is not None:
            found = self._exchanges.get(within)
            return found if found is not None and found.caller.link is not None else None
        calls = [exchange for exchange in self._exchanges.values() if exchange.caller.link is not None]
        live = [exchange for exchange in calls if not exchange.parked or len(exchange.open_questions) > 1] or calls
        clients = {id(exchange.caller.link.client) for exchange in live if exchange.caller.link is not None}
        alone = len(clients) == 1 and len({exchange.caller.principal for exchange in calls}) == 1
        return live[-1] if alone else None

    def _let_go(self, exchange: Exchange, reason: str) -> None:
        """Tell the server that nobody waits for this request any more."""
        if self._exchanges.pop(exchange.id, None) is None or exchange.method == "initialize":
            return
        for question in list(exchange.open_questions):
            exchange.open_questions.pop(question)
        if self.wire.closing_cancels:
            self.wire.forget(exchange.id)
            return
        self._errand(self._cancelled(exchange.id, reason))

    async def _cancelled(self, id: int, reason: str) -> None:
        try:
            await self.notify("notifications/cancelled", {"requestId": id, "reason": reason})
        except (WireFault, TimeoutError):
            self.oddities["cancel_not_sent"] += 1
        finally:
            self.wire.forget(id)

    async def _send_quietly(self, data: bytes) -> None:
        try:
            await self.wire.send(Outgoing(data=data))
        except (WireFault, TimeoutError):
            self.oddities["not_sent"] += 1

    def _errand(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._errands) >= ERRANDS_LIMIT or self.ended.is_set():
            self.oddities["not_sent"] += 1
            work.close()
            return
        task = asyncio.create_task(work)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
