"""Where a caller stands: what is left to it, what it tried and how that went, and what it could be allowed now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from omni_mcp.chain.limit import Limit
from omni_mcp.contracts.call import Call, Principal
from omni_mcp.contracts.errors import CATALOGUE
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.ports import Catalog, Policy, RunLog
from omni_mcp.serving.runs.entries import TOOLS_TOLD

SLICE = 16  # tools asked of the policy before other clients get a turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """What a caller may use, and who knows how much of it is used."""

    limit: Limit
    events_per_run: int
    artifact_bytes: int
    held_bytes: Callable[[str], Awaitable[int]]


class Standing:
    """Answers `runtime_query` and tells how calls ended."""

    def __init__(self, log: RunLog, budgets: Budgets, catalog: Catalog, policy: Policy) -> None:
        self._log = log
        self._budgets = budgets
        self._catalog = catalog
        self._policy = policy

    async def query(self, call: Call, run: JsonObject, *, calls: int) -> JsonObject:
        """Return where the caller of *call* stands in its own *run*."""
        tried = await self._log.calls_of(run["id"], limit=calls) if calls else []
        return {
            "run": run["id"],
            "budget": await self._budget(call.principal, run),
            "tried": tried,
            "more_tried": run["calls"] > len(tried),
            **await self._allowed(call),
        }

    async def _budget(self, principal: Principal, run: JsonObject) -> JsonObject:
        budgets = self._budgets
        held = await budgets.held_bytes(principal.key)
        return {
            **budgets.limit.left(principal.key),
            "events": {"used": run["last_seq"], "limit": budgets.events_per_run,
                       "left": max(0, budgets.events_per_run - run["last_seq"])},
            "artifact_bytes": {"used": held, "limit": budgets.artifact_bytes,
                               "left": max(0, budgets.artifact_bytes - held)},
        }  # fmt: skip

    async def _allowed(self, call: Call) -> JsonObject:
        """Name what the policy would list for the caller, by the same question as lists ask it."""
        named = self._catalog.entries(call.profile, "tool", project=call.principal.project)
        names: list[str] = []
        for start in range(0, len(named), SLICE):
            part = named[start : start + SLICE]
            entries = [entry for _, entry in part]
            seen = self._policy.visible(action="call_tool", principal=call.principal, entries=entries)
            names += [name for (name, _), visible in zip(part, seen, strict=True) if visible]
            await asyncio.sleep(0)
        return {"allowed": names[:TOOLS_TOLD], "more_allowed": max(0, len(names) - TOOLS_TOLD)}


async def refusal_of(log: RunLog, call: str) -> JsonObject:
    """Return how a call of the caller's ended: for one that was not answered, what its code means and what to do.

    Never the rule, nor whether there is such a tool: those are for operators.
    """
    events = await log.find_call(call)
    asked = next(event for event in events if event.kind == "tool_call")
    ended = next((event for event in reversed(events) if event.kind in ("tool_result", "tool_error")), None)
    name = (asked.payload or {}).get("name")
    story: JsonObject = {"call": call, "name": name, "at": iso_time(asked.at_ns)}
    if ended is None:
        return {**story, "state": "open"}
    if ended.payload is None:
        return {**story, "state": "erased"}
    payload = ended.payload
    if ended.kind == "tool_result":
        return {**story, "state": "answered", "is_error": payload.get("is_error", False)}
    code = str(payload.get("code", ""))
    entry = CATALOGUE.get(code)
    return {
        **story,
        "state": "not answered",
        "code": code,
        "message": payload.get("message"),
        "meaning": entry.meaning if entry else "",
        "next_step": entry.recovery if entry else "",
        "retry": entry.retry if entry else "no",
        "dispatched": bool(payload.get("dispatched")),
        **({"data": payload["data"]} if payload.get("data") else {}),
    }
