"""A person answers what the policy neither allowed nor denied; then the policy decides again."""

from __future__ import annotations

from omni_mcp.chain.decide import Decisions, carry, grant_for
from omni_mcp.contracts.call import Call, Handler, Result
from omni_mcp.contracts.errors import NotAllowed
from omni_mcp.contracts.ports import Desk


class Approve:
    """Waits at the desk. Four eyes, roles, digest and expiry are rules of the policy, not code here."""

    def __init__(self, desk: Desk, decisions: Decisions) -> None:
        self._desk = desk
        self._decisions = decisions

    async def __call__(self, call: Call, proceed: Handler) -> Result:
        if call.grant is not None or call.question is None or call.tool is None:
            return await proceed(call)
        approval = await self._desk.ask(call, call.question.rules, call.question.policy_version)
        decision, recorded = self._decisions.decide(call, approval=approval)
        known = call.but(intents=(*call.intents, recorded))
        if decision.verdict != "allow":
            raise NotAllowed(
                call.name, detail=f"not allowed even with approval {approval.id}: {', '.join(decision.rules)}"
            )
        grant = grant_for(known, call.tool, decision, approval)
        return carry(await proceed(known.but(grant=grant)), approval)
