"""Failed calls of a run are made again, as new calls in a run of their own, through the one chain.

The policy decides each anew for whoever made it, people are asked, and everything is recorded: `call_made_again` says
which call stands for which.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omni_mcp.chain.decide import LOG_SERVER
from omni_mcp.contracts.call import Call, InputRequired
from omni_mcp.contracts.errors import BadRequest, Conflict, NotFound, OmniError, OutcomeUnknown
from omni_mcp.contracts.events import CallMadeAgain, RunClosed, draft
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.gateway import Gateway
from omni_mcp.paths import Home
from omni_mcp.replay.failed import FAILURES, settled_calls
from omni_mcp.replay.pins import entry_of
from omni_mcp.replay.recorded import RecordedCall, RecordedRun, read_run
from omni_mcp.serving.runbook import client_facts

MOST_CALLS = 100
MAY_HAVE_TAKEN_EFFECT = "it may have taken effect, and nobody said that it shall be made again all the same"
NOT_KNOWN = "its real arguments are not known: they were masked, and no sealed body was kept or it was erased"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a person wants made again.

    Args:
        call: only this call of the run.
        by: who asked for it, as the record names them.
        plan: say what would be done, and do nothing.
        effects: the calls that may have taken effect and are to be made again all the same.
    """

    run: str
    call: str | None = None
    by: str = "operator"
    plan: bool = False
    effects: tuple[str, ...] = ()


def order_of(arguments: JsonObject) -> Order:
    """Return what the command line asks a running gateway for.

    Raises:
        BadRequest: something else than it can ask for.
    """
    known: dict[str, Any] = {"run": str, "call": str | None, "by": str, "plan": bool, "effects": list}
    effects = arguments.get("effects", [])
    if (
        "run" not in arguments
        or any(not isinstance(value, known.get(name, ())) for name, value in arguments.items())
        or any(not isinstance(one, str) for one in effects)
    ):
        raise BadRequest("a rerun takes run, call, by, plan and effects")
    return Order(**{**arguments, "effects": tuple(effects)})


async def remake(gateway: Gateway, home: Home, order: Order, under_way: set[str]) -> JsonObject:
    """Make failed calls again, one after the other, and say what became of each.

    Args:
        under_way: runs of which somebody is making calls again now.

    Raises:
        NotFound: there is no such run, or no such call in it.
        Conflict: the call did not fail, was made again already, or its run is being made again.
    """
    run = await asyncio.to_thread(read_run, home, order.run)
    if run.id in under_way:
        raise Conflict("calls of this run are being made again now; see: omni-mcp status")
    under_way.add(run.id)
    try:  # what was made again already is read behind that mark, so nothing is made twice
        wanted = await asyncio.to_thread(_wanted, home, run, order)
        return await _make(gateway, run, wanted, order)
    finally:
        under_way.discard(run.id)


async def _make(gateway: Gateway, run: RecordedRun, wanted: Sequence[RecordedCall], order: Order) -> JsonObject:
    plans = [_planned(one, gateway, order) for one in wanted]
    doable = [one for one, plan in zip(wanted, plans, strict=True) if not plan["why_not"]]
    if order.plan or not doable:
        return {"run": run.id, "rerun": None, "calls": plans}
    child = await gateway.log.create_run(
        kind="session", principal=doable[0].principal, actor=order.by, client=client_facts(doable[0].client),
        parent_run=run.id, title=f"rerun of {run.id}",
    )  # fmt: skip
    try:
        for one, plan in zip(wanted, plans, strict=True):
            if not plan["why_not"]:
                plan.update(await _again(gateway, one, child, order.by))
    finally:
        ended = gateway.log.append(child, draft(RunClosed(reason="client_left"), actor=order.by))
    await ended.durable()
    return {"run": run.id, "rerun": child, "calls": plans}


async def _again(gateway: Gateway, recorded: RecordedCall, child: str, by: str) -> JsonObject:
    """Make one call again; nobody is there who could answer what it asks its caller."""
    assert recorded.arguments is not None
    made = new_id()
    said = CallMadeAgain(target_run=recorded.run, target_call=recorded.id, call=made, by=by)
    await gateway.log.append(child, draft(said, actor=by)).durable()
    call = Call(
        id=made, run=child, principal=recorded.principal, client=recorded.client, kind=recorded.kind,
        name=recorded.name, arguments=recorded.arguments, profile=recorded.profile, meta=recorded.meta,
    )  # fmt: skip
    try:
        result = await gateway.handle(call)
    except OmniError as error:
        return {"made_as": made, "ending": error.code, "message": error.message}
    if isinstance(result, InputRequired):
        gateway.end_round(made, OutcomeUnknown("a call that was made again has nobody who could answer"))
        return {"made_as": made, "ending": "outcome_unknown", "message": "it asks its caller, and there is none"}
    ending = "the tool reports an error" if result.is_error else "answered"
    return {"made_as": made, "ending": ending, "message": ""}


def _wanted(home: Home, run: RecordedRun, order: Order) -> list[RecordedCall]:
    with LogReader(home.log_file) as log:
        settled = settled_calls(log, after=min((call.gid for call in run.calls), default=0))
    if order.call is None:
        found = [one for one in run.calls if one.code in FAILURES and one.id not in settled]
        if not found:
            raise NotFound("no failed call of this run waits to be made again; see: omni-mcp runs failed")
        if len(found) > MOST_CALLS:
            raise Conflict(f"{len(found)} calls of this run failed; name one of them with --call")
        return found
    one = next((call for call in run.calls if call.id == order.call), None)
    if one is None:
        raise NotFound(f"the run has no call {order.call!r}; see: omni-mcp runs show {run.id}")
    if one.code not in FAILURES:
        raise Conflict(f"that call ended as {one.code}; only failed calls are made again")
    if one.id in settled:
        raise Conflict(f"that call was made again already, as {settled[one.id]}")
    return [one]


def _planned(recorded: RecordedCall, gateway: Gateway, order: Order) -> JsonObject:
    entry = entry_of(recorded, gateway)
    outcome = (recorded.outcome.payload if recorded.outcome is not None else None) or {}
    has_effect = bool(outcome.get("dispatched")) and not (entry is not None and entry.repeatable)
    why_not = ""
    if recorded.arguments is None:
        why_not = NOT_KNOWN
    elif entry is not None and entry.server == LOG_SERVER:
        why_not = "it read the run log"
    elif has_effect and not order.plan and recorded.id not in order.effects:
        why_not = MAY_HAVE_TAKEN_EFFECT
    return {
        "call": recorded.id, "name": recorded.name, "failed_as": recorded.code, "principal": recorded.principal.key,
        "may_have_taken_effect": has_effect, "why_not": why_not,
    }  # fmt: skip
