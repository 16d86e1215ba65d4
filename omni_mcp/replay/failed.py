"""Failed calls: those that ended without an answer after all their attempts, until each has been made again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from omni_mcp.contracts.errors import CATALOGUE
from omni_mcp.contracts.events import OUTCOME_KINDS, RunEvent
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.runlog.reader import LogReader

LOOK_BACK_EVENTS = 1_000_000
PAGE_EVENTS = 1000
FAILURES = frozenset(
    {
        "timeout", "sandbox_killed", "sandbox_unavailable", "upstream_unavailable", "upstream_protocol",
        "invalid_result", "outcome_unknown", "memory_unavailable", "internal",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCall:
    """One call that failed for good. `attempts` says how often it was tried."""

    run: str
    call: str
    name: str
    principal: str
    at_ns: int
    code: str
    message: str
    detail: str
    dispatched: bool
    attempts: int

    @property
    def next(self) -> str:
        """What a person can do."""
        known = CATALOGUE.get(self.code)
        first = known.recovery if known is not None else "Look at the record."
        return f"{first} Then: omni-mcp runs rerun {self.run} --call {self.call}"

    def as_json(self) -> JsonObject:
        return {
            "call": self.call, "name": self.name, "principal": self.principal, "at": iso_time(self.at_ns),
            "code": self.code, "message": self.message, "detail": self.detail, "dispatched": self.dispatched,
            "attempts": self.attempts, "next": self.next,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeAgain:
    """The calls that stand for failed ones.

    Args:
        calls: those that were made for another.
        settled: by failed call the one as which it was made again, where that was dispatched or ended for itself. One
            that was refused, or whose question is still open, settles nothing.
    """

    calls: AbstractSet[str]
    settled: Mapping[str, str]

    def has_failed(self, call: str, outcome: JsonObject) -> bool:
        """Whether *call*, which ended with this `tool_error`, failed for good, or was cut off after its dispatch.

        The latter only where it stands for another: who cancels an ordinary call wants nothing made again.
        """
        return outcome.get("code") in FAILURES or (bool(outcome.get("dispatched")) and call in self.calls)


def failed_runs(log: LogReader, *, limit: int, look_back: int | None = LOOK_BACK_EVENTS) -> list[JsonObject]:
    """Return the newest runs first that have failed calls, each with these in the order in which they ended.

    Args:
        look_back: how many of the newest events are looked through; None: all.
    """
    after = 0 if look_back is None else max(0, log.last_gid() - look_back)
    again = made_again(log, after=after)
    runs: dict[str, list[FailedCall]] = {}
    for outcome in _newest_failures(log, after=after, again=again):
        if outcome.call is None or outcome.call in again.settled or (len(runs) >= limit and outcome.run not in runs):
            continue
        runs.setdefault(outcome.run, []).insert(0, failed_call(outcome, log.find_call(outcome.call)))
    newest_first = sorted(runs.items(), reverse=True)  # ids of runs begin with their time
    return [
        {"run": run, "at": log.get_run(run)["created_at"], "calls": [one.as_json() for one in calls]}
        for run, calls in newest_first
    ]


def made_again(log: LogReader, *, after: int = 0) -> MadeAgain:
    """Return what was made again, by the events behind the global number *after*."""
    calls: set[str] = set()
    settled: dict[str, str] = {}
    for event in _all_made_again(log, after=after):
        told = event.payload or {}
        made, target = str(told.get("call")), str(told.get("target_call"))
        calls.add(made)
        if target not in settled and _was_let_through(log.find_call(made)):
            settled[target] = made
    return MadeAgain(calls=calls, settled=settled)


def copies_of(log: LogReader, run: str, call: str | None = None) -> list[tuple[str, str]]:
    """Return as (run, call) what calls of *run*, or this one of them, were made again as, and these in their turn.

    Left out are those whose texts are erased.
    """
    first = log.events(run, limit=1)
    copied: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for event in _all_made_again(log, after=first[0].gid if first else 0):
        told = event.payload or {}
        origin = str(told.get("target_run")), str(told.get("target_call"))
        copied.setdefault(origin, []).insert(0, (event.run, str(told.get("call"))))
    reached = [origin for origin in copied if origin[0] == run and call in (None, origin[1])]
    found: list[tuple[str, str]] = []
    while reached:
        for copy in copied.get(reached.pop(0), ()):
            reached.append(copy)
            if any(event.payload is not None for event in log.find_call(copy[1])):
                found.append(copy)
    return found


def failed_call(outcome: RunEvent, events: Sequence[RunEvent]) -> FailedCall:
    """Return what a `tool_error` and the other events of its call say."""
    told = outcome.payload or {}
    asked = next((event.payload or {} for event in events if event.kind == "tool_call"), {})
    return FailedCall(
        run=outcome.run, call=str(outcome.call), name=str(asked.get("name", "")),
        principal=str(asked.get("principal", "")), at_ns=outcome.at_ns, code=str(told.get("code")),
        message=str(told.get("message", "")), detail=str(told.get("detail", "")),
        dispatched=bool(told.get("dispatched")),
        attempts=1 + sum(event.code == "attempt_failed" for event in events),
    )  # fmt: skip


def _all_made_again(log: LogReader, *, after: int) -> Iterator[RunEvent]:
    before: int | None = None
    while events := log.newest_events("system_event", code="call_made_again", after=after, before=before):
        yield from events
        before = events[-1].gid


def _newest_failures(log: LogReader, *, after: int, again: MadeAgain) -> Iterator[RunEvent]:
    before: int | None = None
    while events := log.newest_events("tool_error", after=after, before=before, limit=PAGE_EVENTS):
        yield from (event for event in events if again.has_failed(str(event.call), event.payload or {}))
        before = events[-1].gid


def _was_let_through(events: Sequence[RunEvent]) -> bool:
    outcome = next((event for event in events if event.kind in OUTCOME_KINDS), None)
    if outcome is None:
        return bool(events)  # it is under way
    told = outcome.payload or {}
    return outcome.kind == "tool_result" or told.get("code") in FAILURES or bool(told.get("dispatched"))
