"""Why a decision came out as it did, by the rules in force now, and the least that would change it."""

from __future__ import annotations

from cedarpy import Entities

from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.hosts import NO_HOST
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.policy import Action, Decision, Explanation
from omni_mcp.engines.policy.grants import GrantSpec
from omni_mcp.engines.policy.policy_set import Judgement, PolicySet
from omni_mcp.engines.policy.request import uid

_ACTIONS: dict[str, Action] = {"call_tool": "call_tool", "read_resource": "read_resource", "get_prompt": "get_prompt"}


def explain(decision: Decision, policies: PolicySet | None) -> Explanation:
    """Explain a decision, made now or read from the record.

    The smallest grant is added to *policies* and the request decided again before it is offered: what is printed works.

    Args:
        policies: the rules in force; None while everything is denied.
    """
    if policies is None:
        summary = "everything is denied: " + ("; ".join(decision.errors) or "the policy files cannot be used")
        return Explanation(verdict=decision.verdict, summary=summary, next_step="run: omni-mcp policy check")
    rules = tuple(_rule_json(rule, policies) for rule in decision.rules)
    summary = _summary(decision, policies)
    if decision.verdict == "allow":
        return Explanation(verdict="allow", summary=summary, rules=rules)
    if decision.verdict == "ask":
        return Explanation(verdict="ask", summary=summary, rules=rules, next_step=_ways_to_yes(decision, policies))
    grant, next_step = smallest_grant(decision, policies)
    return Explanation(
        verdict="deny",
        summary=summary,
        rules=rules,
        smallest_grant=grant.text() if grant else None,
        next_step=next_step,
    )


def judge_again(request: JsonObject, policies: PolicySet) -> Judgement:
    """Decide a recorded request by *policies*.

    Raises:
        ValueError: the request was not recorded with its entities.
    """
    entities = request.get("entities")
    if not entities:
        raise ValueError("the request was recorded without its entities: the resource was unknown")
    words = {key: request[key] for key in ("principal", "action", "resource", "context")}
    return policies.judge(words, Entities.from_json_str(canonical(entities).decode(), policies.schema))


def smallest_grant(decision: Decision, policies: PolicySet) -> tuple[GrantSpec | None, str]:
    """Return the grant for exactly this principal and resource that would let a denied request through.

    Returns:
        The grant, verified, and the command that writes it; or None and why there is none.
    """
    request = decision.request
    if not request.get("entities"):
        return None, "there is no such tool here, or it is not accepted; see: omni-mcp tools list"
    try:
        now = judge_again(request, policies)
        spec = _spec_of(request)
        has_it = spec.id in policies.by_id
        after = now if has_it else judge_again(request, policies.with_rule(spec.text()))
    except (ValueError, KeyError, ConfigError) as error:
        return None, f"no grant can be made from this request: {error}"
    if now.verdict == "allow":
        return None, "the rules in force now allow it; send the call again"
    if after.verdict == "allow":
        return spec, f"run: {spec.command()}"
    if after.verdict == "ask":
        return spec, f"run: {spec.command()}; then {', '.join(after.rules)} will still ask a person for each call"
    if after.errors:
        return None, f"a rule cannot be evaluated, and that is a deny whatever is allowed: {after.errors[0]}"
    return None, f"no grant helps: {', '.join(after.rules)} forbids it whatever is allowed beside it"


def _ways_to_yes(decision: Decision, policies: PolicySet) -> str:
    """Say how a person answers, and how one answers in advance, if the rules take such an answer."""
    answer = "run: omni-mcp approvals list"
    request = decision.request
    if request.get("action", {}).get("id") != "call_tool":
        return answer
    hosts = request.get("context", {}).get("egress_hosts", [])
    if NO_HOST in hosts:
        return "nobody will be asked: an argument should be a URL and is none, so the call is refused"
    standing = {"id": "trial", "by": {"__entity": uid("Omni::User", "0")}}
    granted = {**request, "context": {**request.get("context", {}), "standing": standing}}
    try:
        takes_one = judge_again(granted, policies).verdict == "allow"
        command = _spec_of(request).standing_command(hosts)
    except (ValueError, KeyError):
        return answer  # a record of another time, or with texts erased
    return f"{answer}; to stop asking for a time: {command}" if takes_one else answer


def _spec_of(request: JsonObject) -> GrantSpec:
    principal, resource = request["principal"], request["resource"]
    facts = next(entity for entity in request["entities"] if entity["uid"] == principal)
    is_agent = principal["type"] == "Omni::Agent"
    owner = facts["attrs"].get("owner", {}).get("__entity", {}).get("id", "")
    return GrantSpec(
        target=resource["id"],
        action=_ACTIONS[request["action"]["id"]],
        agent=principal["id"] if is_agent else "",
        user=owner if is_agent else principal["id"],
        project=request["context"]["project"]["__entity"]["id"],
    )


def _rule_json(rule_id: str, policies: PolicySet) -> JsonObject:
    rule = policies.by_id.get(rule_id)
    if rule is None:
        return {"id": rule_id, "effect": "", "file": "", "text": "(not in force any more)"}
    return {"id": rule.id, "effect": rule.effect, "file": f"{rule.file}:{rule.line}", "text": rule.text}


def _summary(decision: Decision, policies: PolicySet) -> str:
    names = ", ".join(decision.rules)
    if decision.errors:
        text = f"denied, because it could not be decided: {'; '.join(decision.errors)}"
    elif decision.verdict == "allow":
        text = f"allowed by {names}" + (f" under the standing grant {decision.standing}" if decision.standing else "")
    elif decision.verdict == "ask":
        text = f"a person has to answer first: {names}"
    elif decision.request.get("known") is False:
        text = "denied: no rule can match what is not in the catalog, or not accepted"
    elif not names:
        text = "denied: no rule matched, and silence is a deny"
    else:
        asks = all(rule in policies.by_id and policies.by_id[rule].asks for rule in decision.rules)
        text = f"denied by {names}" + (", and no rule allows it, so nobody was asked" if asks else "")
    if decision.policy_version != policies.version:
        text += f" (decided by policy {decision.policy_version[:19]}, in force now is {policies.version[:19]})"
    return text
