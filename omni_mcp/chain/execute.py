"""The end of the chain: nothing runs without a fitting grant and a durable intent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from omni_mcp.chain.crashpoint import reach
from omni_mcp.contracts.call import Answer, Call, InputRequired, Result, grant_digest
from omni_mcp.contracts.errors import Frozen, Internal, NotAllowed, Refused, TimedOut
from omni_mcp.contracts.ports import Executor
from omni_mcp.contracts.tool import Entry

GRACE_S = 1.0  # an engine that keeps the deadline itself reports more than this stage can, so it goes first


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
    """Takes the concurrency slot, checks freeze, grant and digest, waits for the intents, and dispatches."""

    def __init__(self, executors: Mapping[str, Executor], freeze: Freeze) -> None:
        self._executors = executors
        self._freeze = freeze
        self._slots: dict[tuple[str, str, str], asyncio.Semaphore] = {}

    async def __call__(self, call: Call) -> Result:
        tool = call.tool
        if tool is None or call.grant is None:
            raise NotAllowed(call.name, detail="reached the executor without a grant")
        executor = self._executors.get(tool.binding)
        if executor is None:
            raise Internal(f"{call.name!r} cannot run here", detail=f"no executor for binding {tool.binding!r}")
        async with self._slot(tool):
            if call.principal.project in self._freeze:
                raise Frozen(f"project {call.principal.project!r} is frozen")
            if call.grant.digest != grant_digest(call, tool):
                raise NotAllowed(call.name, detail="the grant does not fit this call")
            for intent in call.intents:
                await intent.durable()
            reach("intent_durable")
            return await self._dispatch(executor, call, tool)

    async def _dispatch(self, executor: Executor, call: Call, tool: Entry) -> Result:
        call.trail.dispatched = True
        try:
            async with asyncio.timeout(tool.limits.timeout_s + GRACE_S):
                result = await executor.execute(call)
        except Refused:
            call.trail.dispatched = False
            raise
        except TimeoutError as error:
            raise TimedOut(f"{call.name!r} did not answer within {tool.limits.timeout_s:g} s") from error
        if isinstance(result, InputRequired):
            return replace(result, carry={**result.carry, "definition": tool.digest})
        return _checked(result)

    def _slot(self, tool: Entry) -> asyncio.Semaphore:
        slot = self._slots.get(tool.key)
        if slot is None:
            slot = self._slots[tool.key] = asyncio.Semaphore(tool.limits.concurrency)
        return slot


def _checked(answer: Answer) -> Answer:
    """`isError` on the wire and in the record are one fact."""
    if bool(answer.body.get("isError", False)) == answer.is_error:
        return answer
    return replace(answer, is_error=bool(answer.body.get("isError", False)))
