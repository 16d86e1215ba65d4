"""Calls: a request for a tool, a resource or a prompt becomes one `Call`, however many rounds it takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import lru_cache

import orjson

from omni_mcp.contracts.call import (
    Answer,
    AskRefused,
    Call,
    ClientFacts,
    Era,
    Handler,
    InputRequired,
    Principal,
    Result,
    Round,
    Trail,
)
from omni_mcp.contracts.errors import Cancelled, InvalidResult, OmniError, OutcomeUnknown
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.json import JsonObject, digest, verbatim
from omni_mcp.contracts.ports import Policy
from omni_mcp.contracts.tool import CallKind
from omni_mcp.protocol.eras import (
    ASKS,
    META_CAPABILITIES,
    META_CLIENT,
    META_VERSION,
    check_version,
    may_ask,
    short_text,
)
from omni_mcp.protocol.outcome import answered, failed_call
from omni_mcp.protocol.rpc import INVALID_PARAMS, MISSING_CAPABILITY, RpcError
from omni_mcp.serving.link import Link
from omni_mcp.serving.metrics import Metrics
from omni_mcp.serving.session import Outlet, Session, Transport
from omni_mcp.serving.states import BadState, Bound, Kept, NoRoom, States

CAPABILITIES_KEPT_BYTES = 1024
ROUNDS_LIMIT = 10  # what the clients of both SDKs drive at most
KINDS: dict[str, tuple[CallKind, str]] = {
    "tools/call": ("tool", "name"),
    "resources/read": ("resource", "uri"),
    "prompts/get": ("prompt", "name"),
}

EndRound = Callable[[str, OmniError], None]
IdOf = Callable[[Principal, CallKind, str, JsonObject], str]


def fresh_id(principal: Principal, kind: CallKind, name: str, arguments: JsonObject) -> str:
    """Return a new id, whatever is called."""
    return new_id()


@dataclass(slots=True, kw_only=True)  # not frozen, which takes four times as long to make: each request has one
class Asked:
    """One request, checked: what every handler of the edge gets."""

    session: Session
    id: int | str
    method: str
    params: JsonObject
    meta: JsonObject
    outlet: Outlet
    era: Era
    client: ClientFacts
    trace: str | None = None
    log_level: str | None = None


RunOf = Callable[[Asked], AbstractAsyncContextManager[str]]


class Calls:
    """Runs calls through the chain and answers in the caller's era."""

    def __init__(
        self,
        handle: Handler,
        policy: Policy,
        *,
        states: States,
        stamp: JsonObject,
        metrics: Metrics,
        run_of: RunOf,
        end_round: EndRound,
        id_of: IdOf = fresh_id,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._id_of = id_of
        self._handle = handle
        self._policy = policy
        self._states = states
        self._stamp = stamp
        self._metrics = metrics
        self._run_of = run_of
        self._end_round = end_round
        self._now_ns = now_ns

    async def serve(self, asked: Asked) -> JsonObject:
        """Answer `tools/call`, `resources/read` or `prompts/get`.

        Raises:
            RpcError: as the protocol wants it for this kind of call.
        """
        kind, key = KINDS[asked.method]
        name: str = asked.params[key]
        arguments = _arguments(asked, kind)
        started = time.perf_counter()
        call_id, outcome = None, "internal"
        try:
            async with self._run_of(asked) as run:
                call = self._call(asked, kind, name, arguments, run)
                call_id = call.id
                result = await self._handle(call)
                if isinstance(result, InputRequired) and asked.era == "handshake":
                    result = await self._drive(call, result)
                outcome = _outcome_of(result)
                return self._wire(asked, call, result)
        except OmniError as error:
            outcome = error.code
            return failed_call(kind, name, error, call=call_id, era=asked.era, stamp=self._stamp)
        except RpcError:
            outcome = "rejected"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.call_ended(kind, outcome, time.perf_counter() - started)

    def _call(self, asked: Asked, kind: CallKind, name: str, arguments: JsonObject, run: str) -> Call:
        token = asked.meta.get("progressToken")
        link = Link(
            asked.session,
            asked.outlet,
            era=asked.era,
            progress_token=token if isinstance(token, str | int) and not isinstance(token, bool) else None,
            log_level=asked.log_level,
        )
        resumes = asked.era == "modern" and asked.params.get("requestState") is not None
        call = Call.of(
            id="" if resumes else self._id_of(asked.session.principal, kind, name, arguments),
            run=run,
            principal=asked.session.principal,
            client=asked.client,
            kind=kind,
            name=name,
            arguments=arguments,
            profile=asked.session.profile,
            link=link,
            meta=asked.meta,
            trace=asked.trace,
        )
        return self._resumed(asked, call) if resumes else call

    async def _drive(self, call: Call, asking: InputRequired) -> Result:
        """For a handshake client: push what the tool asks, and go on until it answers."""
        result: Result = asking
        number = 1
        while isinstance(result, InputRequired):
            number += 1
            if number > ROUNDS_LIMIT:
                raise self._ended(call, InvalidResult(f"{call.name!r} asked for input more than {ROUNDS_LIMIT} times"))
            responses = await self._push(call, result)
            follow = Round(
                number=number, intent_seq=result.intent_seq, carry=result.carry, state=result.state, responses=responses
            )
            result = await self._handle(call.but(round=follow, trail=Trail()))
        return result

    async def _push(self, call: Call, wanted: InputRequired) -> JsonObject:
        try:
            return {
                key: await call.link.ask(str(question.get("method")), dict(question.get("params") or {}))
                for key, question in wanted.requests.items()
            }
        except AskRefused as refused:
            gone = OutcomeUnknown(f"{call.name!r} needs input that this client did not give", detail=str(refused))
            raise self._ended(call, gone) from refused
        except asyncio.CancelledError:
            self._end_round(call.id, Cancelled("cancelled by the caller while it was asked for input"))
            raise

    def _ended(self, call: Call, error: OmniError) -> OmniError:
        """Record the outcome of a call that waits for input and will not get it."""
        self._end_round(call.id, error)
        return error

    def _bound(self, asked: Asked, call: Call) -> Bound:
        return Bound(
            principal=call.principal.key,
            profile=call.profile,
            method=asked.method,
            name=call.name,
            arguments_digest=digest(call.arguments),
            policy_version=self._policy.version,
        )

    def _resumed(self, asked: Asked, call: Call) -> Call:
        """Return the same call in its next round.

        Raises:
            RpcError: -32602: the state was changed, used, is too old, or was made for another request.
        """
        given = asked.params.get("inputResponses") or {}
        for key, response in given.items():  # before the state is used up: a mistake can be mended
            if not isinstance(response, dict):
                path = {"path": f"$.params.inputResponses.{key}"}
                raise RpcError(INVALID_PARAMS, "an input response must be an object", path)
        try:
            kept = self._states.take(
                asked.params["requestState"], bound=self._bound(asked, call), now_ns=self._now_ns()
            )
        except BadState as fault:
            raise RpcError(
                INVALID_PARAMS,
                "requestState is not valid; send the request again without it",
                {"path": "$.params.requestState"},
            ) from fault
        responses = {key: given[key] for key in kept.requests if key in given}
        follow = Round(
            number=kept.round, intent_seq=kept.intent_seq, carry=kept.carry, state=kept.state, responses=responses
        )
        return call.but(id=kept.call, run=kept.run, round=follow)

    def _input_required(self, asked: Asked, call: Call, wanted: InputRequired) -> JsonObject:
        number = (call.round.number if call.round else 1) + 1
        if number > ROUNDS_LIMIT:
            raise self._ended(call, InvalidResult(f"{call.name!r} asked for input more than {ROUNDS_LIMIT} times"))
        missing = _undeclared(wanted, asked.client.capabilities)
        if missing:
            self._end_round(call.id, OutcomeUnknown(f"the client does not declare {', '.join(sorted(missing))}"))
            data: JsonObject = {"requiredCapabilities": {name: {} for name in sorted(missing)}}
            raise RpcError(MISSING_CAPABILITY, "the client lacks a needed capability", data, recorded=True)
        kept = Kept(
            bound=self._bound(asked, call), call=call.id, run=call.run, round=number, intent_seq=wanted.intent_seq,
            expires_at_ns=wanted.expires_at_ns, requests=tuple(wanted.requests), carry=wanted.carry, state=wanted.state,
        )  # fmt: skip
        try:
            state = self._states.put(kept, now_ns=self._now_ns())
        except ValueError as error:
            raise self._ended(call, InvalidResult(f"{call.name!r} keeps too much state, or what is no JSON")) from error
        except NoRoom as full:
            gone = OutcomeUnknown(
                f"{call.name!r} needs input, and too much is kept for calls that do; answer some first"
            )
            raise self._ended(call, gone) from full
        body: JsonObject = {"resultType": "input_required", "requestState": state, "_meta": self._stamp}
        if wanted.requests:
            body["inputRequests"] = wanted.requests
        return body

    def _wire(self, asked: Asked, call: Call, result: Result) -> JsonObject:
        if isinstance(result, Answer):
            return answered(call.kind, result, era=asked.era, stamp=self._stamp)
        return self._input_required(asked, call, result)


def _arguments(asked: Asked, kind: CallKind) -> JsonObject:
    arguments: JsonObject = asked.params.get("arguments") or {} if kind != "resource" else {}
    if kind == "prompt":
        for key, value in arguments.items():
            if not isinstance(value, str):
                path = {"path": f"$.params.arguments.{key}"}
                raise RpcError(INVALID_PARAMS, f"the prompt argument {key!r} must be a string", path)
    return arguments


def _undeclared(wanted: InputRequired, capabilities: JsonObject) -> set[str]:
    methods = {str(question.get("method")) for question in wanted.requests.values()}
    return {ASKS[method][0] if method in ASKS else method for method in methods if not may_ask(method, capabilities)}


def _outcome_of(result: Result) -> str:
    if isinstance(result, InputRequired):
        return "input_required"
    return "tool_error" if result.is_error else "ok"


def modern_client(meta: JsonObject, transport: Transport) -> ClientFacts:
    """Return what a modern request says of its client in a `_meta` that passed `check_envelope`.

    Raises:
        RpcError: -32022, the version is not served.
    """
    check_version(meta[META_VERSION])
    client = meta.get(META_CLIENT)
    said = client if isinstance(client, dict) else {}
    capabilities = verbatim(meta[META_CAPABILITIES])
    facts = _facts if len(capabilities) <= CAPABILITIES_KEPT_BYTES else _facts.__wrapped__
    return facts(
        short_text(said.get("name")), short_text(said.get("version")), meta[META_VERSION], transport, capabilities
    )


@lru_cache(maxsize=256)  # a client says the same with each request
def _facts(name: str, version: str, protocol: str, transport: Transport, capabilities: bytes) -> ClientFacts:
    return ClientFacts(
        name=name, version=version, era="modern", protocol_version=protocol, transport=transport,
        capabilities=orjson.loads(capabilities),
    )  # fmt: skip
