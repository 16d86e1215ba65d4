"""What callers ask about their own calls: which there were, how they ended, and which was refused last."""

from __future__ import annotations

from omni_mcp.contracts.errors import CATALOGUE
from omni_mcp.contracts.events import RunEvent
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.runlog.reader import LogReader

RUNS_LOOKED_AT = 20
ERRORS_LOOKED_AT = 50  # of one run


def calls_of(log: LogReader, run: str, *, limit: int) -> list[JsonObject]:
    """Return the newest calls of a run, newest first, each with its outcome: `open`, `answered`, `error` or a code."""
    asked = log.events_of_kind(run, ("tool_call",), newest_first=True, limit=limit)
    if not asked:
        return []
    ends = log.events_of_kind(run, ("tool_result", "tool_error"), after=asked[-1].seq)
    ended = {event.call: event for event in ends}
    return [_told(event, ended.get(event.call)) for event in asked]


def newest_refusal(log: LogReader, principal: str) -> str | None:
    """Return the newest call of *principal* that was refused, in its newest runs; None if there is none."""
    newest: RunEvent | None = None
    for run in log.runs(principal=principal, limit=RUNS_LOOKED_AT):
        errors = log.events_of_kind(run["id"], ("tool_error",), newest_first=True, limit=ERRORS_LOOKED_AT)
        found = next((event for event in errors if _is_refusal(event)), None)
        if found is not None and (newest is None or found.gid > newest.gid):
            newest = found
    return newest.call if newest is not None else None


def _is_refusal(event: RunEvent) -> bool:
    code = (event.payload or {}).get("code", "")
    return event.call is not None and code in CATALOGUE and CATALOGUE[code].category == "refused"


def _told(asked: RunEvent, ended: RunEvent | None) -> JsonObject:
    name = (asked.payload or {}).get("name")
    return {"call": asked.call, "seq": asked.seq, "name": name, "at": iso_time(asked.at_ns), "outcome": _outcome(ended)}


def _outcome(ended: RunEvent | None) -> str:
    if ended is None:
        return "open"
    if ended.payload is None:
        return "erased"
    if ended.kind == "tool_error":
        return str(ended.payload.get("code"))
    return "error" if ended.payload.get("is_error") else "answered"
