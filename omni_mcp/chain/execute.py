"""The end of the chain: nothing runs without a fitting grant and a durable intent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial

from omni_mcp.chain.crashpoint import reach
from omni_mcp.chain.decide import Decisions
from omni_mcp.chain.retry import Retries
from omni_mcp.chain.slots import FairSlots
from omni_mcp.contracts.call import Answer, Call, InputRequired, Result, grant_digest
from omni_mcp.contracts.errors import Failed, Frozen, Internal, NotAllowed, Paused, Refused, TimedOut
from omni_mcp.contracts.hosts import NO_HOST
from omni_mcp.contracts.ports import Catalog, Executor, KeepsDeadlines
from omni_mcp.contracts.tool import Entry
from omni_mcp.time_limits import TimeLimits

LOOKS = 3
GRACE_S = 1.0  # an engine that has a deadline of its own may report more than this stage can, so it goes first


async def at_once(entry: Entry) -> None:
    """For definitions that only change when the catalog is loaded."""


class Freeze:
    """Which projects an operator stopped. Looked at after the slot is taken, so it stops approved calls too."""

    def __init__(self) -> None:
        self._projects: frozenset[str] = frozenset()

    def set(self, projects: frozenset[str]) -> None:
        """Replace the set of frozen projects."""
        self._projects = projects

    def __contains__(self, project: str) -> bool:
        return project in self._projects


class Execute:
    """Takes the slots, waits for the intents, checks freeze, definition, policy and grant, and dispatches.

    Args:
        executors: by binding.
        places: how many calls of a binding may run at once in all; unnamed ones are bounded per tool only.
        settled: waits while a definition may be out of date, because its server said that its lists changed.
        retries: what follows a failure.
    """

    def __init__(
        self,
        executors: Mapping[str, Executor],
        places: Mapping[str, int],
        catalog: Catalog,
        decisions: Decisions,
        freeze: Freeze,
        *,
        retries: Retries,
        settled: Callable[[Entry], Awaitable[None]] = at_once,
    ) -> None:
        self._executors = executors
        self._places = {
            binding: FairSlots(capacity, share=max(1, capacity - 1)) for binding, capacity in places.items()
        }
        self._catalog = catalog
        self._decisions = decisions
        self._freeze = freeze
        self._retries = retries
        self._settled = settled
        self._slots: dict[str, FairSlots] = {}
        self._limits = TimeLimits()

    async def __call__(self, call: Call) -> Result:
        tool = call.tool
        if tool is None or call.grant is None:
            raise NotAllowed(call.name, detail="reached the executor without a grant")
        executor = self._executors.get(tool.binding)
        if executor is None:
            raise Internal(f"{call.name!r} cannot run here", detail=f"no executor for binding {tool.binding!r}")
        who, slots = call.principal.key, self._slots_of(tool)
        try:
            if not slots.take_now(who):
                await slots.take(who)
            try:
                places = self._places.get(tool.binding)
                if places is None:
                    return await self._run(executor, call, tool)
                async with places.taken(who):
                    return await self._run(executor, call, tool)
            finally:
                slots.give_back(who)
        finally:
            if slots.idle:
                self._slots.pop(tool.digest, None)

    async def _run(self, executor: Executor, call: Call, tool: Entry, *, is_first: bool = True) -> Result:
        call = await self._ready(call, tool)
        reach("intent_durable")
        call.trail.dispatched = True
        try:
            if isinstance(executor, KeepsDeadlines):
                result = await executor.execute(call)
            else:
                with self._limits.within(tool.limits.timeout_s + GRACE_S) as time:
                    try:
                        result = await executor.execute(call)
                    except Failed as failed:
                        failed.ends_s = time.ends_s - GRACE_S
                        raise
        except Refused:
            call.trail.dispatched = False
            raise
        except Failed as failed:
            if not is_first:
                raise
            again = partial(self._run, executor, tool=tool, is_first=False)
            return await self._retries.go_on(failed, call, tool, again)
        except TimeoutError as error:
            raise TimedOut(f"{call.name!r} did not answer within {tool.limits.timeout_s:g} s") from error
        if isinstance(result, InputRequired):
            return replace(result, carry={**result.carry, "definition": tool.digest})
        return _checked(result)

    async def _ready(self, call: Call, tool: Entry) -> Call:
        """Wait until everything is on disk, then look whether what was decided still holds."""
        for _ in range(LOOKS):
            for intent in call.intents:
                await intent.durable()
            try:
                await self._settled(tool)
            except Paused:
                if call.round is None:
                    raise  # a later round is of a call under way
            ready = self._still_allowed(call, tool)
            if ready is call:
                return ready
            call = ready
        raise NotAllowed(call.name, detail="the rules changed again and again while the call waited")

    def _still_allowed(self, call: Call, tool: Entry) -> Call:
        """What was decided before the wait for a slot must hold after it."""
        if call.principal.project in self._freeze:
            raise Frozen(f"project {call.principal.project!r} is frozen")
        if call.grant is None or call.grant.digest != grant_digest(call, tool):
            raise NotAllowed(call.name, detail="the grant does not fit this call")
        if NO_HOST in call.grant.egress or call.grant.egress != tool.hosts_for(call.arguments):
            raise NotAllowed(call.name, detail="the grant's hosts are not those of this call")
        found = self._catalog.find(call.profile, call.kind, call.name, project=call.principal.project)
        if found is None or found.digest != tool.digest:
            raise NotAllowed(call.name, detail="the definition changed while the call waited")
        return self._decisions.renewed(call)

    def _slots_of(self, tool: Entry) -> FairSlots:
        slots = self._slots.get(tool.digest)
        if slots is None:
            slots = self._slots[tool.digest] = FairSlots(tool.limits.concurrency, limits=self._limits)
        return slots


def _checked(answer: Answer) -> Answer:
    """`isError` on the wire and in the record are one fact."""
    if bool(answer.body.get("isError", False)) == answer.is_error:
        return answer
    return replace(answer, is_error=bool(answer.body.get("isError", False)))
