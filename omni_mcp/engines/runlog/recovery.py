"""After a crash every open call gets its one outcome, which says what is known: whether it can have run at all."""

from __future__ import annotations

from collections.abc import Sequence

from omni_mcp.contracts.events import Draft, RunClosed, RunEvent, ToolError, draft
from omni_mcp.engines.runlog.reader import LogReader

ACTOR = "gateway"
_RAN = "The gateway stopped before this call ended: it may or may not have taken effect."
_NEVER_RAN = "The gateway stopped before this call was dispatched: it has not taken effect."


def orphan_drafts(reader: LogReader) -> list[tuple[str, Draft, int | None]]:
    """Return (run, draft, parent) of what recovery records: an outcome for each open call, an end for each open run.

    A call whose next round a client still owes is an orphan too: what its state was sealed with is gone.
    """
    found: list[tuple[str, Draft, int | None]] = []
    for run, call, seq in reader.open_calls():
        found.append((run, draft(_outcome(reader.find_call(call)), actor=ACTOR, call=call), seq))
    found.extend((run, draft(RunClosed(reason="recovered"), actor=ACTOR), None) for run in reader.open_runs())
    return found


def _outcome(events: Sequence[RunEvent]) -> ToolError:
    dispatched = any(_allows(event) for event in events)
    detail = (
        "decided and allowed, so it may have been dispatched"
        if dispatched
        else "no decision that allows it is on record"
    )
    return ToolError(
        code="outcome_unknown", message=_RAN if dispatched else _NEVER_RAN, detail=detail, dispatched=dispatched
    )


def _allows(event: RunEvent) -> bool:
    """Whether the call may have been dispatched after this event; an erased decision may have been a yes."""
    if event.code == "round_answered":
        return True
    return event.code == "policy_decided" and (event.payload is None or event.payload.get("verdict") == "allow")
