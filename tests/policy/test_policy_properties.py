"""What holds for every policy: what is listed and what is allowed agree, and a guardrail is never gone round."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.manifest import Labels
from omni_mcp.contracts.policy import ApprovalFacts, Decision, StandingFacts
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.policy.explain import explain, judge_again
from omni_mcp.engines.policy.files import PolicyFile
from omni_mcp.engines.policy.policy import CedarPolicy, open_policy
from omni_mcp.engines.policy.policy_set import compile_policies, read_shipped
from omni_mcp.engines.policy.rules import statements
from omni_mcp.paths import bundled

AGENTS, SERVERS, TOOLS = ["coder", "writer"], ["tools", "files"], ["read", "write"]
PRINCIPALS = st.one_of(
    st.just("principal"),
    st.just("principal is Omni::Agent"),
    st.sampled_from(AGENTS).map(lambda name: f'principal == Omni::Agent::"{name}"'),
    st.just('principal in Omni::Role::"editor"'),
    st.just('principal in Omni::Project::"default"'),
    st.just('principal is Omni::User in Omni::Role::"editor"'),
)
RESOURCES = st.one_of(
    st.just("resource"),
    st.sampled_from(SERVERS).map(lambda name: f'resource in Omni::Server::"{name}"'),
    st.sampled_from(TOOLS).map(lambda name: f'resource == Omni::Tool::"tools__{name}"'),
    st.sampled_from(TOOLS).map(lambda name: f'resource in Omni::Tool::"tools__{name}"'),
    st.sampled_from(SERVERS).map(lambda name: f'resource is Omni::Tool in Omni::Server::"{name}"'),
    st.just("resource is Omni::Tool"),
)
TESTS = st.sampled_from(
    [
        "resource.read_only",
        "!resource.destructive",
        'resource.name like "re*"',
        "context.args_bytes < 100",
        "context.args_bytes + 9223372036854775800 > 0",  # fails for larger arguments
        'context.egress_hosts.contains("a.example:443")',
        "context.egress_hosts.isEmpty()",
        'context.run == "run"',
        'context.project == Omni::Project::"default"',
        "context has approval",
        "context has standing",
        'context has approval && context.approval.by == Omni::User::"2000"',
        'context has approval && context.args_digest == "sha256:these"',
        '!(context has approval && context.run == "run") || context.args_bytes < 100',
        '(context has standing && context has approval) && context.run == "run"',
        "if context has approval then context.args_bytes < 100 else context.args_bytes < 10",
        "principal has owner",
        'principal has owner && principal.owner == Omni::User::"1000"',
    ]
)


LIFTED_BY_EITHER = "unless { context has approval || context has standing }"


@st.composite
def rule_sets(draw: st.DrawFn) -> str:
    rules = []
    for number in range(draw(st.integers(1, 5))):
        effect = draw(st.sampled_from(["permit", "permit", "forbid", "ask"]))
        head = f"({draw(PRINCIPALS)}, action, {draw(RESOURCES)})"
        clauses = [
            f"{draw(st.sampled_from(['when', 'unless']))} {{ {draw(TESTS)} }}" for _ in range(draw(st.integers(0, 2)))
        ]
        if effect == "ask":
            clauses.append(draw(st.sampled_from(["unless { context has approval }", LIFTED_BY_EITHER])))
        marks = f'@id("r{number}")' + (' @approval("required")' if effect == "ask" else "")
        rules.append(f"{marks} {'forbid' if effect == 'ask' else effect} {head} {' '.join(clauses)};")
    return "\n".join(rules)


LABELS = st.builds(
    Labels,
    read_only=st.booleans(),
    destructive=st.booleans(),
    egress=st.booleans(),
    reads_private=st.booleans(),
    reads_untrusted=st.booleans(),
)
ENTRIES = st.builds(
    lambda server, name, labels, state: Entry(
        kind="tool", server=server, name=name, definition={}, labels=labels, state=state
    ),
    st.sampled_from(SERVERS),
    st.sampled_from(TOOLS),
    LABELS,
    st.sampled_from(["accepted", "accepted", "accepted", "quarantined"]),
)
CALLERS = st.builds(
    lambda kind, name, roles, project: Principal(
        kind=kind, id=name, owner="1000" if kind == "Agent" else "", roles=roles, project=project
    ),
    st.sampled_from(["Agent", "Agent", "User"]),
    st.sampled_from(AGENTS),
    st.sampled_from([(), ("editor",)]),
    st.sampled_from(["default", "other"]),
)
APPROVALS = st.one_of(
    st.none(),
    st.builds(
        lambda by, digest: ApprovalFacts(id="a", by=by, arguments_digest=digest),
        st.sampled_from(["2000", "coder"]),
        st.sampled_from(["sha256:these", "sha256:those"]),
    ),
)
EGRESS = st.sampled_from([(), ("a.example:443",), ("a.example:443", "b.example:443")])
SIZES = st.sampled_from([0, 5, 99, 100, 5000])
CALM = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _policy(text: str) -> CedarPolicy:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "rules.cedar")
        file.write_text(text)
        file.chmod(0o600)
        policy = open_policy(Path(directory), bundled("policies"), budget_ms=5000)
    assume(policy.rules is not None)  # some sets can never match, which Cedar refuses
    return policy


def _decide(
    policy: CedarPolicy,
    caller: Principal,
    entry: Entry | None,
    approval: ApprovalFacts | None,
    egress: tuple[str, ...],
    size: int,
    standing: StandingFacts | None = None,
    run: str = "run",
) -> Decision:
    return policy.decide(
        action="call_tool",
        principal=caller,
        entry=entry,
        name="name",
        run=run,
        arguments_digest="sha256:these",
        arguments_bytes=size,
        egress=egress,
        approval=approval,
        standing=standing,
    )


@CALM
@given(rule_sets(), CALLERS, ENTRIES, APPROVALS, EGRESS, SIZES)
def test_what_is_not_listed_is_refused_whatever_the_arguments(
    text: str, caller: Principal, entry: Entry, approval: ApprovalFacts | None, egress: tuple[str, ...], size: int
) -> None:
    policy = _policy(text)

    listed = policy.visible(action="call_tool", principal=caller, entries=[entry])

    verdict = _decide(policy, caller, entry, approval, egress, size).verdict
    assert listed == [True] or verdict == "deny"
    assert policy.visible(action="call_tool", principal=caller, entries=[entry]) == listed  # from the cache


@pytest.mark.long
@CALM
@given(rule_sets(), CALLERS, ENTRIES, APPROVALS, EGRESS, SIZES)
def test_deciding_by_the_rules_that_can_matter_says_what_all_rules_say(
    text: str, caller: Principal, entry: Entry, approval: ApprovalFacts | None, egress: tuple[str, ...], size: int
) -> None:
    policy = _policy(text)
    assert policy.rules is not None
    decision = _decide(policy, caller, entry, approval, egress, size)
    assume(decision.request.get("known") is not False)

    by_all = judge_again(decision.request, policy.rules)

    assert (by_all.verdict, by_all.rules, by_all.question) == (decision.verdict, decision.rules, decision.question)
    assert sorted(by_all.errors) == sorted(decision.errors)


@pytest.mark.long
@CALM
@given(
    rule_sets(),
    st.lists(st.tuples(CALLERS, ENTRIES, APPROVALS, EGRESS, SIZES, st.sampled_from(["run", "walk"])), min_size=2),
)
def test_whatever_was_decided_before_a_decision_is_what_all_rules_say_of_it(
    text: str,
    calls: list[tuple[Principal, Entry, ApprovalFacts | None, tuple[str, ...], int, str]],
) -> None:
    policy = _policy(text)
    assert policy.rules is not None
    for caller, entry, approval, egress, size, run in calls:
        decision = _decide(policy, caller, entry, approval, egress, size, run=run)
        if decision.request.get("known") is False:
            continue

        by_all = judge_again(decision.request, policy.rules)

        assert (by_all.verdict, by_all.rules, by_all.question) == (decision.verdict, decision.rules, decision.question)
        assert sorted(by_all.errors) == sorted(decision.errors)


@CALM
@given(rule_sets(), CALLERS, ENTRIES, APPROVALS, EGRESS, SIZES)
def test_no_rule_of_an_operator_goes_round_a_guardrail(
    text: str, caller: Principal, entry: Entry, approval: ApprovalFacts | None, egress: tuple[str, ...], size: int
) -> None:
    policy = _policy(text)
    guarded = entry.labels.destructive or (entry.labels.egress and not entry.labels.read_only) or bool(egress)
    approved = approval is not None and approval.arguments_digest == "sha256:these"

    decision = _decide(policy, caller, entry, approval, egress, size)

    assert decision.verdict != "allow" or approved or not guarded
    assert decision.verdict != "allow" or entry.state == "accepted"
    assert decision.verdict == "deny" or not decision.errors
    assert (decision.question is not None) == (decision.verdict == "ask")
    assert _decide(policy, caller, None, approval, egress, size).verdict == "deny"


@CALM
@given(rule_sets(), CALLERS, ENTRIES, APPROVALS, EGRESS, SIZES)
def test_a_standing_grant_turns_an_ask_into_an_allow_and_changes_nothing_else(
    text: str, caller: Principal, entry: Entry, approval: ApprovalFacts | None, egress: tuple[str, ...], size: int
) -> None:
    policy = _policy(text)
    without = _decide(policy, caller, entry, approval, egress, size)

    decision = _decide(policy, caller, entry, approval, egress, size, StandingFacts(id="G", by="2000"))

    if decision != without:
        assert (without.verdict, decision.verdict, decision.standing) == ("ask", "allow", "G")
    assert without.standing is None and (decision.standing is None or decision.verdict == "allow")


@pytest.mark.long
@CALM
@given(rule_sets(), CALLERS, ENTRIES, EGRESS, SIZES)
def test_an_offered_grant_works_and_none_is_offered_where_a_forbid_stands(
    text: str, caller: Principal, entry: Entry, egress: tuple[str, ...], size: int
) -> None:
    policy = _policy(text)
    decision = _decide(policy, caller, entry, None, egress, size)
    assume(decision.verdict == "deny")

    explanation = explain(decision, policy.rules)

    if explanation.smallest_grant is None:
        assert explanation.next_step
        return
    after = _decide(_policy(text + explanation.smallest_grant), caller, entry, None, egress, size)
    assert after.verdict in ("allow", "ask")
    stranger = replace(caller, id="stranger")
    assert _decide(_policy(explanation.smallest_grant), stranger, entry, None, (), size).verdict == "deny"


@settings(max_examples=60, deadline=None)
@given(rule_sets(), st.integers(0, 400))
def test_a_cut_off_file_is_refused_or_holds_only_whole_rules(text: str, at: int) -> None:
    whole = [statement for _, statement, _ in statements(text)]
    part = text[:at]

    found = list(statements(part))

    assert [statement for _, statement, complete in found if complete] == whole[: sum(c for _, _, c in found)]
    assert "".join(statement for _, statement, _ in found).replace("\n", "") == part.replace("\n", "")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='permit(){}[];"\\/\n @id=whenxyz', max_size=120))
def test_any_text_is_refused_or_loaded_but_never_raises_anything_else(text: str) -> None:
    from_text = f'@id("x") permit (principal, action, resource);\n{text}'
    try:
        _load(from_text)
    except ConfigError as refused:
        assert refused.problems
        assert all(problem.line >= 1 for problem in refused.problems)


def _load(text: str) -> None:
    compile_policies([PolicyFile("x.cedar", text)], read_shipped(bundled("policies")))


@pytest.mark.parametrize("count", [1, 300])
def test_lists_are_cached_per_caller_and_the_caches_are_bounded(
    policy_of: Callable[[str], CedarPolicy], count: int
) -> None:
    policy = policy_of('@id("editors") permit (principal in Omni::Role::"editor", action, resource);')
    entry = Entry(kind="tool", server="tools", name="read", definition={})

    seen = [
        policy.visible(
            action="call_tool",
            principal=Principal(kind="Agent", id=f"a{n}", owner="1000", roles=("editor",) if n % 2 else ()),
            entries=[entry],
        )
        for n in range(count)
    ]

    assert seen == [[bool(n % 2)] for n in range(count)]
