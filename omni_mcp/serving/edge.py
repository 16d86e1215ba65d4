"""Edge: where the protocol ends. Every transport hands its frames to this object and sends back what it answers."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import structlog

from omni_mcp.chain.decide import ACTIONS
from omni_mcp.contracts.call import ClientFacts, Era, Handler, Principal
from omni_mcp.contracts.errors import Draining, LogUnavailable, OmniError, Overloaded, RateLimited
from omni_mcp.contracts.events import AccessRefusedEvent
from omni_mcp.contracts.json import JsonObject, digest
from omni_mcp.contracts.ports import Catalog, Completer, Policy, RunLog
from omni_mcp.contracts.tool import CallKind, Entry
from omni_mcp.protocol.capabilities import ServerInfo, discover_result, initialize_result
from omni_mcp.protocol.eras import (
    LOG_LEVELS,
    META_LOG_LEVEL,
    META_SUBSCRIPTION,
    check_envelope,
    era_of,
    meta_of,
    negotiate,
    short_text,
)
from omni_mcp.protocol.frames import BadFrame, Notification, Request, Response
from omni_mcp.protocol.headers import check_headers, check_param_headers, declared_headers
from omni_mcp.protocol.methods import REQUESTS, URI_LIMIT, check_params, string_at
from omni_mcp.protocol.outcome import rpc_error, unknown_target
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
from omni_mcp.serving.changes import Changes, ListKind, Release
from omni_mcp.serving.listen_stream import ListenStream
from omni_mcp.serving.lists import Lists
from omni_mcp.serving.metrics import Metrics
from omni_mcp.serving.refusals import Refusals
from omni_mcp.serving.rejections import Rejections
from omni_mcp.serving.room import ROOM_BYTES, SHARE_BYTES, Room
from omni_mcp.serving.run_of import RunOf, ThreadOf
from omni_mcp.serving.runbook import CloseReason, Runbook
from omni_mcp.serving.session import SUBSCRIPTIONS_LIMIT, Outlet, Session, Transport
from omni_mcp.serving.states import States
from omni_mcp.serving.surface import Surfaces
from omni_mcp.serving.under_way import UnderWay

REASONS = {
    INVALID_REQUEST: "invalid_request", METHOD_NOT_FOUND: "unknown_method", INVALID_PARAMS: "invalid_params",
    HEADER_MISMATCH: "header_mismatch", UNSUPPORTED_VERSION: "unsupported_version",
}  # fmt: skip
EMPTY_DIGEST = digest({})
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
Watch = Callable[[Entry, Principal, str], Awaitable[Release]]
MaySee = Callable[[Principal, Entry, str], Awaitable[bool]]


async def everybody(principal: Principal, entry: Entry, uri: str) -> bool:
    """For resources that are the same for every principal."""
    return True


async def no_thread(principal: Principal, meta: JsonObject) -> str | None:
    """For a gateway without threads."""
    return None


async def nobody_reports(entry: Entry, principal: Principal, uri: str) -> Release:
    """For resources whose updates the gateway knows of by itself."""
    return lambda: None


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
        completer_of: Callable[[Entry], Completer | None] = lambda entry: None,
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
        self._catalog = catalog
        self._policy = policy
        self._admit = admit
        self._may_see = may_see
        self._is_profile = is_profile
        self._thread_of = thread_of
        self._run_of = partial(RunOf, runbook, thread_of, self._admit_run)
        self._refusals = Refusals(log, rejections)
        self._runbook = runbook
        self.rejections = rejections
        self.changes = changes
        self.metrics = metrics
        self._completer_of = completer_of
        self._watch = watch
        self._limits = limits or EdgeLimits()
        self.room = Room(limit_bytes=self._limits.room_bytes, share_bytes=self._limits.share_bytes)
        self._info = info
        self._stamp = info.stamp()
        self._surfaces = surfaces or Surfaces(policy)
        self._lists = Lists(
            catalog, policy, self._surfaces, key=state_key, stamp=self._stamp, page_size=self._limits.page_size
        )
        self._calls = Calls(
            handle, policy, states=States(state_key), stamp=self._stamp, metrics=metrics, run_of=self._run_of,
            end_round=end_round, id_of=id_of, now_ns=now_ns,
        )  # fmt: skip
        self._sessions: set[Session] = set()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._listens: dict[asyncio.Event, Session] = {}
        self._declared: OrderedDict[str, tuple[tuple[tuple[str, ...], str, str], ...]] = OrderedDict()
        self.held = False  # no new call is taken, and everything else is served
        self.drains = asyncio.Event()  # set once no new request is taken
        self._profiles: dict[str, tuple[str, bool]] = {}
        self._logger = structlog.get_logger("omni_mcp.edge")
        self._be_watched()
        self._handlers: dict[str, Callable[[Asked], Awaitable[JsonObject | bytes]]] = {
            "initialize": self._initialize,
            "ping": self._ping,
            "discover": self._discover,
            "list": self._list,
            "call": self._call,
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "complete": self._complete,
            "set_level": self._set_level,
            "listen": self._listen,
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
        if self._is_profile(name):
            return True
        version, known = self._profiles.get(name, ("", False))
        if version != self._catalog.version:
            version = self._catalog.version
            kinds = ("tool", "resource", "resource_template", "prompt")
            known = any(self._catalog.entries(name, kind) for kind in kinds)
            if len(self._profiles) >= 256:
                self._profiles.clear()  # names that clients made up
            self._profiles[name] = (version, known)
        return known

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
        for ended in list(self._listens):
            ended.set()
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
                self._check_param_headers(asked, headers)
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
            return Asked(session=session, id=request.id, method=request.method, params=params, meta=meta_of(params),
                         outlet=outlet, era=era, client=session.client)  # fmt: skip
        meta = check_envelope(params)
        if headers is not None:
            check_headers(request.method, params, meta, headers)
        client = modern_client(meta, session.transport)
        return Asked(session=session, id=request.id, method=request.method, params=params, meta=meta, outlet=outlet,
                     era=era, client=client, log_level=meta.get(META_LOG_LEVEL))  # fmt: skip

    def _check_param_headers(self, asked: Asked, headers: Mapping[str, str]) -> None:
        session = asked.session
        entry = self._catalog.find(session.profile, "tool", asked.params["name"], project=session.principal.project)
        if entry is None:
            return  # who may not see the tool gets the same answer as for one that is not there
        declared = self._declared.get(entry.digest)
        if declared is None:
            declared = self._declared[entry.digest] = declared_headers(entry.definition.get("inputSchema"))
            while len(self._declared) > 4096:
                self._declared.popitem(last=False)
        if declared:
            check_param_headers(declared, asked.params.get("arguments") or {}, headers)

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

    async def _initialize(self, asked: Asked) -> JsonObject:
        session = asked.session
        if session.opened:
            raise RpcError(INVALID_REQUEST, "initialize was already sent on this connection")
        version = negotiate(asked.params["protocolVersion"])
        session.thread = await self._thread_of(session.principal, asked.meta)
        client = asked.params.get("clientInfo") or {}
        session.version = version
        session.client = ClientFacts(
            name=short_text(client.get("name")),
            version=short_text(client.get("version")),
            era="handshake",
            protocol_version=version,
            transport=session.transport,
            capabilities=asked.params.get("capabilities") or {},
        )
        try:
            session.run = await self._runbook.open(session.principal, session.client, thread=session.thread)
        except LogUnavailable:
            session.run = None  # its first call opens the run, or is refused: the client need not connect again
        return initialize_result(self._info, version)

    async def _ping(self, asked: Asked) -> JsonObject:
        return {}

    async def _discover(self, asked: Asked) -> JsonObject:
        return discover_result(self._info)

    async def _list(self, asked: Asked) -> bytes:
        session = asked.session
        cursor = asked.params.get("cursor")
        surface = self._surfaces.wanted(session.profile, asked.client.name)
        return await self._lists.page(asked.method, session.principal, session.profile, asked.era, cursor, surface)

    def _call(self, asked: Asked) -> Awaitable[JsonObject]:
        return self._calls.serve(self._surfaces.turned(asked))

    async def _set_level(self, asked: Asked) -> JsonObject:
        level = asked.params["level"]
        if level not in LOG_LEVELS:
            raise RpcError(INVALID_PARAMS, f"level must be one of {', '.join(LOG_LEVELS)}", {"path": "$.params.level"})
        asked.session.log_level = level
        return {}

    async def _subscribe(self, asked: Asked) -> JsonObject:
        session, uri = asked.session, asked.params["uri"]
        if len(session.subscriptions) >= SUBSCRIPTIONS_LIMIT and uri not in session.subscriptions:
            raise Overloaded(f"one client may subscribe to {SUBSCRIPTIONS_LIMIT} resources")
        if not await self._permitted(asked, "resource", uri, may_see=self._may_see):
            raise unknown_target("resource", uri, era=asked.era)
        session.subscriptions.add(uri)
        self.changes.join(session)
        release = await self._watched(session, uri)
        self.changes.subscribe(session, uri, release, reader=session.principal)
        return {}

    async def _watched(self, session: Session, uri: str) -> Release:
        """Have updates of *uri* reported to us by the server that it is of; returns how to undo that."""
        entry = self._catalog.find(session.profile, "resource", uri, project=session.principal.project)
        return await self._watch(entry, session.principal, uri) if entry is not None else lambda: None

    async def _unsubscribe(self, asked: Asked) -> JsonObject:
        asked.session.subscriptions.discard(asked.params["uri"])
        self.changes.unsubscribe(asked.session, asked.params["uri"])
        return {}

    async def _complete(self, asked: Asked) -> JsonObject:
        kind, name, entry = self._completed(asked)
        argument = asked.params["argument"]
        string_at(argument.get("name"), path="params.argument.name")
        string_at(argument.get("value"), path="params.argument.value", limit=URI_LIMIT)
        if not await self._permitted(asked, kind, name, entry):
            raise unknown_target(kind, name, era=asked.era)
        assert entry is not None  # the policy never allows the unknown resource
        completer = self._completer_of(entry)
        found: JsonObject = {"values": [], "hasMore": False}
        if completer is not None:
            context = asked.params.get("context") or {}
            found = await completer.complete(asked.session.principal, entry, argument, context)
        result: JsonObject = {"completion": found}
        return {"resultType": "complete", "_meta": self._stamp, **result} if asked.era == "modern" else result

    def _completed(self, asked: Asked) -> tuple[CallKind, str, Entry | None]:
        """Return what a completion is about."""
        ref, profile, project = asked.params["ref"], asked.session.profile, asked.session.principal.project
        if ref.get("type") == "ref/prompt":
            name = string_at(ref.get("name"), path="params.ref.name")
            return "prompt", name, self._catalog.find(profile, "prompt", name, project=project)
        if ref.get("type") == "ref/resource":
            uri = string_at(ref.get("uri"), path="params.ref.uri", limit=URI_LIMIT)
            templates = self._catalog.entries(profile, "resource_template", project=project)
            entry = next((entry for public, entry in templates if public == uri), None)
            return "resource", uri, entry or self._catalog.find(profile, "resource", uri, project=project)
        path = {"path": "$.params.ref.type"}
        raise RpcError(INVALID_PARAMS, "params.ref.type must be ref/prompt or ref/resource", path)

    async def _permitted(
        self, asked: Asked, kind: CallKind, name: str, entry: Entry | None = None, *, may_see: MaySee = everybody
    ) -> bool:
        """Ask the policy about a request that is no call; a refusal is on record in the caller's run.

        A quarantined target is unknown, as it is to calls.
        """
        session = asked.session
        found = entry or self._catalog.find(session.profile, kind, name, project=session.principal.project)
        if found is not None and found.state in ("quarantined", "pin_missing"):
            found = None
        async with self._run_of(asked) as run:
            decision = self._policy.decide(
                action=ACTIONS[kind], principal=session.principal, entry=found, name=name, run=run,
                arguments_digest=EMPTY_DIGEST, arguments_bytes=2,
            )  # fmt: skip
            allowed = decision.verdict == "allow" and found is not None
            if allowed and found is not None and await may_see(session.principal, found, name):
                return True
            detail = "; ".join(decision.errors) or ("unknown target" if found is None else decision.verdict)
            detail = "not the caller's" if allowed else detail
            refusal = AccessRefusedEvent(
                method=asked.method, target=name, principal=session.principal.key, rules=decision.rules, detail=detail
            )
            await self._refusals.note(run, session.transport, refusal)
            return False

    async def _listen(self, asked: Asked) -> JsonObject:
        """Serve one modern subscription until the client cancels it or the gateway stops."""
        if sum(owner is asked.session for owner in self._listens.values()) >= self._limits.listens_per_session:
            raise Overloaded("too many subscriptions on this connection")
        stream = await self._granted_stream(asked)
        self.changes.join(stream)
        self._listens[stream.ended] = asked.session
        try:
            for uri in stream.uris:
                release = await self._watched(asked.session, uri)
                self.changes.subscribe(stream, uri, release, reader=asked.session.principal)
            stream.acknowledge()
            await stream.ended.wait()
        finally:
            self._listens.pop(stream.ended, None)
            self.changes.leave(stream)
        return {"resultType": "complete", "_meta": {**self._stamp, META_SUBSCRIPTION: asked.id}}

    async def _granted_stream(self, asked: Asked) -> ListenStream:
        wanted = asked.params["notifications"]
        uris = wanted.get("resourceSubscriptions") or []
        if not isinstance(uris, list) or len(uris) > SUBSCRIPTIONS_LIMIT:
            path = {"path": "$.params.notifications.resourceSubscriptions"}
            raise RpcError(INVALID_PARAMS, f"resourceSubscriptions must be at most {SUBSCRIPTIONS_LIMIT} URIs", path)
        granted = []
        for uri in uris:
            string_at(uri, path="params.notifications.resourceSubscriptions", limit=URI_LIMIT)
            if await self._permitted(asked, "resource", uri, may_see=self._may_see):
                granted.append(uri)
        kinds: tuple[ListKind, ...] = ("tools", "resources", "prompts")
        named = frozenset(kind for kind in kinds if wanted.get(f"{kind}ListChanged") is True)
        return ListenStream(asked.outlet, asked.id, kinds=named, uris=granted)


def _forget(calls: dict[int | str, asyncio.Future[Reply]], request_id: int | str, task: asyncio.Future[Reply]) -> None:
    if calls.get(request_id) is task:  # the id may be in use again already
        del calls[request_id]


def _id_in(params: JsonObject) -> int | str:
    found = params.get("requestId")
    return found if isinstance(found, int | str) and not isinstance(found, bool) else ""
