"""A person answers what the policy neither allowed nor denied; then the policy decides again."""

from __future__ import annotations

from collections.abc import Awaitable

from omni_mcp.chain.decide import Decisions, carry, grant_for
from omni_mcp.contracts.call import Call, Handler, Question, Result
from omni_mcp.contracts.errors import NotAllowed
from omni_mcp.contracts.ports import Desk
from omni_mcp.contracts.tool import Entry


class Approve:
    """Waits at the desk. Four eyes, roles, digest and expiry are rules of the policy, not code here."""

    def __init__(self, desk: Desk, decisions: Decisions) -> None:
        self._desk = desk
        self._decisions = decisions

    def __call__(self, call: Call, proceed: Handler) -> Awaitable[Result]:
        if call.grant is not None or call.question is None or call.tool is None:
            return proceed(call)
        return self._ask(call, call.tool, call.question, proceed)

    async def _ask(self, call: Call, tool: Entry, question: Question, proceed: Handler) -> Result:
        approval = await self._desk.ask(call, question.rules, question.policy_version)
        decision, recorded = self._decisions.decide(call, approval=approval)
        known = call.but(intents=(*call.intents, recorded))
        if decision.verdict != "allow":
            raise NotAllowed(
                call.name, detail=f"not allowed even with approval {approval.id}: {', '.join(decision.rules)}"
            )
        grant = grant_for(known, tool, decision, approval)
        return carry(await proceed(known.but(grant=grant)), approval)
