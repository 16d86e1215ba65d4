"""Edge: where the protocol ends. Every transport hands its frames to this object and sends back what it answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import structlog

from omni_mcp.contracts.call import Era, Handler, Principal
from omni_mcp.contracts.errors import Draining, OmniError, Overloaded, RateLimited
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.ports import Catalog, Policy, RunLog
from omni_mcp.protocol.capabilities import ServerInfo
from omni_mcp.protocol.eras import META_LOG_LEVEL, check_envelope, era_of, meta_of
from omni_mcp.protocol.frames import BadFrame, Notification, Request, Response
from omni_mcp.protocol.headers import check_headers
from omni_mcp.protocol.methods import REQUESTS, check_params
from omni_mcp.protocol.outcome import rpc_error
from omni_mcp.protocol.rpc import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    NOT_DONE,
    REQUEST_CANCELLED,
    UNSUPPORTED_VERSION,
    Reply,
    RpcError,
    error_reply,
    result_reply,
)
from omni_mcp.serving.calls import Asked, Calls, EndRound, IdOf, fresh_id, modern_client
from omni_mcp.serving.changes import Changes
from omni_mcp.serving.completions import CompleterOf, Completions
from omni_mcp.serving.greetings import Greetings
from omni_mcp.serving.interests import Interests, Watch, nobody_reports
from omni_mcp.serving.lists import Lists
from omni_mcp.serving.metrics import Metrics
from omni_mcp.serving.param_headers import ParamHeaders
from omni_mcp.serving.permission import MaySee, Permission, everybody
from omni_mcp.serving.profiles import Profiles
from omni_mcp.serving.refusals import Refusals
from omni_mcp.serving.rejections import Rejections
from omni_mcp.serving.room import ROOM_BYTES, SHARE_BYTES, Room
from omni_mcp.serving.run_of import RunOf, ThreadOf
from omni_mcp.serving.runbook import CloseReason, Runbook, trace_id_of
from omni_mcp.serving.session import Outlet, Session, Transport
from omni_mcp.serving.states import States
from omni_mcp.serving.surface import Surfaces
from omni_mcp.serving.under_way import UnderWay

REASONS = {
    INVALID_REQUEST: "invalid_request", METHOD_NOT_FOUND: "unknown_method", INVALID_PARAMS: "invalid_params",
    HEADER_MISMATCH: "header_mismatch", UNSUPPORTED_VERSION: "unsupported_version",
}  # fmt: skip
T = TypeVar("T")
DRAIN_S = 8.0  # of the 10 s in which the whole gateway stops


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeLimits:
    """Caps of the edge."""

    calls_per_session: int = 256
    listens_per_session: int = 16
    page_size: int = 250
    room_bytes: int = ROOM_BYTES
    share_bytes: int = SHARE_BYTES


Admit = Callable[[Principal], None]


async def no_thread(principal: Principal, meta: JsonObject) -> str | None:
    """For a gateway without threads."""
    return None


class Edge:
    """Answers every method of every version. Knows no transport: it gets frames and gives replies."""

    def __init__(
        self,
        *,
        handle: Handler,
        catalog: Catalog,
        policy: Policy,
        log: RunLog,
        runbook: Runbook,
        rejections: Rejections,
        changes: Changes,
        state_key: bytes,
        info: ServerInfo,
        metrics: Metrics,
        admit: Admit,
        may_see: MaySee = everybody,
        completer_of: CompleterOf = lambda entry: None,
        watch: Watch = nobody_reports,
        end_round: EndRound = lambda call, error: None,
        id_of: IdOf = fresh_id,
        surfaces: Surfaces | None = None,
        is_profile: Callable[[str], bool] = lambda name: False,
        thread_of: ThreadOf = no_thread,
        limits: EdgeLimits | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Take the parts.

        Args:
            admit: counts a request that is no call and raises RateLimited where there were too many.
            is_profile: whether the operator defined a profile of this name, whatever it shows now.
            may_see: whether what a URI names is this principal's, asked before a subscription is granted.
            thread_of: the thread that a `_meta` names, which raises NotFound where it is none of the principal's.
        """
        self._admit = admit
        self._profiles = Profiles(catalog, is_profile)
        self._runbook = runbook
        self.rejections = rejections
        self.changes = changes
        self.metrics = metrics
        self._limits = limits or EdgeLimits()
        self.room = Room(limit_bytes=self._limits.room_bytes, share_bytes=self._limits.share_bytes)
        stamp = info.stamp()
        run_of = partial(RunOf, runbook, thread_of, self._admit_run)
        permission = Permission(catalog, policy, Refusals(log, rejections), run_of=run_of)
        self._surfaces = surfaces or Surfaces(policy)
        self._lists = Lists(
            catalog, policy, self._surfaces, key=state_key, stamp=stamp, page_size=self._limits.page_size
        )
        self._calls = Calls(
            handle, policy, states=States(state_key), stamp=stamp, metrics=metrics, run_of=run_of, end_round=end_round,
            id_of=id_of, now_ns=now_ns,
        )  # fmt: skip
        self._param_headers = ParamHeaders(catalog)
        self._interests = Interests(
            catalog, permission, changes, may_see=may_see, watch=watch, stamp=stamp,
            streams_limit=self._limits.listens_per_session,
        )  # fmt: skip
        self._sessions: set[Session] = set()
        self._tasks: set[asyncio.Future[Any]] = set()
        self.held = False  # no new call is taken, and everything else is served
        self.drains = asyncio.Event()  # set once no new request is taken
        self._logger = structlog.get_logger("omni_mcp.edge")
        self._be_watched()
        greetings = Greetings(info, runbook, thread_of=thread_of)
        self._handlers: dict[str, Callable[[Asked], Awaitable[JsonObject | bytes]]] = {
            "initialize": greetings.initialize,
            "ping": greetings.ping,
            "discover": greetings.discover,
            "set_level": greetings.set_level,
            "list": self._list,
            "call": self._call,
            "complete": Completions(catalog, permission, completer_of, stamp=stamp).complete,
            "subscribe": self._interests.subscribe,
            "unsubscribe": self._interests.unsubscribe,
            "listen": self._interests.listen,
        }

    def _be_watched(self) -> None:
        watch = self.metrics.watch
        watch("omni_open_sessions", "Open connections and modern requests.", lambda: len(self._sessions))
        watch("omni_requests_in_flight", "Requests that are being answered.", lambda: len(self._tasks))
        watch("omni_room_bytes", "Memory held for messages.", lambda: self.room.taken_bytes)
        watch("omni_listeners", "Clients that hear of changes.", lambda: self.changes.listeners)

    def open(self, *, principal: Principal, profile: str, transport: Transport, outlet: Outlet) -> Session:
        """Begin a connection. Nothing is recorded before its handshake or its first call."""
        session = Session(principal=principal, profile=profile, transport=transport, outlet=outlet)
        self._sessions.add(session)
        return session

    async def close(self, session: Session, reason: CloseReason = "client_left") -> None:
        """End a connection: cancel what it has under way, wait until that is on record, close its run."""
        if session not in self._sessions:
            return
        self._sessions.discard(session)
        session.hang_up()
        self.changes.leave(session)
        if session.calls:
            session.cancel_calls()
            await asyncio.wait(list(session.calls.values()))
        if session.run is not None:
            self._runbook.close(session.run, session.principal, reason)
            session.run = None

    def meant(self, principal: Principal, name: str, arguments: JsonObject) -> JsonObject | None:
        """Return `name` and `arguments` of the tool that a call of `call_tool` means; None where it means itself."""
        return self._surfaces.meant(principal, name, arguments)

    def has_profile(self, name: str) -> bool:
        """Whether there is such a profile, or anything is named in it."""
        return self._profiles.has(name)

    @property
    def open_sessions(self) -> int:
        """How many connections and single modern requests are open."""
        return len(self._sessions)

    @property
    def draining(self) -> bool:
        """Whether the gateway stops and takes no new requests."""
        return self.drains.is_set()

    @property
    def takes_calls(self) -> bool:
        """Whether a new call has a chance: what a load balancer wants to know."""
        return not (self.drains.is_set() or self.held)

    async def drain(self, *, timeout_s: float = DRAIN_S) -> int:
        """Take no new requests, end streams, give calls *timeout_s* to end, and cancel the rest.

        Returns:
            How many had to be cancelled. Their outcomes are on record.
        """
        self.drains.set()
        self._interests.end_streams()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=timeout_s)
        late = [task for task in self._tasks if not task.done()]
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
        for session in list(self._sessions):
            await self.close(session, "gateway_stopped")
        self._runbook.close_all()
        self.changes.close()
        self.rejections.close()
        return len(late)

    def begin(
        self,
        session: Session,
        request: Request,
        outlet: Outlet,
        *,
        headers: Mapping[str, str] | None = None,
        era: Era | None = None,
    ) -> asyncio.Task[Reply]:
        """Start to answer a request. Cancelling the task cancels the call.

        Args:
            outlet: where notifications and questions that belong to this request go.
            headers: of an HTTP request, lower-case names; they must say what a modern body says.
            era: where the transport has decided it; else the request tells.
        """
        era = era or era_of(request.method, request.params)
        fault = self._begun(session, request, era)
        work = self._refuse(request, fault) if fault else self._serve(session, request, outlet, headers, era)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if fault is None:
            session.calls[request.id] = task
            task.add_done_callback(partial(_forget, session.calls, request.id))
        return task

    async def answer(
        self, session: Session, request: Request, outlet: Outlet, *, headers: Mapping[str, str] | None = None, era: Era
    ) -> Reply:
        """Answer a request, as `begin` does, in the caller's own task: where each request has one already.

        A request that is cancelled has its reply, too.
        """
        fault = self._begun(session, request, era)
        if fault is not None:
            return await self._refuse(request, fault)
        host = asyncio.current_task()
        assert host is not None
        under_way = UnderWay(host)
        reply = None
        self._tasks.add(under_way)
        session.calls[request.id] = under_way
        try:
            reply = await self._serve(session, request, outlet, headers, era)
        except asyncio.CancelledError:
            if not under_way.was_cancelled:
                raise  # the host itself is to end
        finally:
            self._tasks.discard(under_way)
            _forget(session.calls, request.id, under_way)
            under_way.end(reply)
        if reply is not None:
            return reply
        if self.drains.is_set():
            return error_reply(request.id, NOT_DONE, "the gateway is stopping")
        return error_reply(request.id, REQUEST_CANCELLED, "Request cancelled")

    def attend(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run the work of a request that came by another face; `drain` gives it time to end, too.

        Raises:
            Draining: no new request is taken, whenever this one began to come.
        """
        if self.drains.is_set():
            work.close()
            raise Draining()
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def page(self, method: str, principal: Principal, profile: str, cursor: str | None) -> bytes:
        """Return one page of a list as a modern client gets it, never a search surface in its place.

        Raises:
            RpcError: the cursor is not valid.
        """
        return await self._lists.page(method, principal, profile, "modern", cursor)

    def _begun(self, session: Session, request: Request, era: Era) -> RpcError | None:
        """Count a request; returns why it is not answered now."""
        known = request.method if request.method in REQUESTS else "other"
        self.metrics.request_seen(known, era, session.transport)
        earlier = session.calls.get(request.id)
        if earlier is not None and not earlier.done():
            return RpcError(INVALID_REQUEST, "another request with this id is under way")
        if len(session.calls) >= self._limits.calls_per_session:
            return rpc_error(Overloaded("too many requests are under way; wait for one to end"))
        if self.drains.is_set() or session.closed:
            return rpc_error(Draining())
        return None

    async def _refuse(self, request: Request, fault: RpcError) -> Reply:
        return error_reply(request.id, fault.code, fault.message, fault.data)

    def take(self, session: Session, frame: Notification | Response) -> None:
        """Take a notification, or an answer to a question of ours. Unknown ones are ignored, as JSON-RPC wants it."""
        if isinstance(frame, Response):
            session.take_answer(frame)
        elif frame.method == "notifications/initialized" and session.opened and not session.closed:
            try:
                self.changes.join(session)
            except Overloaded:  # nobody waits for an answer to a notification; that it went unheard is on record
                self.rejections.note(session.transport, "too_many_listeners")
        elif frame.method == "notifications/cancelled":
            task = session.calls.get(_id_in(frame.params))
            if task is not None:
                task.cancel()

    def reject(self, transport: str, fault: BadFrame) -> Reply:
        """Record bytes that are no request, and return what is answered."""
        self.rejections.note(transport, fault.reason)
        return error_reply(fault.id, fault.code, fault.message, {"reason": fault.reason})

    async def _serve(
        self, session: Session, request: Request, outlet: Outlet, headers: Mapping[str, str] | None, era: Era
    ) -> Reply:
        try:
            asked = self._asked(session, request, outlet, headers, era)
            method = REQUESTS.get(request.method)
            if method is None or method.handler is None or era not in method.eras:
                raise RpcError(METHOD_NOT_FOUND, f"Method not found: {request.method}")
            if era == "handshake" and not session.opened and method.name not in ("initialize", "ping"):
                raise RpcError(INVALID_REQUEST, "send initialize first")
            check_params(method, request.params)
            if method.rated:
                self._admit(session.principal)
            if headers is not None and request.method == "tools/call" and era == "modern":
                self._param_headers.check(asked, headers)
            return result_reply(request.id, await self._handlers[method.handler](asked))
        except RpcError as fault:
            if not fault.recorded:
                self.rejections.note(session.transport, REASONS.get(fault.code, "other"))
            return error_reply(request.id, fault.code, fault.message, fault.data)
        except OmniError as error:
            if isinstance(error, RateLimited):
                self.rejections.note(session.transport, error.code)
            told = rpc_error(error)
            return error_reply(request.id, told.code, told.message, told.data)
        except Exception:
            self._logger.exception("a request failed inside the gateway", method=request.method)
            return error_reply(request.id, INTERNAL_ERROR, "Internal error")

    def _asked(
        self, session: Session, request: Request, outlet: Outlet, headers: Mapping[str, str] | None, era: Era
    ) -> Asked:
        """Read what the request says of its client, and refuse one that contradicts itself."""
        params = request.params
        if era == "handshake":
            meta = meta_of(params)
            return Asked(session=session, id=request.id, method=request.method, params=params, meta=meta, outlet=outlet,
                         era=era, client=session.client, trace=trace_id_of(meta))  # fmt: skip
        meta = check_envelope(params)
        if headers is not None:
            check_headers(request.method, params, meta, headers)
        client = modern_client(meta, session.transport)
        return Asked(session=session, id=request.id, method=request.method, params=params, meta=meta, outlet=outlet,
                     era=era, client=client, trace=trace_id_of(meta),
                     log_level=meta.get(META_LOG_LEVEL))  # fmt: skip

    def _admit_run(self, asked: Asked) -> None:
        """Count a run that has to be opened, as a new session is counted; else each new trace would open one.

        Raises:
            RateLimited: there were too many in the last minute.
        """
        if REQUESTS[asked.method].rated:
            return  # it was counted when it came
        try:
            self._admit(asked.session.principal)
        except RateLimited as error:
            self.rejections.note(asked.session.transport, error.code)
            raise

    async def _list(self, asked: Asked) -> bytes:
        session = asked.session
        cursor = asked.params.get("cursor")
        surface = self._surfaces.wanted(session.profile, asked.client.name)
        return await self._lists.page(asked.method, session.principal, session.profile, asked.era, cursor, surface)

    def _call(self, asked: Asked) -> Awaitable[JsonObject]:
        return self._calls.serve(self._surfaces.turned(asked))


def _forget(calls: dict[int | str, asyncio.Future[Reply]], request_id: int | str, task: asyncio.Future[Reply]) -> None:
    if calls.get(request_id) is task:  # the id may be in use again already
        del calls[request_id]


def _id_in(params: JsonObject) -> int | str:
    found = params.get("requestId")
    return found if isinstance(found, int | str) and not isinstance(found, bool) else ""
