"""A recorded run as its calls: what was asked, by whom, and how each round of it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from omni_mcp.contracts.call import ClientFacts, Principal
from omni_mcp.contracts.errors import LogUnavailable, OmniError, classes_by_code
from omni_mcp.contracts.events import OUTCOME_KINDS, RunEvent
from omni_mcp.contracts.json import JsonObject, JsonValue, keyed_digest
from omni_mcp.contracts.tool import CallKind, Where
from omni_mcp.engines.runlog.bodies_reader import read_bodies
from omni_mcp.engines.runlog.keys import LogKeys, find_keys
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.paths import Home

PAGE_EVENTS = 1000
NOT_KEPT = "what was answered was not kept: no sealed body stands beside its event"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How one round of a call ended: with a result, with questions to its caller, or with an error.

    `said` are the notes of the witness. `responses` is what the caller came back with to begin this round, None for the
    first one. `missing` says why nothing can be given again.
    """

    result: JsonObject | None = None
    requests: JsonObject | None = None
    error: JsonObject | None = None
    said: tuple[list[JsonValue], ...] = ()
    responses: JsonObject | None = None
    where: Where = "none"
    missing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCall:
    """One call of a run. `arguments` is None where the real ones are not known any more."""

    id: str
    run: str
    gid: int
    kind: CallKind
    name: str
    profile: str
    principal: Principal
    client: ClientFacts
    arguments: JsonObject | None
    meta: JsonObject
    trace: str | None
    steps: tuple[Step, ...]
    events: tuple[RunEvent, ...]

    @property
    def decided(self) -> JsonObject:
        """The last decision that is on record, empty where there is none."""
        return self._last("policy_decided")

    @property
    def approval(self) -> JsonObject:
        """How a person answered, empty where none did."""
        return self._last("approval_decided")

    @property
    def outcome(self) -> RunEvent | None:
        """The event that ended it."""
        return next((event for event in reversed(self.events) if event.kind in OUTCOME_KINDS), None)

    @property
    def code(self) -> str:
        """How it ended, in a word: `tool_result`, the code of an error, or `open`."""
        if self.outcome is None:
            return "open"
        return str((self.outcome.payload or {}).get("code") or self.outcome.kind)

    def _last(self, code: str) -> JsonObject:
        return next((event.payload or {} for event in reversed(self.events) if event.code == code), {})


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """One run with its calls in the order in which they were made."""

    id: str
    facts: JsonObject
    calls: tuple[RecordedCall, ...]


def read_run(home: Home, name: str) -> RecordedRun:
    """Read a run by its id, the beginning of it, or `last`; needs no gateway.

    Raises:
        NotFound: there is no such run.
        LogUnavailable, LogCorrupt: the log cannot be read, or a sealed body is not what was recorded.
    """
    keys = find_keys(home.secrets)
    with LogReader(home.log_file) as log:
        run = log.run_id(name)
        facts = log.get_run(run)
        events = list(_all_events(log, run))
    if keys is None:
        detail = f"{home.secrets} holds no key, so sealed bodies cannot be opened"
        raise LogUnavailable("the key of the run log is missing", detail=detail)
    bodies = read_bodies(home.log_file, keys, run)
    return RecordedRun(id=run, facts=facts, calls=tuple(_calls(events, bodies, facts, keys)))


def error_of(told: JsonObject) -> OmniError:
    """Return a recorded error as it was raised."""
    cls = classes_by_code().get(str(told.get("code")), OmniError)
    error = cls.__new__(cls)  # some classes write their own message, and this one is written already
    OmniError.__init__(error, str(told.get("message")), detail="as recorded", data=dict(told.get("data") or {}))
    error.passing = False  # it is how the call ended, after all attempts
    return error


def _all_events(log: LogReader, run: str) -> Iterator[RunEvent]:
    after = 0
    while events := log.events(run, after=after, limit=PAGE_EVENTS):
        yield from events
        after = events[-1].seq


def _calls(
    events: Sequence[RunEvent], bodies: dict[int, JsonObject], facts: JsonObject, keys: LogKeys
) -> Iterator[RecordedCall]:
    by_call: dict[str, list[RunEvent]] = {}
    for event in events:
        if event.call is not None:
            by_call.setdefault(event.call, []).append(event)
    for call, own in by_call.items():
        asked = own[0]
        if asked.kind == "tool_call":
            yield _call(call, asked, own, bodies, facts, keys)


def _call(
    call: str, asked: RunEvent, own: Sequence[RunEvent], bodies: dict[int, JsonObject], facts: JsonObject, keys: LogKeys
) -> RecordedCall:
    told = asked.payload or {}
    body = bodies.get(asked.seq, {})
    client: JsonObject = told.get("client") or {}
    return RecordedCall(
        id=call, run=asked.run, gid=asked.gid, kind=told.get("call_kind", "tool"), name=str(told.get("name", "")),
        profile=str(told.get("profile", "default")), principal=_principal(body, told, facts),
        client=ClientFacts(
            name=client.get("name", ""), version=client.get("version", ""), era=client.get("era", "handshake"),
            protocol_version=client.get("protocol", ""), transport=client.get("transport", "memory"),
            capabilities=body.get("capabilities") or {},
        ),
        arguments=_arguments(told, body, keys), meta=body.get("meta") or {}, trace=told.get("trace_id"),
        steps=tuple(_steps(own, bodies)), events=tuple(own),
    )  # fmt: skip


def _arguments(told: JsonObject, body: JsonObject, keys: LogKeys) -> JsonObject | None:
    """The sealed ones, or those of the event if their keyed hash says that nothing was masked in them."""
    if "arguments" in body:
        sealed: JsonObject = body["arguments"]
        return sealed
    shown = told.get("arguments")
    if isinstance(shown, dict) and keyed_digest(keys.arguments, shown) == told.get("arguments_hmac"):
        return shown
    return None


def _principal(body: JsonObject, told: JsonObject, facts: JsonObject) -> Principal:
    """The sealed one; without a body all that is known is the key, and no role."""
    if isinstance(known := body.get("principal"), dict):
        return Principal(**{**known, "roles": tuple(known.get("roles") or ())})
    text, _, project = str(told.get("principal") or facts.get("principal") or "").rpartition("@")
    kind, _, rest = text.partition('::"')
    name, _, owner = rest.rpartition('"')
    return Principal(
        kind="Agent" if kind == "Agent" else "User", id=name, project=project or "default", owner=owner.lstrip("/")
    )


def _steps(own: Sequence[RunEvent], bodies: dict[int, JsonObject]) -> Iterator[Step]:
    responses: JsonObject | None = None
    for event in own:
        body = bodies.get(event.seq)
        if event.code == "round_answered":
            responses = body.get("responses") if body is not None else None
        elif event.code == "round_asked" or event.kind in OUTCOME_KINDS:
            yield _step(event, body, responses)
            responses = None


def _step(event: RunEvent, body: JsonObject | None, responses: JsonObject | None) -> Step:
    if body is None:
        return Step(responses=responses, missing="it was erased" if event.payload is None else NOT_KEPT)
    return Step(
        result=body.get("result"), requests=body.get("requests"), error=body.get("error"),
        said=tuple(body.get("said") or ()), responses=responses, where=(event.payload or {}).get("where", "remote"),
        missing="more was said during the call than is kept" if body.get("cut") else "",
    )  # fmt: skip
