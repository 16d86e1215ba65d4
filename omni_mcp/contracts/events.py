"""RunEvent: one fact of a run, and the closed schema of every kind and code.

The envelope and what is hashed are fixed by contract version: changes are additive, or a new `CONTRACT_VERSION`
with a migration. The chain covers digests and not texts, so that a person's text can be erased while every link
still verifies (docs/run-log.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar, get_args, get_origin

from pydantic import Field

from omni_mcp.contracts.artifact import ArtifactRef
from omni_mcp.contracts.json import JsonObject, JsonValue, canonical
from omni_mcp.contracts.lock import QuarantineReason, RiskClass
from omni_mcp.contracts.manifest import Closed
from omni_mcp.contracts.memory import Change, MemoryKind, MemoryScope, MemorySource, Taint

if TYPE_CHECKING:
    from omni_mcp.contracts.premises import Premises

CONTRACT_VERSION = 1

Kind = Literal[
    "run_created",
    "user_message",
    "assistant_message_delta",
    "assistant_message",
    "tool_call",
    "tool_result",
    "tool_error",
    "artifact_ref",
    "system_event",
]
RunKind = Literal["session", "goal", "workflow", "schedule", "gateway"]

Given = ParamSpec("Given")
Stated = TypeVar("Stated", bound=Closed)

GENESIS = bytes(32)
NO_BODY = bytes(32)


class RunCreated(Closed):
    """First event of every run."""

    run_kind: RunKind
    project: str
    principal: str
    thread: str | None = None
    parent_run: str | None = None
    trace_id: str | None = None
    title: str | None = None
    client: JsonObject = {}
    gateway_version: str


class Message(Closed):
    """A conversation event that a client or a planner reports."""

    text: str
    author: str | None = None
    model: JsonObject | None = None


class ToolCall(Closed):
    """What was asked, before anything is decided. Durable before dispatch."""

    call_kind: Literal["tool", "resource", "prompt"]
    name: str
    arguments: JsonValue
    arguments_hmac: str
    arguments_bytes: int
    principal: str
    profile: str
    client: JsonObject = {}
    model: JsonObject | None = None
    trace_id: str | None = None


class ToolResult(Closed):
    """The tool answered, and the answer was durable before the client saw it."""

    is_error: bool
    result: JsonValue
    artifact: ArtifactRef | None = None
    artifacts: tuple[ArtifactRef, ...] = ()
    where: Literal["cell", "remote", "in_process", "none"]
    isolation: JsonObject = {}
    usage: JsonObject = {}
    duration_ms: float
    bytes_out: int


class ToolError(Closed):
    """No answer of the tool reached the client."""

    code: str
    message: str
    detail: str = ""
    data: JsonObject = {}
    dispatched: bool
    where: Literal["cell", "remote", "in_process", "none"] = "none"
    isolation: JsonObject = {}
    usage: JsonObject = {}
    duration_ms: float = 0.0


class ArtifactStored(ArtifactRef):
    """A blob that a call left."""

    origin: Literal["result", "export", "upload"] = "result"


class PolicyDecided(Closed):
    """What was decided, and everything it was decided on, so that it can be decided again. Durable before dispatch.

    One that names its `premises`, the seq of an event of its run, is recorded without the fields that stand there:
    see `contracts/premises.py`. Whoever reads it with the means of this package gets all of them.
    """

    code: Literal["policy_decided"] = "policy_decided"
    verdict: Literal["allow", "ask", "deny"]
    rules: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    policy_version: str | None = None
    gateway_version: str | None = None
    server: str | None = None
    tool: str | None = None
    tool_version: str | None = None
    definition_digest: str | None = None
    executor: str | None = None
    sandbox_profile: str | None = None
    sandbox_profile_digest: str | None = None
    isolation_demanded: str | None = None
    approval: str | None = None
    standing: str | None = None
    premises: int | None = None
    request: JsonObject = {}


class DecisionPremises(Closed):
    """What decisions of this run that name it were made on, beside what one call alone has. No decision by itself."""

    code: Literal["decision_premises"] = "decision_premises"
    policy_version: str
    gateway_version: str
    server: str
    tool: str
    tool_version: str
    definition_digest: str
    executor: str
    sandbox_profile: str
    sandbox_profile_digest: str | None = None
    isolation_demanded: str
    request: JsonObject


class ApprovalRequested(Closed):
    """A person is asked."""

    code: Literal["approval_requested"] = "approval_requested"
    approval: str
    rules: tuple[str, ...]
    approvers: tuple[str, ...] = ()
    definition_digest: str
    arguments_hmac: str
    expires_at: str


class ApprovalDecided(Closed):
    """A person answered, or time did."""

    code: Literal["approval_decided"] = "approval_decided"
    approval: str
    decision: Literal["approved", "denied", "expired", "withdrawn"]
    by: str
    channel: Literal["command_line", "elicitation", "url", "console", "clock", "gateway"]
    note: str | None = None


class ApprovalUsed(Closed):
    """The one call of an approval begins."""

    code: Literal["approval_used"] = "approval_used"
    approval: str


class StandingGranted(Closed):
    """A person said yes in advance to calls of some scope. It counts once this is durable."""

    code: Literal["standing_granted"] = "standing_granted"
    grant: str
    by: str
    principal: str | None
    project: str
    server: str
    tool: str | None
    definitions: tuple[str, ...] | None
    hosts: tuple[str, ...] | None = None
    given_at: str
    expires_at: str
    note: str | None = None


class StandingRevoked(Closed):
    """A person took a standing grant back."""

    code: Literal["standing_revoked"] = "standing_revoked"
    grant: str
    by: str
    revoked_at: str


class AttemptFailed(Closed):
    """An attempt of a call failed and another follows, `delay_s` later. Durable before that one is dispatched."""

    code: Literal["attempt_failed"] = "attempt_failed"
    attempt: int
    error: str
    message: str
    detail: str = ""
    dispatched: bool
    delay_s: float


class CallMadeAgain(Closed):
    """A person has a failed call of another run made again in this one, as `call`. Durable before that is asked."""

    code: Literal["call_made_again"] = "call_made_again"
    target_run: str
    target_call: str
    call: str
    by: str


class RoundAsked(Closed):
    """A multi-round call asks its caller for input; the call stays open."""

    code: Literal["round_asked"] = "round_asked"
    round: int
    requests: JsonValue
    expires_at: str


class RoundAnswered(Closed):
    """The caller came back with input: the durable intent of the next dispatch of the same call."""

    code: Literal["round_answered"] = "round_answered"
    round: int
    responses: JsonValue


class GatewayStarted(Closed):
    """The gateway's own run begins."""

    code: Literal["gateway_started"] = "gateway_started"
    gateway_version: str
    pid: int
    platform: str
    policy_version: str
    catalog_version: str
    isolation: JsonObject = {}
    recovered_calls: int = 0


class GatewayDraining(Closed):
    """An operator had new calls refused, or taken again. `deadline_s`: how long those under way may still take."""

    code: Literal["gateway_draining"] = "gateway_draining"
    draining: bool
    by: str
    deadline_s: float | None = None


class GatewayStopped(Closed):
    """The gateway drained and ends."""

    code: Literal["gateway_stopped"] = "gateway_stopped"
    reason: str
    cancelled_calls: int = 0


class RunClosed(Closed):
    """Nothing more will be recorded in this run."""

    code: Literal["run_closed"] = "run_closed"
    reason: Literal["client_left", "idle", "gateway_stopped", "recovered"]


class PolicyChanged(Closed):
    """A new policy version is in force."""

    code: Literal["policy_changed"] = "policy_changed"
    policy_version: str
    previous: str | None = None
    rules: int


class ConfigRejected(Closed):
    """A changed file was refused; the last good one stays in force."""

    code: Literal["config_rejected"] = "config_rejected"
    what: Literal["policy", "manifests", "settings", "servers", "lockfile", "profiles"]
    problems: tuple[str, ...]


class CatalogChanged(Closed):
    """Definitions were added, changed or removed."""

    code: Literal["catalog_changed"] = "catalog_changed"
    catalog_version: str
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


class AccessRefusedEvent(Closed):
    """A request other than a call was refused: completion, subscription, another principal's run."""

    code: Literal["access_refused"] = "access_refused"
    method: str
    target: str
    principal: str
    rules: tuple[str, ...] = ()
    detail: str = ""


class RequestRejected(Closed):
    """Bytes that could not be taken as a request: malformed, forged, too large, without a credential."""

    code: Literal["request_rejected"] = "request_rejected"
    transport: str
    reason: str
    count: int = 1


class LogRead(Closed):
    """Somebody read the log by a way that is not a call."""

    code: Literal["log_read"] = "log_read"
    reader: str
    what: str


class QuotaReached(Closed):
    """The run has as many events as it may have; the next ones are refused."""

    code: Literal["quota_exceeded"] = "quota_exceeded"
    limit: int


class Erased(Closed):
    """Texts were replaced by tombstones. Names the places, never the texts."""

    code: Literal["erased"] = "erased"
    target_run: str
    seqs: tuple[int, ...] = ()
    artifacts: tuple[str, ...] = ()
    reason: str
    by: str


class RetentionRun(Closed):
    """Runs older than the limit were erased."""

    code: Literal["retention_run"] = "retention_run"
    older_than: str
    runs: int
    events: int
    artifacts: int


class MemoryWritten(Closed):
    """The memory changed. Names the item, never its text; `count` is how many an import brought."""

    code: Literal["memory_written"] = "memory_written"
    change: Change
    item: str | None = None
    kind: MemoryKind | None = None
    scope: MemoryScope | None = None
    owner: str | None = None
    version: int | None = None
    taint: tuple[Taint, ...] = ()
    source: MemorySource = MemorySource()
    count: int = 1


class ServerState(Closed):
    """A server of the catalog changed its state."""

    code: Literal["server_state"] = "server_state"
    server: str
    state: Literal["ready", "degraded", "offline", "disabled"]
    detail: str = ""


class EgressConnection(Closed):
    """A job reached for a host through the gateway's proxy: what became of it. `bytes_sent` are the job's.

    `more` counts further connections of the call with this verdict that have no event of their own; their bytes and
    milliseconds are added to this one's.
    """

    code: Literal["egress_connection"] = "egress_connection"
    host: str
    port: int
    method: str
    verdict: Literal["open", "refused", "failed"]
    reason: str = ""
    address: str = ""
    bytes_sent: int = 0
    bytes_received: int = 0
    duration_ms: float = 0.0
    credential: bool = False
    more: int = 0


class QuarantinedDefinition(Closed):
    """One definition that nobody accepted as it is. `findings` and `changes` name rules and kinds, never a text.

    They are empty, and `severity` is None, where nothing was found or nobody looked yet.
    """

    item: str
    digest: str
    severity: Literal["note", "warning", "severe"] | None = None
    findings: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


class DefinitionQuarantined(Closed):
    """A server offers what nobody accepted: it is neither listed nor called. `more` counts those not named here."""

    code: Literal["definition_quarantined"] = "definition_quarantined"
    server: str
    reason: QuarantineReason
    definitions: tuple[QuarantinedDefinition, ...]
    more: int = 0


class DefinitionAccepted(Closed):
    """A person accepted a definition, with the labels that they vouch for."""

    code: Literal["definition_accepted"] = "definition_accepted"
    server: str
    item: str
    version: str
    definition_digest: str
    launch_digest: str
    labels: JsonObject
    by: str
    accepted_at: str


class PinFact(Closed):
    """One pin: which project is kept at which version of what. `by` is who set it, where that is known."""

    project: str
    item: str
    version: str
    by: str = ""


class PinsChanged(Closed):
    """Projects are kept at other versions than before."""

    code: Literal["pins_changed"] = "pins_changed"
    now: tuple[PinFact, ...] = ()
    gone: tuple[PinFact, ...] = ()


class RiskFlagged(Closed):
    """What was accepted can do something that was not there before. Open until a person closes it."""

    code: Literal["risk_flagged"] = "risk_flagged"
    flag: str
    server: str
    item: str
    version: str
    risk: RiskClass
    definition_digest: str
    why: tuple[str, ...] = ()


SystemPayload = Annotated[
    PolicyDecided
    | DecisionPremises
    | ApprovalRequested
    | ApprovalDecided
    | ApprovalUsed
    | StandingGranted
    | StandingRevoked
    | AttemptFailed
    | CallMadeAgain
    | RoundAsked
    | RoundAnswered
    | GatewayStarted
    | GatewayDraining
    | GatewayStopped
    | RunClosed
    | PolicyChanged
    | ConfigRejected
    | CatalogChanged
    | AccessRefusedEvent
    | RequestRejected
    | LogRead
    | QuotaReached
    | Erased
    | RetentionRun
    | MemoryWritten
    | ServerState
    | EgressConnection
    | DefinitionQuarantined
    | DefinitionAccepted
    | RiskFlagged
    | PinsChanged,
    Field(discriminator="code"),
]

PAYLOADS: dict[str, type[Closed]] = {
    "run_created": RunCreated,
    "user_message": Message,
    "assistant_message_delta": Message,
    "assistant_message": Message,
    "tool_call": ToolCall,
    "tool_result": ToolResult,
    "tool_error": ToolError,
    "artifact_ref": ArtifactStored,
}
CODES: dict[str, type[Closed]] = {
    model.model_fields["code"].default: model
    for model in (
        PolicyDecided,
        DecisionPremises,
        ApprovalRequested,
        ApprovalDecided,
        ApprovalUsed,
        StandingGranted,
        StandingRevoked,
        AttemptFailed,
        CallMadeAgain,
        RoundAsked,
        RoundAnswered,
        GatewayStarted,
        GatewayDraining,
        GatewayStopped,
        RunClosed,
        PolicyChanged,
        ConfigRejected,
        CatalogChanged,
        AccessRefusedEvent,
        RequestRejected,
        LogRead,
        QuotaReached,
        Erased,
        RetentionRun,
        MemoryWritten,
        ServerState,
        EgressConnection,
        DefinitionQuarantined,
        DefinitionAccepted,
        RiskFlagged,
        PinsChanged,
    )
}
CONVERSATION_KINDS = frozenset({"user_message", "assistant_message_delta", "assistant_message"})
OUTCOME_KINDS = frozenset({"tool_result", "tool_error"})


@dataclass(slots=True, kw_only=True)  # not frozen, which takes twice as long to make: each call has three
class Draft:
    """An event before the log gives it a run, a seq, a time and a place in the chain."""

    kind: Kind
    actor: str
    payload: Any  # an instance of the class that PAYLOADS or CODES names
    call: str | None = None
    body: bytes | None = None  # JSON that is sealed beside the event: what the payload shows masked, as it was
    premises: Premises | None = None  # of a decision whose payload holds only what is its own

    @property
    def code(self) -> str | None:
        """The code of a `system_event`, else None."""
        return self.payload.code if self.kind == "system_event" else None

    @property
    def names_are_ours(self) -> bool:
        """Whether no name in the payload is a client's, a tool's or an operator's word: then none names a secret."""
        return type(self.payload) is PolicyDecided


def draft(
    payload: Closed, *, actor: str, call: str | None = None, kind: Kind | None = None, body: bytes | None = None,
    premises: Premises | None = None,
) -> Draft:  # fmt: skip
    """Wrap *payload* for the log; `kind` is only needed for the three kinds that share `Message`."""
    found = kind or _KIND_OF.get(type(payload))
    if found is None:
        raise TypeError(f"{type(payload).__name__} is no payload of a RunEvent")
    return Draft(kind=found, actor=actor, payload=payload, call=call, body=body, premises=premises)


def stated(kind: Callable[Given, Stated], *_: Given.args, **fields: Given.kwargs) -> Stated:
    """Return a payload of the class *kind* whose fields are facts of ours, of the types that they should have.

    They are not validated, which takes as long as all the rest of an event's making: only for what each call says, and
    only for what nobody else's code has a word in.

    Raises:
        TypeError: a field without a default is missing, or is none of the class.
    """
    model: Any = kind
    made: Stated = model.__new__(model)
    defaults, count = _defaults_of(model)
    values = {**defaults, **fields}
    if len(values) != count:
        raise TypeError(f"these are not the fields of {model.__name__}: {', '.join(sorted(fields))}")
    object.__setattr__(made, "__dict__", values)
    object.__setattr__(made, "__pydantic_fields_set__", set(fields))
    object.__setattr__(made, "__pydantic_extra__", None)
    object.__setattr__(made, "__pydantic_private__", None)
    return made


@lru_cache
def _defaults_of(kind: type[Closed]) -> tuple[JsonObject, int]:
    """Return the defaults of a payload, and how many fields it has."""
    fields = kind.model_fields
    return {name: field.default for name, field in fields.items() if not field.is_required()}, len(fields)


def told_by(payload: Closed) -> JsonObject:
    """Return *payload* as JSON; not to be changed. Nearly always its fields hold nothing but JSON as they are."""
    fields: JsonObject = payload.__dict__
    for name in _not_plain(type(payload)):
        if fields[name]:
            found: JsonObject = payload.__pydantic_serializer__.to_python(payload)
            return found
    return fields


@cache  # as many as there are kinds of payloads
def _not_plain(kind: type[Closed]) -> tuple[str, ...]:
    """Return the fields of a payload that may hold something else than JSON as it is, such as another model."""
    return tuple(name for name, field in kind.model_fields.items() if not _is_plain(field.annotation))


def _is_plain(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return True
    parts = [part for part in get_args(annotation) if part is not Ellipsis]
    return all(map(_is_plain, parts)) if parts else annotation in _PLAIN


_PLAIN = (str, int, float, bool, type(None), dict, list, tuple, Any)
_KIND_OF: dict[type[Closed], Kind] = {
    RunCreated: "run_created",
    ToolCall: "tool_call",
    ToolResult: "tool_result",
    ToolError: "tool_error",
    ArtifactStored: "artifact_ref",
    **dict.fromkeys(CODES.values(), "system_event"),
}


class RunEvent(Closed):
    """One recorded fact.

    `payload` is masked, and `None` once erased; `privacy` lists the JSON paths that were masked; `parent` is the seq
    of the event that this one follows from; `call` the id of the call that it belongs to. `at_ns` counts UTC
    nanoseconds since the epoch. `prev` and `hash` are hex; `salt` is hex, empty once erased.
    """

    v: int = CONTRACT_VERSION
    gid: int
    run: str
    seq: int
    at_ns: int
    kind: Kind
    code: str | None = None
    actor: str
    call: str | None = None
    parent: int | None = None
    privacy: tuple[str, ...] = ()
    payload: JsonObject | None
    erased_by: int | None = None
    salt: str
    payload_digest: str
    body_digest: str
    prev: str
    hash: str


def header_bytes(
    *,
    v: int,
    run: str,
    seq: int,
    at_ns: int,
    kind: str,
    code: str | None,
    actor: str,
    call: str | None,
    parent: int | None,
    privacy: tuple[str, ...],
) -> bytes:
    """Return the canonical header of an event: all of its envelope that is not payload, salt, `prev` or `hash`."""
    return canonical(
        {
            "v": v,
            "run": run,
            "seq": seq,
            "at_ns": at_ns,
            "kind": kind,
            "code": code,
            "actor": actor,
            "call": call,
            "parent": parent,
            "privacy": privacy,
        }
    )


def payload_digest(salt: bytes, payload: bytes) -> bytes:
    """sha256(salt || payload bytes as stored): the salt keeps a short text from being guessed after its erasure."""
    return hashlib.sha256(salt + payload).digest()


def chain_hash(prev: bytes, header: bytes, payload: bytes, body: bytes = NO_BODY) -> bytes:
    """sha256(prev || sha256(header) || payload digest || digest of the sealed body), all 32 bytes each."""
    return hashlib.sha256(prev + hashlib.sha256(header).digest() + payload + body).digest()
