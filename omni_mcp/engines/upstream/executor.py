"""UpstreamExecutor runs calls at the servers that their tools, resources and prompts came from."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from functools import partial

from omni_mcp.contracts.call import Answer, Call, InputRequired, Result
from omni_mcp.contracts.errors import (
    CapabilityMissing,
    Failed,
    Internal,
    NotFound,
    OmniError,
    OutcomeUnknown,
    TimedOut,
    UpstreamProtocol,
    UpstreamRefused,
    UpstreamUnavailable,
)
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.ports import KeepsDeadlines
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.upstream.bridge import (
    Stuck,
    asked_of_caller,
    converse,
    deliver,
    input_required,
    keyed,
    second_round,
)
from omni_mcp.engines.upstream.connection import Connection
from omni_mcp.engines.upstream.envelope import caller_of
from omni_mcp.engines.upstream.exchange import Answered, Exchange, Question
from omni_mcp.engines.upstream.faults import PASSING_STATUSES, Garbled, RemoteError
from omni_mcp.engines.upstream.own_name import OUR_PREFIX, in_its_own_name
from omni_mcp.engines.upstream.pages import can_open, declined, pages_of, to_be_opened
from omni_mcp.engines.upstream.parking import Parked, Parking
from omni_mcp.engines.upstream.roots import Roots, roots_of
from omni_mcp.engines.upstream.talk import HeaderDeclarations, Talk
from omni_mcp.engines.upstream.wire.seam import WireFault
from omni_mcp.protocol.headers import declared_headers
from omni_mcp.protocol.rpc import (
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    MISSING_CAPABILITY,
    PAGE_REQUIRED,
    RESOURCE_NOT_FOUND,
)
from omni_mcp.time_limits import TimeLimits

META_REMOTE_ERROR = f"{OUR_PREFIX}upstream_error"
DECLARATIONS_KEPT = 4096
PATIENCE_S = 0.3  # a server that is left alone for longer than this is not tried again within one call
RELAYED = (INVALID_PARAMS, METHOD_NOT_FOUND)
METHODS = {"tool": "tools/call", "resource": "resources/read", "prompt": "prompts/get"}
MEMBERS = {"tool": "content", "resource": "contents", "prompt": "messages"}

ConnectionOf = Callable[[str, str], Connection]
RootedConnectionOf = Callable[[str, str, Roots], Connection]


class UpstreamExecutor(KeepsDeadlines):
    """Port `Executor` for the binding `mcp_remote`.

    Args:
        connection_of: (server, key of the principal) to a connection; raises UpstreamUnavailable.
        rooted: names of the servers that take their directories from their client.
        rooted_connection_of: the same, to the connection of such a server for these directories.
        own_uri: from a public URI to the server's own.
    """

    def __init__(
        self, connection_of: ConnectionOf, rooted_connection_of: RootedConnectionOf, *, rooted: Collection[str],
        parking: Parking, own_uri: Callable[[str], str] = lambda uri: uri,
    ) -> None:  # fmt: skip
        self._connection_of = connection_of
        self._rooted_connection_of = rooted_connection_of
        self._rooted = rooted
        self._parking = parking
        self._own_uri = own_uri
        self._declared: OrderedDict[str, HeaderDeclarations] = OrderedDict()
        self._limits = TimeLimits()

    async def execute(self, call: Call) -> Result:
        """As the port. Cancelling tells the server at once.

        Raises:
            UpstreamUnavailable, UpstreamProtocol, OutcomeUnknown, TimedOut, NotFound: as they say.
        """
        tool = call.tool
        if tool is None:
            raise Internal(f"{call.name!r} cannot run here", detail="reached an executor without a definition")
        call.trail.where = "remote"
        try:
            with self._limits.within(tool.limits.timeout_s) as time_left:
                return await self._execute(call, tool)
        except Failed as failed:
            failed.ends_s = time_left.ends_s
            raise
        except TimeoutError as error:
            raise TimedOut(f"{call.name!r} did not answer within {tool.limits.timeout_s:g} s") from error

    async def _execute(self, call: Call, tool: Entry) -> Result:
        if call.round is not None and isinstance(call.round.state, dict) and "parked" in call.round.state:
            return await self._resume(call, tool)
        if call.round is not None and declined(call):
            return _not_opened(call)
        if tool.server in self._rooted:
            roots = await roots_of(call)
            if isinstance(roots, InputRequired):
                return roots
            connection = self._rooted_connection_of(tool.server, call.principal.key, roots)
        else:
            connection = self._connection_of(tool.server, call.principal.key)
        let_go = connection.hold()
        try:
            try:
                talk = connection.open_talk() or await connection.talk()
            except OmniError as error:
                call.trail.dispatched = call.round is not None
                if isinstance(error, UpstreamUnavailable):
                    raise _about(call, error, connection) from error
                raise
            try:
                return await self._attempt(call, tool, connection, talk)
            except WireFault as fault:
                if fault.status is None and talk.wire.outlives_its_server and not talk.session_lost:
                    connection.call_failed(fault.reason)
                lost = self._lost(call, tool, fault)
                if connection.health.delay_s() > PATIENCE_S:
                    lost.passing = False
                raise lost from fault
        finally:
            let_go()

    async def _attempt(self, call: Call, tool: Entry, connection: Connection, talk: Talk) -> Result:
        exchange = await talk.start(
            METHODS[call.kind], self._params(call, tool, talk), caller=caller_of(call), declared=self._headers(tool)
        )
        return await self._follow(call, tool, connection, talk, exchange)

    async def _follow(self, call: Call, tool: Entry, connection: Connection, talk: Talk, exchange: Exchange) -> Result:
        """Stay with a request until it is answered, or park it."""
        started = time.perf_counter()
        parked = False
        try:
            may_park = partial(self._parking.has_room, call.principal.key)
            said = await converse(call, talk, exchange, may_park=may_park)
            if isinstance(said, Stuck):
                parked = True
                return self._park(call, tool, connection, talk, exchange, keyed(said.questions))
            latency_ms = (time.perf_counter() - started) * 1000
            connection.answered(latency_ms)
            return self._result(call, tool, talk, said, latency_ms)
        except RemoteError as error:
            connection.answered((time.perf_counter() - started) * 1000)
            if error.code == PAGE_REQUIRED and can_open(call) and (pages := pages_of(error.data)):
                return _to_pages(call, tool, talk, pages, error)
            return _refused_by_server(call, tool, error)
        except Garbled as error:
            raise UpstreamProtocol(
                f"the server behind it answered with something that is not taken as a message: {error.why}",
                detail=f"{tool.server}: {error.reason}",
            ) from error
        finally:
            if not parked:
                exchange.cancel("the caller cancelled, or waited too long")

    def _park(
        self, call: Call, tool: Entry, connection: Connection, talk: Talk, exchange: Exchange,
        questions: dict[str, Question],
    ) -> InputRequired:  # fmt: skip
        exchange.parked = True
        key = self._parking.park(
            Parked(
                call=call.id, principal=call.principal.key, server=tool.server, connection=connection, talk=talk,
                exchange=exchange, questions=questions, let_go=connection.hold(),
            )
        )  # fmt: skip
        return InputRequired(requests=asked_of_caller(questions), state={"parked": key}, where="remote")

    async def _resume(self, call: Call, tool: Entry) -> Result:
        assert call.round is not None
        parked = self._parking.take(call.round.state["parked"], call=call.id, principal=call.principal.key)
        if parked is None:
            raise OutcomeUnknown(f"{call.name!r} waits for input no longer", detail=f"{tool.server}: not parked")
        connection = parked.connection
        parked.exchange.parked = False
        try:
            left = deliver(parked.talk, parked.exchange, parked.questions, call.round.responses)
            if left and not parked.exchange.over:
                return self._park(call, tool, connection, parked.talk, parked.exchange, left)
            return await self._follow(call, tool, connection, parked.talk, parked.exchange)
        except WireFault as fault:
            raise self._lost(call, tool, fault) from fault
        finally:
            parked.let_go()

    def _params(self, call: Call, tool: Entry, talk: Talk) -> JsonObject:
        if call.kind == "resource":
            own = tool.definition.get("uri") if tool.kind == "resource" else self._own_uri(call.name)
            params: JsonObject = {"uri": own}
        elif call.kind == "prompt" and not call.arguments:
            params = {"name": tool.name}
        else:
            params = {"name": tool.name, "arguments": call.arguments}
        return {**params, **second_round(call)} if talk.peer.era == "modern" else params

    def _headers(self, tool: Entry) -> HeaderDeclarations:
        if tool.kind != "tool":
            return ()
        declared = self._declared.get(tool.digest)
        if declared is None:
            declared = self._declared[tool.digest] = declared_headers(tool.definition.get("inputSchema"))
            while len(self._declared) > DECLARATIONS_KEPT:
                self._declared.popitem(last=False)
        return declared

    def _result(self, call: Call, tool: Entry, talk: Talk, said: Answered, latency_ms: float) -> Result:
        result = said.result
        kind = result.get("resultType", "complete") if talk.peer.era == "modern" else "complete"
        if kind == "input_required":
            return input_required(tool.server, result)
        member = MEMBERS[call.kind]
        if kind != "complete" or not _has_objects(result.get(member)):
            if said.large is not None:
                said.large.close()
            raise UpstreamProtocol(
                "the server behind it answered with something that is no result of such a request",
                detail=f"{tool.server}: resultType {str(kind)[:64]!r}, {member} {type(result.get(member)).__name__}",
            )
        is_error = call.kind == "tool" and result.get("isError") is True
        return Answer(
            body=in_its_own_name(result), is_error=is_error, where="remote", large=said.large,
            usage={"upstream_ms": round(latency_ms, 3)},
        )  # fmt: skip

    def _lost(self, call: Call, tool: Entry, fault: WireFault) -> OmniError:
        """Return what became of a call whose server, or the way to it, was lost."""
        detail = f"{tool.server}: {fault.reason}"
        data: dict[str, object] = {} if fault.retry_after_s is None else {"retry_after_s": fault.retry_after_s}
        did_nothing = fault.session_lost or not fault.sent  # a server that did not know who asked did nothing
        if did_nothing:
            call.trail.dispatched = call.round is not None
        elif not tool.repeatable:
            return OutcomeUnknown(
                f"the server behind {call.name!r} was lost during the call; it may or may not have taken effect",
                detail=detail, data=data,
            )  # fmt: skip
        what = "cannot be reached" if did_nothing else "was lost before it answered"
        lost = UpstreamUnavailable(f"the server behind {call.name!r} {what}", detail=detail, data=data)
        lost.passing = _is_passing(tool, fault)
        return lost


def _is_passing(tool: Entry, fault: WireFault) -> bool:
    """Whether sending it again may help, and is safe: a status other than a lost session may hide an effect."""
    if fault.session_lost or fault.status is None:
        return True
    return fault.status in PASSING_STATUSES and tool.repeatable


def _about(call: Call, error: UpstreamUnavailable, connection: Connection) -> UpstreamUnavailable:
    """Return *error* with the name that its caller knows: a connection knows of no tools."""
    told = UpstreamUnavailable(f"{call.name!r}: {error.message}", detail=error.detail, data=error.data)
    told.passing = error.passing is not False and connection.health.delay_s() <= PATIENCE_S
    return told


def _to_pages(call: Call, tool: Entry, talk: Talk, pages: list[JsonObject], error: RemoteError) -> InputRequired:
    """A person has to open pages before the call can do anything: the client is told so in the words of its era.

    Raises:
        UpstreamRefused: for a handshake client, in the server's own words.
    """
    if call.client.era == "modern":
        return to_be_opened(pages)
    for page in pages:
        talk.pages.opened(page, call.link)
    raise UpstreamRefused(error.message, detail=f"{tool.server}: {error}", data={"upstream_error": _said(error)})


def _not_opened(call: Call) -> Answer:
    text = "The server needs a page to be opened first, and the person did not agree to that."
    if call.kind != "tool":
        raise UpstreamRefused(text)
    return Answer(body={"content": [{"type": "text", "text": text}], "isError": True}, is_error=True, where="remote")


def _said(error: RemoteError) -> JsonObject:
    said: JsonObject = {"code": error.code, "message": error.message}
    return said if error.data is None else {**said, "data": error.data}


def _refused_by_server(call: Call, tool: Entry, error: RemoteError) -> Answer:
    """A server's JSON-RPC error is its answer: what the protocol has words for goes to the client's program in these.

    Anything else is, for a tool, an answer that the model reads.

    Raises:
        NotFound: the resource is not there.
        CapabilityMissing, UpstreamRefused: as they say; `data` holds the server's own words.
        UpstreamProtocol: it refused for another reason.
    """
    said = _said(error)
    if error.code == MISSING_CAPABILITY and call.client.era == "modern":
        required = error.data.get("requiredCapabilities") if isinstance(error.data, dict) else None
        raise CapabilityMissing(
            "the client lacks a capability that the server needs", detail=f"{tool.server}: {error}",
            data={"required": required if isinstance(required, dict) else {}},
        )  # fmt: skip
    if error.code in RELAYED and (call.kind != "resource" or error.code != INVALID_PARAMS):
        raise UpstreamRefused(error.message, detail=f"{tool.server}: {error}", data={"upstream_error": said})
    if call.kind == "tool":
        text = f"The server answered with an error: {error.message} ({error.code})"
        body: JsonObject = {"content": [{"type": "text", "text": text}], "isError": True}
        return Answer(body={**body, "_meta": {META_REMOTE_ERROR: said}}, is_error=True, where="remote")
    if call.kind == "resource" and error.code in (RESOURCE_NOT_FOUND, INVALID_PARAMS):
        raise NotFound("there is no such resource", detail=f"{tool.server}: {error}")
    raise UpstreamProtocol(
        f"the server behind it answered with an error: {error.message}", detail=f"{tool.server}: {error}",
        data={"upstream_error": said},
    )  # fmt: skip


def _has_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
