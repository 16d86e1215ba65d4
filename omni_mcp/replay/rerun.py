"""A run is made again: its calls, in order, through the one chain; what comes back is compared with what came then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from omni_mcp.chain.decide import LOG_SERVER
from omni_mcp.contracts.call import AskRefused, Call, InputRequired, Round, Trail
from omni_mcp.contracts.errors import BadRequest, OmniError, OutcomeUnknown
from omni_mcp.contracts.events import OUTCOME_KINDS, RunClosed, RunEvent, draft
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.runlog.difference import Difference, comparable, first_difference
from omni_mcp.gateway import Gateway
from omni_mcp.replay.bare import NOT_COUNTED, bare_steps, golden_calls
from omni_mcp.replay.pins import PINNED, Changed, changes, entry_of
from omni_mcp.replay.recorded import RecordedCall, RecordedRun
from omni_mcp.serving.runbook import client_facts

Ending = Literal["same", "differs", "skipped"]
NOT_REPEATABLE = frozenset({"cancelled", "open", "rate_limited", "outcome_unknown"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """What became of one recorded call. `why` says it in words where it was skipped."""

    recorded: RecordedCall
    ending: Ending
    call: str | None = None
    difference: Difference | None = None
    outcome: RunEvent | None = None
    why: str = ""

    def as_json(self) -> JsonObject:
        told: JsonObject = {"call": self.recorded.id, "name": self.recorded.name, "ending": self.ending}
        if self.call is not None:
            told["replayed_as"] = self.call
        if self.difference is not None:
            told["difference"] = self.difference.as_json()
        return {**told, "why": self.why} if self.why else told


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of a run. With `changed` and nothing accepted, no call was made."""

    run: str
    replay: str | None = None
    calls: tuple[Rerun, ...] = ()
    changed: tuple[Changed, ...] = ()
    refused: bool = False

    @property
    def parity(self) -> bool:
        """Whether everything that was made again came back as it came then."""
        return not self.refused and all(one.ending != "differs" for one in self.calls)

    def as_json(self) -> JsonObject:
        return {
            "run": self.run, "replay": self.replay, "parity": self.parity, "refused": self.refused,
            "changed": [one.as_json() for one in self.changed], "calls": [one.as_json() for one in self.calls],
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a replay may do.

    Args:
        allow_writes: also make calls again that may change something.
        accept_changes: go on where a definition, a profile, the policy or the gateway is not what it was.
        by: who asked for it, as the record names them.
        volatile: further fields that do not count, by kind or code of the event.
        golden: events that count in place of those of the run, as `comparable` gives them.
    """

    allow_writes: bool = False
    accept_changes: bool = False
    by: str = "operator"
    volatile: Mapping[str, Sequence[str]] = field(default_factory=dict)
    golden: tuple[JsonObject, ...] = ()
    stop_at_difference: bool = True


def asked_options(arguments: JsonObject) -> Options:
    """Return what the command line asks a running gateway for.

    Raises:
        BadRequest: something else than it can ask for.
    """
    known = {"allow_writes": bool, "accept_changes": bool, "by": str}
    given = {name: value for name, value in arguments.items() if name != "run"}
    if any(not isinstance(value, known.get(name, ())) for name, value in given.items()):
        raise BadRequest("a replay takes run, by, allow_writes and accept_changes")
    return Options(**given)


async def rerun(gateway: Gateway, run: RecordedRun, options: Options) -> Report:
    """Make the calls of *run* again, in a run of its own whose parent it is, and stop at the first that differs.

    The policy decides each of them anew; no approval is used again.

    Raises:
        LogUnavailable: it cannot be recorded.
    """
    changed = tuple(changes(run.calls, gateway))
    if changed and not options.accept_changes:
        return Report(run=run.id, changed=changed, refused=True)
    if not run.calls:
        return Report(run=run.id, changed=changed)
    first = run.calls[0]
    replay = await gateway.log.create_run(
        kind="session", principal=first.principal, actor=options.by, client=client_facts(first.client),
        parent_run=run.id, title=f"replay of {run.id}",
    )  # fmt: skip
    volatile = _volatile(options)
    wanted = golden_calls(options.golden) if options.golden else [comparable(call.events) for call in run.calls]
    done: list[Rerun] = []
    try:
        for number, recorded in enumerate(run.calls):
            then = bare_steps(wanted[number] if number < len(wanted) else [], volatile)
            done.append(await _again(gateway, recorded, replay, options, then, volatile))
            if done[-1].ending == "differs" and options.stop_at_difference:
                break
    finally:
        ended = gateway.log.append(replay, draft(RunClosed(reason="client_left"), actor=options.by))
    await ended.durable()
    return Report(run=run.id, replay=replay, calls=tuple(done), changed=changed)


async def _again(
    gateway: Gateway, recorded: RecordedCall, replay: str, options: Options, then: list[JsonObject],
    volatile: Mapping[str, Sequence[str]],
) -> Rerun:  # fmt: skip
    why = _why_not(recorded, entry_of(recorded, gateway), options)
    if why or recorded.arguments is None:
        return Rerun(recorded=recorded, ending="skipped", why=why)
    call = Call(
        id=new_id(), run=replay, principal=recorded.principal, client=recorded.client, kind=recorded.kind,
        name=recorded.name, arguments=recorded.arguments, profile=recorded.profile, link=Script(recorded),
        meta=recorded.meta, replayed=True,
    )  # fmt: skip
    await _drive(gateway, call, recorded)
    events = await gateway.log.find_call(call.id)
    difference = first_difference(then, bare_steps(comparable(events), volatile))
    return Rerun(
        recorded=recorded, ending="same" if difference is None else "differs", call=call.id, difference=difference,
        outcome=next((event for event in events if event.kind in OUTCOME_KINDS), None),
    )  # fmt: skip


async def _drive(gateway: Gateway, call: Call, recorded: RecordedCall) -> None:
    """Run the call through its rounds, with the responses that its caller came back with."""
    try:
        result = await gateway.handle(call)
        number = 1
        while isinstance(result, InputRequired):
            number += 1
            responses = _responses(recorded, number, result.requests)
            if responses is None:
                gateway.end_round(call.id, OutcomeUnknown("the replay has no answer to what is asked"))
                return
            follow = Round(
                number=number, intent_seq=result.intent_seq, carry=result.carry, state=result.state, responses=responses
            )
            result = await gateway.handle(replace(call, round=follow, trail=Trail()))
    except OmniError:
        return  # it is on record, and that is what is compared


def _responses(recorded: RecordedCall, number: int, asked: JsonObject) -> JsonObject | None:
    """Return what the caller came back with to begin round *number*, under the names that the questions have now.

    None if it did not, or was asked something else.
    """
    if number > len(recorded.steps) or (came := recorded.steps[number - 1].responses) is None:
        return None
    then = list((recorded.steps[number - 2].requests or {}).items())
    found: JsonObject = {}
    for key, question in asked.items():
        place = next((place for place, (_, known) in enumerate(then) if known == question), None)
        if place is None:
            return None
        known, _ = then.pop(place)
        if known in came:
            found[key] = came[known]
    return found


def _why_not(recorded: RecordedCall, entry: Entry | None, options: Options) -> str:
    """Say why a call is not made again; nothing where it is."""
    if recorded.arguments is None:
        return "its real arguments are not known: they were masked, and no sealed body was kept or it was erased"
    if any(event.payload is None for event in recorded.events):
        return "it was erased"
    if recorded.code in NOT_REPEATABLE:
        return f"it ended as {recorded.code}, which its arguments do not decide"
    if entry is not None and entry.server == LOG_SERVER:
        return "it read the run log"
    if entry is not None and not _reads(entry) and not options.allow_writes:
        return "it may change something"
    return ""


def _reads(entry: Entry) -> bool:
    return entry.kind != "tool" or entry.labels.read_only or entry.side_effects == "none"


def _volatile(options: Options) -> dict[str, tuple[str, ...]]:
    """What does not count beside ids and measurements: the request as Cedar saw it, and what was accepted."""
    accepted = (*PINNED, "tool_version") if options.accept_changes else ()
    found = {**NOT_COUNTED, "policy_decided": (*NOT_COUNTED["policy_decided"], *accepted)}
    for code, fields in options.volatile.items():
        found[code] = (*found.get(code, ()), *fields)
    return found


class Script:
    """A `CallerLink` that answers a question as it was answered when the call was recorded, and no other question."""

    def __init__(self, recorded: RecordedCall) -> None:
        self._open: list[list[JsonValue]] = []
        for step in recorded.steps:
            ends = {note[1]: note for note in step.said if note[0] in ("answer", "refused")}
            self._open += [[*note[2:], ends.get(note[1])] for note in step.said if note[0] == "ask"]

    @property
    def client(self) -> object:
        """Nobody but the replay."""
        return self

    async def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """Nobody listens."""

    async def log(self, level: str, data: JsonValue, logger: str | None) -> None:
        """Nobody listens."""

    async def ask(self, method: str, params: JsonObject) -> JsonObject:
        """As the port.

        Raises:
            AskRefused: it was refused then, or is another question.
        """
        for place, (known, asked, end) in enumerate(self._open):
            if known == method and asked == params and end is not None:
                del self._open[place]
                if end[0] == "refused":
                    raise AskRefused(str(end[2]))
                answer: JsonObject = end[2]
                return answer
        raise AskRefused(f"{method}: the replay has no answer to this question")

    def can_ask(self, method: str) -> bool:
        """Whether its caller was asked something of this kind."""
        return any(known == method for known, *_ in self._open)

    def page_done(self, elicitation: str) -> None:
        """Nobody listens."""
