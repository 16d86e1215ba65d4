"""Failed calls of a run are made again, as new calls in a run of their own, through the one chain.

The policy decides each anew for whoever made it, people are asked, and everything is recorded: `call_made_again` says
which call stands for which.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omni_mcp.chain.decide import LOG_SERVER
from omni_mcp.contracts.call import Call, InputRequired
from omni_mcp.contracts.errors import BadRequest, Conflict, Draining, NotFound, OmniError, OutcomeUnknown
from omni_mcp.contracts.events import CallMadeAgain, RunClosed, draft
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.identity.keys import Key, read_keys
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.gateway import Gateway
from omni_mcp.paths import Home
from omni_mcp.replay.caller import Caller, caller_now
from omni_mcp.replay.failed import MadeAgain, made_again
from omni_mcp.replay.pins import entry_of
from omni_mcp.replay.recorded import RecordedCall, RecordedRun, read_run
from omni_mcp.serving.runbook import client_facts

MOST_CALLS = 100
MAY_HAVE_TAKEN_EFFECT = "it may have taken effect, and nobody said that it shall be made again all the same"
MEANS_ANOTHER = "its name means another definition now, and nobody said that it shall be made again all the same"
CUT_OFF = "the gateway stopped while it made calls again; what became of them: omni-mcp runs failed"
BY_PREFIX, BY_CHARS = "operator:", 128
NOT_KNOWN = "its real arguments are not known: they were masked, and no sealed body was kept or it was erased"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a person wants made again.

    Args:
        call: only this call of the run.
        by: who asked for it, as the record names them.
        plan: say what would be done, and do nothing.
        confirmed: the calls that want a yes and have one: they may have taken effect, or their name means another
            definition now.
    """

    run: str
    call: str | None = None
    by: str = f"{BY_PREFIX}unknown"
    plan: bool = False
    confirmed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One call with what is known of it before it is made again; `became` is what it ended as."""

    recorded: RecordedCall
    caller: Caller
    has_effect: bool
    means_another: bool
    why_not: str
    became: JsonObject = field(default_factory=dict)

    def as_json(self) -> JsonObject:
        return {
            "call": self.recorded.id, "name": self.recorded.name, "failed_as": self.recorded.code,
            "principal": self.recorded.principal.key, "may_have_taken_effect": self.has_effect,
            "means_another": self.means_another, "note": self.caller.note, "why_not": self.why_not, **self.became,
        }  # fmt: skip


def order_of(arguments: JsonObject) -> Order:
    """Return what the command line asks a running gateway for.

    Raises:
        BadRequest: something else than it can ask for.
    """
    known: dict[str, Any] = {"run": str, "call": str | None, "by": str, "plan": bool, "confirmed": list}
    confirmed = arguments.get("confirmed", [])
    if (
        "run" not in arguments
        or any(not isinstance(value, known.get(name, ())) for name, value in arguments.items())
        or any(not isinstance(one, str) for one in confirmed)
    ):
        raise BadRequest("a rerun takes run, call, by, plan and confirmed")
    order = Order(**{**arguments, "confirmed": tuple(confirmed)})
    if not (order.by.startswith(BY_PREFIX) and order.by.isprintable() and len(order.by) <= BY_CHARS):
        raise BadRequest(f"who asks for a rerun is an operator, {BY_PREFIX}NAME")
    return order


async def remake(gateway: Gateway, home: Home, order: Order, under_way: set[str]) -> JsonObject:
    """Make failed calls again, one after the other, and say what became of each.

    The gateway's end gives it time as it does calls of clients, and then cuts it off.

    Args:
        under_way: runs of which somebody is making calls again now.

    Raises:
        NotFound: there is no such run, or no such call in it.
        Conflict: the call did not fail, was made again already, or its run is being made again.
        ConfigError: the keys cannot be read.
        Draining: the gateway is about to end, and nothing was made.
        OutcomeUnknown: it was cut off.
    """
    task = gateway.edge.attend(_remake(gateway, home, order, under_way))
    try:
        return await task
    except asyncio.CancelledError:
        own = asyncio.current_task()
        if own is not None and own.cancelling():
            raise
        raise OutcomeUnknown(CUT_OFF) from None


async def _remake(gateway: Gateway, home: Home, order: Order, under_way: set[str]) -> JsonObject:
    run = await asyncio.to_thread(read_run, home, order.run)
    if run.id in under_way:
        raise Conflict("calls of this run are being made again now; see: omni-mcp status")
    under_way.add(run.id)
    try:  # what was made again already is read behind that mark, so nothing is made twice
        wanted = await asyncio.to_thread(_wanted, home, run, order)
        keys = await asyncio.to_thread(read_keys, home.keys_file)
        return await _make(gateway, run, [_planned(one, gateway, order, keys) for one in wanted], order)
    finally:
        under_way.discard(run.id)


async def _make(gateway: Gateway, run: RecordedRun, plans: Sequence[_Plan], order: Order) -> JsonObject:
    doable = [plan for plan in plans if not plan.why_not]
    if order.plan or not doable:
        return {"run": run.id, "rerun": None, "calls": [plan.as_json() for plan in plans]}
    first = doable[0]
    child = await gateway.log.create_run(
        kind="session", principal=first.caller.principal, actor=order.by, client=client_facts(first.recorded.client),
        parent_run=run.id, title=f"rerun of {run.id}",
    )  # fmt: skip
    try:
        for plan in doable:
            plan.became.update(await _again(gateway, plan, child, order.by))
    finally:
        ended = gateway.log.append(child, draft(RunClosed(reason="client_left"), actor=order.by))
    await ended.durable()
    return {"run": run.id, "rerun": child, "calls": [plan.as_json() for plan in plans]}


async def _again(gateway: Gateway, plan: _Plan, child: str, by: str) -> JsonObject:
    """Make one call again; nobody is there who could answer what it asks its caller."""
    recorded = plan.recorded
    assert recorded.arguments is not None
    if gateway.edge.draining:
        return {"made_as": None, "ending": Draining.code, "message": Draining().message}
    made = new_id()
    said = CallMadeAgain(target_run=recorded.run, target_call=recorded.id, call=made, by=by)
    await gateway.log.append(child, draft(said, actor=by)).durable()
    call = Call(
        id=made, run=child, principal=plan.caller.principal, client=recorded.client, kind=recorded.kind,
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
        first = log.events(run.id, limit=1)
        again = made_again(log, after=first[0].gid if first else 0)
    if order.call is None:
        found = [one for one in run.calls if _has_failed(one, again) and one.id not in again.settled]
        if not found:
            raise NotFound("no failed call of this run waits to be made again; see: omni-mcp runs failed")
        if len(found) > MOST_CALLS:
            raise Conflict(f"{len(found)} calls of this run failed; name one of them with --call")
        return found
    one = next((call for call in run.calls if call.id == order.call), None)
    if one is None:
        raise NotFound(f"the run has no call {order.call!r}; see: omni-mcp runs show {run.id}")
    if not _has_failed(one, again):
        raise Conflict(f"that call ended as {one.code}; only failed calls are made again")
    if one.id in again.settled:
        raise Conflict(f"that call was made again already, as {again.settled[one.id]}")
    return [one]


def _has_failed(call: RecordedCall, again: MadeAgain) -> bool:
    outcome = call.outcome
    return outcome is not None and outcome.kind == "tool_error" and again.has_failed(call.id, outcome.payload or {})


def _planned(recorded: RecordedCall, gateway: Gateway, order: Order, keys: Sequence[Key]) -> _Plan:
    entry = entry_of(recorded, gateway)
    caller = caller_now(recorded.principal, recorded.client, keys, at_ns=time.time_ns())
    outcome = (recorded.outcome.payload if recorded.outcome is not None else None) or {}
    has_effect = bool(outcome.get("dispatched")) and not (entry is not None and entry.repeatable)
    means_another = _means_another(recorded, entry)
    wants_yes = not order.plan and recorded.id not in order.confirmed
    why_not = caller.why_not
    if recorded.arguments is None:
        why_not = NOT_KNOWN
    elif entry is not None and entry.server == LOG_SERVER:
        why_not = "it read the run log"
    elif has_effect and wants_yes:
        why_not = why_not or MAY_HAVE_TAKEN_EFFECT
    elif means_another and wants_yes:
        why_not = why_not or MEANS_ANOTHER
    return _Plan(recorded=recorded, caller=caller, has_effect=has_effect, means_another=means_another, why_not=why_not)


def _means_another(recorded: RecordedCall, entry: Entry | None) -> bool:
    was = recorded.decided.get("definition_digest")
    return entry is not None and was is not None and entry.digest != was
