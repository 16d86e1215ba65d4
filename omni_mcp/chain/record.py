"""Outermost stage: what was asked is on record before anything happens, and how it ended before the client knows."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

from omni_mcp.chain.body import answered_body, asked_body, failed_body, round_answered_body, round_asked_body
from omni_mcp.chain.crashpoint import reach
from omni_mcp.chain.decide import LOG_SERVER
from omni_mcp.chain.witness import Witness
from omni_mcp.contracts.artifact import INLINE_LIMIT_BYTES, ArtifactRef, answer_name
from omni_mcp.contracts.call import Answer, Call, Durable, Handler, InputRequired, Result, Round
from omni_mcp.contracts.errors import (
    Cancelled,
    Internal,
    LogUnavailable,
    OmniError,
    OutcomeUnknown,
    QuotaExceeded,
    RateLimited,
    Refused,
)
from omni_mcp.contracts.events import RoundAnswered, RoundAsked, ToolCall, ToolError, ToolResult, draft, stated
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject, JsonValue, canonical, digest_bytes
from omni_mcp.contracts.manifest import Closed
from omni_mcp.contracts.memory import SERVER as MEMORY
from omni_mcp.contracts.memory import is_withheld
from omni_mcp.contracts.ports import Artifacts, Catalog, RunLog


@dataclass(slots=True)
class _OpenRound:
    """A multi-round call that waits for its caller to come back."""

    run: str
    parent: int
    actor: str
    server: str | None
    timer: asyncio.TimerHandle


ROUNDS_PER_PRINCIPAL = 64
ROUNDS_IN_ALL = 1024
ALL_NAMES = "default"  # the profile that names everything


class Record:
    """Appends `tool_call` before the other stages and exactly one outcome after them.

    Args:
        keeps_bodies: whether what was asked and answered is sealed beside the events of a project.
    """

    def __init__(
        self, log: RunLog, artifacts: Artifacts, catalog: Catalog, *, gateway_run: str, round_ttl_s: float = 600.0,
        now_ns: Callable[[], int] = time.time_ns, keeps_bodies: Callable[[str], bool] = lambda project: False,
    ) -> None:  # fmt: skip
        self._log = log
        self._artifacts = artifacts
        self._catalog = catalog
        self._gateway_run = gateway_run
        self._round_ttl_s = round_ttl_s
        self._now_ns = now_ns
        self._keeps_bodies = keeps_bodies
        self._rounds: dict[str, _OpenRound] = {}

    async def __call__(self, call: Call, proceed: Handler) -> Result:
        reach("before_intent")
        entry = self._catalog.find(call.profile, call.kind, call.name)
        quiet = entry is not None and entry.server == LOG_SERVER
        meant = entry or self._catalog.find(ALL_NAMES, call.kind, call.name)  # a tool that this profile does not show
        withheld = meant is not None and is_withheld(meant.server, call.arguments)
        sealed = not quiet and not withheld and self._keeps_bodies(call.principal.project)
        witness = Witness(call.link) if sealed else None
        run, bound_to = self._gateway_run if quiet else call.run, self._log.arguments_hmac(call.arguments)
        size_bytes = len(canonical(call.arguments))
        if call.round is None:
            asked = _asked(call, bound_to, size_bytes, quiet=quiet, withheld=withheld)
            event = draft(asked, actor=call.principal.key, call=call.id, body=asked_body(call, witness))
            intent = self._log.append(run, event, quiet=quiet)
        else:
            intent = self._append_round(call, call.round, run, witness)
        known = call.but(
            run=run, asked_in=call.run if quiet else call.asked_in, bound_to=bound_to, arguments_bytes=size_bytes,
            link=call.link if witness is None else witness, intents=(intent,),
            parent=intent if call.round is None else call.round.intent_seq,
        )  # fmt: skip
        reach("intent_unsynced")
        started = time.perf_counter()
        try:
            result = await proceed(known)
            reach("result_received")
            if isinstance(result, InputRequired):
                return await self._suspend(known, result, witness)
            encoded = canonical(result.body)
            kept: ArtifactRef | None = None
            # What was read of the log is not kept a second time: it would outlive the erasure of what was read.
            shown: JsonValue = None if quiet else result.body
            if len(encoded) > INLINE_LIMIT_BYTES and not quiet:
                kept, shown = await self._kept_apart(known, encoded)
            payload = _answer_payload(result, shown, kept, len(encoded), _ms_since(started))
        except asyncio.CancelledError:
            gone = _cancelled(known, _ms_since(started))
            body = failed_body(Cancelled(gone.message), witness)
            self._append(known, gone, quiet=quiet, body=body)
            raise
        except OmniError as error:
            told = _honest(known, error)
            await self._record_error(known, told, _ms_since(started), quiet=quiet, witness=witness)
            if told is error:
                raise
            raise told from error
        except Exception as error:
            fault = Internal("the gateway failed; the record holds the reason", detail=_last_frames(error))
            await self._record_error(known, fault, _ms_since(started), quiet=quiet, witness=witness)
            raise fault from error
        body = answered_body(result.body, witness)
        await self._durable_outcome(known, payload, quiet=quiet, body=body)
        reach("result_durable")
        return result

    def open_rounds(self) -> int:
        """How many calls wait for their caller to come back with input."""
        return len(self._rounds)

    def waiting_servers(self) -> list[str]:
        """Return the server of each of them."""
        return [waiting.server for waiting in self._rounds.values() if waiting.server is not None]

    def abandon_rounds(self) -> None:
        """End every waiting multi-round call: the gateway stops and cannot know what its server did meanwhile."""
        for call_id in list(self._rounds):
            self.end_round(call_id, OutcomeUnknown("the gateway stopped while the call waited for input"))

    def _append_round(self, call: Call, later: Round, run: str, witness: Witness | None) -> Durable:
        """Append what its caller came back with. A call that waits for nothing has its outcome.

        Raises:
            OutcomeUnknown: it waits for nothing.
        """
        waiting = self._rounds.pop(call.id, None)
        if waiting is None:
            raise OutcomeUnknown("this call is over; its outcome is on record")
        waiting.timer.cancel()
        answered = RoundAnswered(round=later.number, responses=later.responses)
        body = round_answered_body(later.responses, witness)
        event = draft(answered, actor=call.principal.key, call=call.id, body=body)
        return self._log.append(run, event, parent=later.intent_seq)

    async def _kept_apart(self, call: Call, body: bytes) -> tuple[ArtifactRef | None, JsonValue]:
        """Store a large answer; where its owner has no room left, its digest and the reason stand in its place.

        An answer of the memory is nobody's to read: a call that did would keep a copy of what is forgotten later.
        """
        entry = self._catalog.find(call.profile, call.kind, call.name)
        whose = call.principal.key
        owner = f"{MEMORY} of {whose}" if entry is not None and entry.server == MEMORY else whose
        try:
            ref = await self._artifacts.put(
                body, media_type="application/json", owner=owner, run=call.run, name=answer_name(call.id)
            )
        except QuotaExceeded as full:
            return None, {"not_kept": full.message, "digest": digest_bytes(body)}
        return ref, None

    async def _record_error(
        self, call: Call, error: OmniError, duration_ms: float, *, quiet: bool, witness: Witness | None
    ) -> None:
        payload = _error_payload(call, error, duration_ms)
        body = failed_body(error, witness)
        if isinstance(error, LogUnavailable):
            # Waiting for it would be waiting for the same lock again.
            self._append(call, payload, quiet=quiet, body=body)
            return
        await self._durable_outcome(call, payload, quiet=quiet, body=body)
        reach("result_durable")

    async def _durable_outcome(self, call: Call, payload: Closed, *, quiet: bool, body: bytes | None) -> None:
        outcome = self._append(call, payload, quiet=quiet, body=body)
        try:
            await outcome.durable()
        except LogUnavailable as fault:
            if call.trail.dispatched:
                raise OutcomeUnknown(
                    "the call was dispatched and its outcome cannot be recorded now", detail=fault.detail
                ) from fault
            raise

    def _append(self, call: Call, payload: Closed, *, quiet: bool, body: bytes | None) -> Durable:
        event = draft(payload, actor=call.principal.key, call=call.id, body=body)
        # Also where nothing ran: a `tool_call` that reached the disk before it filled up has its outcome afterwards.
        return self._log.append_outcome(call.run, event, parent=call.parent, quiet=quiet)

    async def _suspend(self, call: Call, asked: InputRequired, witness: Witness | None) -> InputRequired:
        """Keep the call open until its caller comes back or its time is over."""
        mine = sum(waiting.actor == call.principal.key for waiting in self._rounds.values())
        if mine >= ROUNDS_PER_PRINCIPAL or len(self._rounds) >= ROUNDS_IN_ALL:
            raise RateLimited("too many calls wait for input; answer or cancel some first")
        number = (call.round.number if call.round else 1) + 1
        expires_at_ns = self._now_ns() + int(self._round_ttl_s * 1e9)
        payload = RoundAsked(round=number, requests=asked.requests, expires_at=iso_time(expires_at_ns))
        intent_seq = call.round.intent_seq if call.round else await call.intents[0].durable()
        body = round_asked_body(asked.requests, witness)
        asking = draft(payload, actor=call.principal.key, call=call.id, body=body)
        event = self._log.append(call.run, asking, parent=intent_seq)
        await event.durable()
        timer = asyncio.get_running_loop().call_later(
            self._round_ttl_s, self.end_round, call.id, OutcomeUnknown("the caller did not come back with input")
        )
        found = self._catalog.find(call.profile, call.kind, call.name, project=call.principal.project)
        server = found.server if found is not None else None
        self._rounds[call.id] = _OpenRound(call.run, intent_seq, call.principal.key, server, timer)
        return replace(asked, intent_seq=intent_seq, expires_at_ns=expires_at_ns)

    def end_round(self, call_id: str, error: OmniError) -> None:
        """End a call that waits for input and will not get it; nothing happens if it does not wait."""
        waiting = self._rounds.pop(call_id, None)
        if waiting is None:
            return
        waiting.timer.cancel()
        payload = ToolError(
            code=error.code, message=error.message, detail=error.detail, dispatched=True, where="remote"
        )
        event = draft(payload, actor=waiting.actor, call=call_id)
        self._log.append_outcome(waiting.run, event, parent=waiting.parent)


def _honest(call: Call, error: OmniError) -> OmniError:
    """What was dispatched cannot be refused any more: a refusal on the way back leaves the outcome unknown."""
    if isinstance(error, Refused) and _ran(call):
        return OutcomeUnknown(
            f"the call was dispatched before it was refused ({error.code})", detail=f"{error.code}: {error.detail}"
        )
    return error


def _ran(call: Call) -> bool:
    """Whether anything of the call was dispatched, be it in an earlier round."""
    return call.trail.dispatched or call.round is not None


def _asked(call: Call, bound_to: str, size_bytes: int, *, quiet: bool, withheld: bool) -> ToolCall:
    client = call.client
    return stated(
        ToolCall,
        call_kind=call.kind,
        name=call.name,
        arguments=_recorded(call.arguments, quiet=quiet, withheld=withheld),
        arguments_hmac=bound_to,
        arguments_bytes=size_bytes,
        principal=call.principal.key,
        profile=call.profile,
        client={"name": client.name, "version": client.version, "era": client.era,
                "protocol": client.protocol_version, "transport": client.transport},
        model=None if withheld else _reported_model(call),
        trace_id=call.trace,
    )  # fmt: skip


def _answer_payload(
    answer: Answer, shown: JsonValue, kept: ArtifactRef | None, size_bytes: int, duration_ms: float
) -> ToolResult:
    return ToolResult(  # validated: an executor may be a plugin's
        is_error=answer.is_error,
        result=shown,
        artifact=kept,
        artifacts=tuple(ArtifactRef.model_validate(ref) for ref in answer.artifacts),
        where=answer.where,
        isolation=answer.isolation,
        usage=answer.usage,
        duration_ms=duration_ms,
        bytes_out=size_bytes,
    )


def _error_payload(call: Call, error: OmniError, duration_ms: float) -> ToolError:
    trail = call.trail
    return ToolError(
        code=error.code,
        message=error.message,
        detail=error.detail,
        data=error.data,
        dispatched=_ran(call) and not isinstance(error, Refused),
        where=trail.where,
        isolation=trail.isolation,
        usage=trail.usage,
        duration_ms=duration_ms,
    )


def _cancelled(call: Call, duration_ms: float) -> ToolError:
    effect = "the tool was stopped and may have taken effect" if _ran(call) else "nothing was dispatched"
    return ToolError(
        code="cancelled",
        message=f"cancelled by the caller; {effect}",
        dispatched=_ran(call),
        where=call.trail.where,
        isolation=call.trail.isolation,
        duration_ms=duration_ms,
    )


def _reported_model(call: Call) -> dict[str, object] | None:
    """What the client reports of its model, under the one key that we document for it."""
    model = call.meta.get("io.omni-mcp/model")
    return model if isinstance(model, dict) else None


def _recorded(arguments: JsonObject, *, quiet: bool, withheld: bool) -> JsonObject:
    """What a search of the log looked for may be the very text that is erased later, and what must not be stored is
    not stored here either."""
    if withheld:
        return {"do_not_store": True}
    return {name: value for name, value in arguments.items() if name != "query"} if quiet else arguments


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)


def _last_frames(error: BaseException) -> str:
    """Type, message and the last three places of an unexpected error: for the record, never for a client."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(
        f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in reversed(frames)
    )
    return f"{type(error).__name__}: {str(error)[:500]} at {places}"
