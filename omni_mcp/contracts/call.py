"""Call: one request to run a tool, read a resource or get a prompt, and what comes back."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, Protocol, TypeAlias

from omni_mcp.contracts.json import JsonObject, JsonValue, canonical
from omni_mcp.contracts.large import LargeBody
from omni_mcp.contracts.tool import CallKind, Entry, Where

Era = Literal["handshake", "modern"]
OPERATOR = "operator"  # a role that only a key can have: `omni-mcp keys create --operator`


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who calls: a User or an Agent, in a project. The model is never a principal.

    `owner` is the user on whose behalf an agent acts. Two principals are the same if their `key` is, which is such as
    `Agent::"coder"/1000@default`: what runs, approvals and artifacts are filed under. An agent's name is only unique
    for its owner, so the owner is part of it.
    """

    kind: Literal["User", "Agent"]
    id: str
    project: str = "default"
    owner: str = ""
    roles: tuple[str, ...] = ()
    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        owner = f"/{self.owner}" if self.kind == "Agent" else ""
        object.__setattr__(self, "key", f'{self.kind}::"{self.id}"{owner}@{self.project}')

    @property
    def is_operator(self) -> bool:
        """Whether it may be told how the whole gateway stands, which speaks of everybody's servers and calls."""
        return OPERATOR in self.roles


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFacts:
    """What the client says of itself, and how it is connected. Recorded, never trusted."""

    name: str = ""
    version: str = ""
    era: Era = "handshake"
    protocol_version: str = ""
    transport: Literal["stdio", "socket", "http", "sse", "memory"] = "memory"
    capabilities: JsonObject = field(default_factory=dict)


class CallerLink(Protocol):
    """The way back to the caller while its call runs. Every method is safe to call after the caller has gone."""

    @property
    def client(self) -> object:
        """Whose call it is: the same object for all calls of one connection, and for no other call."""
        ...

    async def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """Tell the caller how far the call is, if it asked to know."""
        ...

    async def log(self, level: str, data: JsonValue, logger: str | None) -> None:
        """Send the caller a log message, if it asked for that level."""
        ...

    async def ask(self, method: str, params: JsonObject) -> JsonObject:
        """Ask the caller (`elicitation/create`, `sampling/createMessage`, `roots/list`) and wait for its answer.

        Raises:
            AskRefused: the caller cannot be asked: no such capability, no way to push, or it has gone.
        """
        ...

    def can_ask(self, method: str) -> bool:
        """Whether `ask` can reach the caller for *method* (a handshake client that declared the capability)."""
        ...

    def page_done(self, elicitation: str) -> None:
        """Tell the caller, also after its call, that what it was sent to a page for is done there."""
        ...


class AskRefused(Exception):
    """The caller cannot be asked."""


class NoLink:
    """A caller that hears nothing: for replays and tests."""

    @property
    def client(self) -> object:
        return self

    async def progress(self, progress: float, total: float | None, message: str | None) -> None:
        return

    async def log(self, level: str, data: JsonValue, logger: str | None) -> None:
        return

    async def ask(self, method: str, params: JsonObject) -> JsonObject:
        raise AskRefused(method)

    def can_ask(self, method: str) -> bool:
        return False

    def page_done(self, elicitation: str) -> None:
        return


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A later round of a multi-round call (MCP 2026-07-28, multi-round-trip results).

    `number` is 2 for the first retry. `state` is the server's own `requestState` and `carry` what the chain wanted
    back (`InputRequired.carry`); both were kept here meanwhile, so neither is the client's word.
    """

    number: int
    intent_seq: int  # seq of the call's tool_call event
    carry: JsonObject = field(default_factory=dict)
    state: JsonValue = None
    responses: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Permission for exactly one call. `Execute` refuses a grant whose digest does not fit the call in its hands."""

    digest: str
    policy_version: str
    rules: tuple[str, ...] = ()
    approval: str | None = None  # of an approval, or of the standing grant in its place
    approved_by: str | None = None  # who answered; None for a standing grant
    egress: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Trail:
    """What stages leave for those before them while no value can come back: the one mutable thing of a call.

    `server` is that of the definition which the name was found to mean.
    """

    server: str | None = None
    dispatched: bool = False
    where: Where = "none"
    isolation: JsonObject = field(default_factory=dict)
    usage: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)  # no slots: see `but`
class Call:
    """One request. Stages do not change it; they pass on a copy that knows more.

    Fields stand in the order in which they become known.
    """

    id: str
    run: str
    principal: Principal
    client: ClientFacts
    kind: CallKind
    name: str  # as asked: a tool's or prompt's public name, a resource's URI
    arguments: JsonObject
    profile: str
    link: CallerLink = field(default_factory=NoLink)
    meta: JsonObject = field(default_factory=dict)  # the request's own `_meta`, verbatim
    trace: str | None = None
    asked_in: str = ""  # Record: the caller's own run, where the call itself is recorded in the gateway's
    replayed: bool = False  # its caller did not make it: what a person answers to others is no answer to it
    round: Round | None = None  # set from the second round on
    bound_to: str = ""  # Record: the keyed hash of the arguments
    arguments_bytes: int = 0  # Record: in their canonical form
    intents: tuple[Durable, ...] = ()  # Record, Decide: what must be on disk before anything runs
    parent: Durable | int | None = None  # Record: the tool_call event, which all that follows names
    trail: Trail = field(default_factory=Trail)  # Execute writes, Record reads
    tool: Entry | None = None  # Resolve; None stays None for unknown and quarantined names
    grant: Grant | None = None  # Decide or Approve
    question: Question | None = None  # Decide, when a person has to answer first

    @classmethod
    def of(cls, **known: Any) -> Call:
        """Return a call of which only this is known: as the constructor, which takes three times as long.

        Raises:
            TypeError: a field without a default is missing, or a call has no such field.
        """
        made = object.__new__(cls)
        fields = made.__dict__
        fields.update(_AT_FIRST)
        fields["trail"] = Trail()
        fields.update(known)
        if len(fields) != _FIELDS:
            raise TypeError(f"these are not the fields of a call: {', '.join(sorted(known))}")
        return made

    def but(self, **known: Any) -> Call:
        """Return a copy that knows this too: as `dataclasses.replace`, which takes seven times as long.

        Raises:
            TypeError: a call has no such field.
        """
        copy = object.__new__(Call)
        fields = copy.__dict__
        fields.update(self.__dict__)
        fields.update(known)
        if len(fields) != len(self.__dict__):
            raise TypeError(f"a call has no field {', '.join(sorted(known.keys() - self.__dict__.keys()))}")
        return copy


_FIELDS = len(fields(Call))
_AT_FIRST: JsonObject = {
    "link": NoLink(), "meta": {}, **{one.name: one.default for one in fields(Call) if one.default is not MISSING}
}  # fmt: skip


def grant_digest(call: Call, tool: Entry) -> str:
    """Return the digest that binds a grant: call id, principal, tool definition and raw arguments.

    It stays in memory: a short secret could be guessed from it.
    """
    parts = "\x00".join((call.id, call.principal.key, tool.digest, call.name, ""))
    return "sha256:" + hashlib.sha256(parts.encode() + canonical(call.arguments)).hexdigest()


class Durable(Protocol):
    """Something that the run log has been given and will make durable."""

    def durable(self) -> Awaitable[int]:
        """Wait until it is on disk; returns its seq.

        Raises:
            LogUnavailable: it could not be written.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a person is asked: the rules that demand it, who may answer, and for how long the answer is awaited."""

    rules: tuple[str, ...]
    approvers: tuple[str, ...] = ()
    policy_version: str = ""
    ttl_s: float = 900.0
    wait_s: float | None = None  # how long the caller is kept; None: the desk's own setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the tool answered.

    `body` is the wire-shaped result (`content`, `structuredContent`, `isError`; `contents`; `messages`), verbatim.
    A failure that the tool itself reports is an answer with `is_error`, not an exception.
    """

    body: JsonObject
    is_error: bool = False
    where: Where = "in_process"
    isolation: JsonObject = field(default_factory=dict)  # what was in force, for the record
    usage: JsonObject = field(default_factory=dict)  # durations, bytes, peak memory, for the record
    artifacts: tuple[JsonObject, ...] = ()  # exported files as ArtifactRef objects
    large: LargeBody | None = None  # all of it, where `body` shows only what kind of result it is
    given: bool = False  # by a replay: `body` is what a client was given once, checked and cut to size then


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRequired:
    """The tool needs something of the caller before it can answer (a multi-round result).

    `requests` maps keys to `{"method", "params"}`; `state` is what the tool wants back, opaque to us. The chain fills
    `intent_seq` and `carry`; the edge keeps all of it, and the client holds a `requestState` that stands for it.
    """

    requests: JsonObject
    state: JsonValue = None
    intent_seq: int = 0
    carry: JsonObject = field(default_factory=dict)
    expires_at_ns: int = 0
    body: JsonObject = field(default_factory=dict)
    where: Where = "in_process"


Result: TypeAlias = Answer | InputRequired
Handler: TypeAlias = Callable[[Call], Awaitable[Result]]
Stage: TypeAlias = Callable[[Call, Handler], Awaitable[Result]]
