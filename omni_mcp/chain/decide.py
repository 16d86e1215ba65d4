"""The policy is asked; what it said, and on what, is on record before anything else happens."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace

from omni_mcp.contracts.call import (
    Call,
    Durable,
    Grant,
    Handler,
    InputRequired,
    Question,
    Result,
    grant_digest,
)
from omni_mcp.contracts.errors import NotAllowed, OutcomeUnknown, PinMissing
from omni_mcp.contracts.events import Draft, PolicyDecided, draft, stated
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.policy import Action, ApprovalFacts, Decision
from omni_mcp.contracts.ports import Policy, RunLog, StandingGrants
from omni_mcp.contracts.premises import Premises, own_context
from omni_mcp.contracts.tool import CallKind, Entry

LOG_SERVER = "runs"  # calls of this server read the log: recorded in the gateway's own run, and quiet
PREMISES_KEPT = 2048
ACTIONS: dict[CallKind, Action] = {"tool": "call_tool", "resource": "read_resource", "prompt": "get_prompt"}


@dataclass(frozen=True, slots=True)
class _Known:
    """Premises, and what they were made of: the very entry and the very entities, and the rest by what it says."""

    entry: Entry
    entities: object
    rest: tuple[object, ...]
    premises: Premises


class Decisions:
    """Asks the policy about a call and records the answer. `Decide` and `Approve` share it, so both record alike."""

    def __init__(
        self, policy: Policy, log: RunLog, standing: StandingGrants, *, gateway_version: str,
        profile_digests: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._profile_digests = profile_digests or {}
        self._policy = policy
        self._log = log
        self._standing = standing
        self._gateway_version = gateway_version
        self._premises: dict[tuple[int, int], _Known] = {}  # by the very objects: they never change

    def decide(self, call: Call, *, approval: ApprovalFacts | None = None) -> tuple[Decision, Durable]:
        """Return the decision and the event that holds it, which is not durable yet."""
        entry = call.tool
        decision = self._judge(call, entry, approval)
        quiet = entry is not None and entry.server == LOG_SERVER
        event = self._draft(call, entry, decision, approval)
        return decision, self._log.append(call.run, event, parent=call.parent, quiet=quiet)

    def _draft(self, call: Call, entry: Entry | None, decision: Decision, approval: ApprovalFacts | None) -> Draft:
        """Draft the event of a decision. A refusal says everything itself: in its caller's view no event of another
        shape shall tell a tool that is forbidden from one that is not there."""
        request, entities = decision.request, decision.request.get("entities")
        premises = None
        facts: JsonObject = {}
        if decision.verdict != "deny" and entry is not None and entities is not None:
            premises = self._premises_of(entry, decision)
            request = {"context": own_context(request["context"])}
        else:
            facts = {"policy_version": decision.policy_version, **self._facts(entry)}
        payload = stated(
            PolicyDecided,
            verdict=decision.verdict,
            rules=decision.rules,
            errors=decision.errors,
            approval=approval.id if approval else None,
            standing=decision.standing,
            request=request,
            **facts,
        )
        return draft(payload, actor="gateway", call=call.id, premises=premises)

    def _premises_of(self, entry: Entry, decision: Decision) -> Premises:
        """Return what the decision shares with others of this principal about *entry*.

        The policy gives the same entities to all requests of the same principal about the same thing.
        """
        request = decision.request
        entities, project = request["entities"], request["context"]["project"]
        profile = self._profile_digests.get(entry.profile)
        asked = request["principal"], request["action"], request["resource"], project
        rest = (decision.policy_version, profile, *asked)
        place = id(entry), id(entities)
        known = self._premises.get(place)
        if known is not None and known.entry is entry and known.entities is entities and known.rest == rest:
            return known.premises
        if len(self._premises) >= PREMISES_KEPT:
            self._premises.clear()
        told = {"code": "decision_premises", "policy_version": decision.policy_version, **self._facts(entry)}
        made = Premises({**told, "request": {**request, "context": {"project": project}}})
        self._premises[place] = _Known(entry, entities, rest, made)
        return made

    def _facts(self, entry: Entry | None) -> JsonObject:
        if entry is None:
            return {"gateway_version": self._gateway_version}
        return {
            "gateway_version": self._gateway_version,
            "server": entry.server,
            "tool": entry.name,
            "tool_version": entry.version,
            "definition_digest": entry.digest,
            "executor": entry.binding,
            "sandbox_profile": entry.profile,
            "sandbox_profile_digest": self._profile_digests.get(entry.profile),
            "isolation_demanded": entry.posture,
        }

    def renewed(self, call: Call) -> Call:
        """Return the call under what is in force now: the policy or a standing grant may have gone while it waited.

        Raises:
            NotAllowed: what is in force now does not allow it.
        """
        if call.grant is None or call.tool is None or self._holds(call.grant, call, call.tool):
            return call
        by = call.grant.approved_by
        approval = None
        if by is not None and call.grant.approval is not None:
            approval = ApprovalFacts(id=call.grant.approval, by=by, arguments_digest=self._bound_to(call))
        decision, recorded = self.decide(call, approval=approval)
        if decision.verdict != "allow":
            raise NotAllowed(call.name, detail=f"not allowed any more after its wait; {_reason(call, decision)}")
        grant = grant_for(call, call.tool, decision, approval)
        return call.but(grant=grant, intents=(*call.intents, recorded))

    def _holds(self, grant: Grant, call: Call, tool: Entry) -> bool:
        """Whether what made *grant* is still in force."""
        if grant.policy_version != self._policy.version:
            return False
        if grant.approval is None or grant.approved_by is not None:
            return True
        standing = self._standing.find(call.principal, tool, grant.egress)
        return standing is not None and standing.id == grant.approval

    def still_asks(self, call: Call, now: Entry | None) -> bool:
        """Whether a waiting call, of the definition that is in force *now*, would still wait. Records nothing."""
        if call.tool is None or now is None or now.digest != call.tool.digest:
            return False
        return self._judge(call, now, None).verdict == "ask"

    def _judge(self, call: Call, entry: Entry | None, approval: ApprovalFacts | None) -> Decision:
        hosts = entry.hosts_for(call.arguments) if entry is not None else ()
        return self._policy.decide(
            action=ACTIONS[call.kind],
            principal=call.principal,
            entry=entry,
            name=call.name,
            run=call.run,
            arguments_digest=self._bound_to(call),
            arguments_bytes=call.arguments_bytes or len(canonical(call.arguments)),
            egress=hosts,
            approval=approval,
            standing=self._standing.find(call.principal, entry, hosts) if entry is not None else None,
        )

    def _bound_to(self, call: Call) -> str:
        return call.bound_to or self._log.arguments_hmac(call.arguments)


class Decide:
    """Allow becomes a grant, ask becomes a question, everything else is a refusal."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions

    def __call__(self, call: Call, proceed: Handler) -> Awaitable[Result]:
        approval = carried_approval(call)
        decision, recorded = self._decisions.decide(call, approval=approval)
        intents = (*call.intents, recorded)
        if decision.verdict == "deny" or call.tool is None:
            raise NotAllowed(call.name, detail=_reason(call, decision))
        if call.tool.state == "pin_missing":
            raise PinMissing(
                f"the version of {call.name!r} that this project is pinned to is not there",
                detail=f"{call.tool.server}/{call.tool.name}: version {call.tool.version} is not there",
            )
        if decision.verdict == "allow":
            granted = call.but(intents=intents, grant=grant_for(call, call.tool, decision, approval))
            return proceed(granted) if approval is None else _carried(proceed(granted), approval)
        question = decision.question or Question(rules=decision.rules)
        question = replace(question, policy_version=decision.policy_version)
        return proceed(call.but(intents=intents, question=question))


def grant_for(call: Call, tool: Entry, decision: Decision, approval: ApprovalFacts | None) -> Grant:
    """Make the grant for exactly this call."""
    return Grant(
        digest=grant_digest(call, tool),
        policy_version=decision.policy_version,
        rules=decision.rules,
        approval=decision.standing or (approval.id if approval else None),
        approved_by=approval.by if approval and not decision.standing else None,
        egress=tool.hosts_for(call.arguments),
    )


async def _carried(ending: Awaitable[Result], approval: ApprovalFacts) -> Result:
    return carry(await ending, approval)


def carry(result: Result, approval: ApprovalFacts) -> Result:
    """A multi-round call keeps its approval through its rounds: one approval, one call."""
    if not isinstance(result, InputRequired):
        return result
    facts = {"id": approval.id, "by": approval.by, "arguments_digest": approval.arguments_digest}
    return replace(result, carry={**result.carry, "approval": facts})


def carried_approval(call: Call) -> ApprovalFacts | None:
    """The approval under which an earlier round of this call ran. It was kept by the gateway.

    Raises:
        OutcomeUnknown: the definition changed between the rounds, so what was approved is not what would run.
    """
    if call.round is None:
        return None
    if call.tool is None or call.round.carry.get("definition") != call.tool.digest:
        raise OutcomeUnknown("the tool changed while the call waited for input")
    facts = call.round.carry.get("approval")
    return ApprovalFacts(**facts) if isinstance(facts, dict) else None


def _reason(call: Call, decision: Decision) -> str:
    if call.tool is None:
        return "no accepted definition has this name"
    if decision.errors:
        return "denied because the policy could not be evaluated: " + "; ".join(decision.errors)
    return f"denied by {', '.join(decision.rules)}" if decision.rules else "no rule matched"
