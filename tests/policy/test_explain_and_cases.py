"""Why: the words that people get, the grant that is offered, and tests of rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.policy import StandingFacts
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.policy.cases import read_cases, run_cases
from omni_mcp.engines.policy.explain import explain
from omni_mcp.engines.policy.files import PolicyFile, read_policy_files
from omni_mcp.engines.policy.grants import GrantSpec
from omni_mcp.engines.policy.policy import CedarPolicy
from omni_mcp.engines.policy.policy_set import compile_policies, read_shipped
from omni_mcp.paths import bundled

Open = Callable[[str], CedarPolicy]
EVERYTHING = '@id("all") permit (principal, action, resource);'
EXAMPLES = bundled("policies") / "examples"
STARTERS = bundled("policies") / "starters"


def test_an_allowed_call_is_explained_by_its_rule_with_file_and_text(policy_of: Open, decide: Any) -> None:
    policy = policy_of("\n" + EVERYTHING)

    found = explain(decide(policy), policy.rules)

    assert (found.verdict, found.summary, found.smallest_grant) == ("allow", "allowed by all", None)
    assert found.rules == ({"id": "all", "effect": "permit", "file": "rules.cedar:2", "text": EVERYTHING},)


def test_a_refusal_without_a_rule_offers_a_grant_that_works_for_exactly_this_caller_and_tool(
    policy_of: Open, decide: Any, reader: Entry, writer: Entry, coder: Any
) -> None:
    policy = policy_of("")

    found = explain(decide(policy), policy.rules)

    assert "no rule matched" in found.summary
    assert found.next_step == "run: omni-mcp allow tools__read --to coder --user 1000 --project default"
    granted = policy_of(found.smallest_grant or "")
    assert decide(granted).verdict == "allow"
    assert decide(granted, writer).verdict == "deny"
    assert decide(granted, principal=replace(coder, id="other")).verdict == "deny"
    assert decide(granted, principal=replace(coder, owner="1001")).verdict == "deny"
    assert decide(granted, principal=replace(coder, project="other")).verdict == "deny"


def test_where_a_guardrail_would_still_ask_the_grant_says_so(policy_of: Open, decide: Any, unlabelled: Entry) -> None:
    policy = policy_of("")

    found = explain(decide(policy, unlabelled), policy.rules)

    assert found.smallest_grant
    assert "nobody was asked" in found.summary
    assert "guardrail-destructive, guardrail-external-write will still ask" in found.next_step


def test_where_a_forbid_stands_no_grant_is_offered_and_the_forbid_is_named(policy_of: Open, decide: Any) -> None:
    policy = policy_of(EVERYTHING + '@id("never") forbid (principal, action, resource);')

    found = explain(decide(policy), policy.rules)

    assert (found.smallest_grant, found.rules[0]["id"]) == (None, "never")
    assert "never forbids it whatever is allowed" in found.next_step


def test_where_a_rule_fails_no_grant_is_offered(policy_of: Open, decide: Any) -> None:
    policy = policy_of(
        '@id("x") forbid (principal, action, resource) when { context.args_bytes + 9223372036854775807 > 0 };'
    )

    found = explain(decide(policy), policy.rules)

    assert found.smallest_grant is None
    assert "overflow" in found.summary and "deny whatever is allowed" in found.next_step


def test_the_unknown_resource_gets_no_grant(policy_of: Open, decide: Any) -> None:
    policy = policy_of(EVERYTHING)

    found = explain(decide(policy, None), policy.rules)

    assert found.smallest_grant is None
    assert "omni-mcp tools list" in found.next_step


def test_a_question_is_explained_with_the_command_that_lists_it(
    policy_of: Open, decide: Any, unlabelled: Entry
) -> None:
    policy = policy_of(EVERYTHING)

    found = explain(decide(policy, unlabelled), policy.rules)

    assert (found.verdict, found.next_step) == (
        "ask",
        "run: omni-mcp approvals list; to stop asking for a time: "
        "omni-mcp approvals grant other__anything --to coder --user 1000 --project default --expires 7d",
    )


def test_where_a_rule_takes_no_standing_grant_none_is_offered(policy_of: Open, decide: Any, unlabelled: Entry) -> None:
    strict = '@id("each") @approval("required") forbid (principal, action, resource) unless { context has approval };'
    policy = policy_of(EVERYTHING + strict)

    assert explain(decide(policy, unlabelled), policy.rules).next_step == "run: omni-mcp approvals list"


def test_a_call_that_a_standing_grant_let_through_is_explained_by_it(
    policy_of: Open, decide: Any, unlabelled: Entry
) -> None:
    policy = policy_of(EVERYTHING)

    found = explain(decide(policy, unlabelled, standing=StandingFacts(id="G1", by="1000")), policy.rules)

    assert (found.verdict, found.summary) == ("allow", "allowed by all under the standing grant G1")


def test_a_decision_of_an_older_version_says_so_and_is_tried_on_the_rules_of_now(policy_of: Open, decide: Any) -> None:
    refused = decide(policy_of(""))
    now = policy_of(EVERYTHING)

    found = explain(refused, now.rules)

    assert "in force now is" in found.summary
    assert found.next_step == "the rules in force now allow it; send the call again"


def test_while_everything_is_denied_the_reason_is_the_explanation(
    policy_of: Open, rules_dir: Path, decide: Any
) -> None:
    rules_dir.chmod(0o777)
    policy = policy_of(EVERYTHING)

    found = explain(decide(policy), policy.rules)

    assert "chmod 700" in found.summary


@pytest.mark.parametrize(
    "spec",
    [
        GrantSpec(target="tools__read"),
        GrantSpec(target="tools", kind="server", read_only=True),
        GrantSpec(target="tools__read", agent='o"dd\\', user="it's", project="p"),
        GrantSpec(target="runs__run://{id}", action="read_resource", user="1000"),
        GrantSpec(target="a__" + "x" * 300, action="get_prompt"),
    ],
)
def test_every_grant_is_a_valid_rule_under_its_own_name(policy_of: Open, spec: GrantSpec) -> None:
    policy = policy_of(spec.text())

    assert policy.problems == ()
    assert [rule.id for rule in policy.rules.rules if not rule.shipped] == [spec.id]  # type: ignore[union-attr]
    assert "/" not in spec.file_name and len(spec.file_name) < 120


def test_grants_that_differ_have_names_that_differ() -> None:
    names = {
        GrantSpec(target=target, kind=kind, agent=agent, user=user).file_name
        for target in ("a__b", "a", "a_b")
        for kind in ("entry", "server")
        for agent in ("", "x", "x-y")
        for user in ("", "y", "x")
    }

    assert len(names) == 3 * 2 * 3 * 3


@pytest.mark.parametrize("file", sorted([*EXAMPLES.glob("*.cedar"), *STARTERS.glob("*.cedar")]), ids=lambda f: f.name)
def test_shipped_examples_and_starters_pass_their_own_cases_and_every_rule_is_covered(file: Path) -> None:
    files = [one for one in read_policy_files(file.parent, in_force=False) if one.name == file.name]
    policies = compile_policies(files, read_shipped(bundled("policies")))
    cases = file.with_suffix(".test.yaml")

    report = run_cases([(cases.name, case) for case in read_cases(cases)], policies)

    assert (report.failed, report.uncovered) == ((), ())
    assert len(report.results) >= 3


def test_no_permit_ships() -> None:
    assert all(rule.effect == "forbid" for rule in compile_policies([], read_shipped(bundled("policies"))).rules)


@pytest.mark.parametrize("name", sorted(file.name for file in (bundled("policies") / "guardrails").glob("*.yaml")))
def test_the_guardrails_pass_their_own_cases_beside_a_rule_that_allows_everything(name: str) -> None:
    shipped = read_shipped(bundled("policies"))
    everything = '@id("everything") permit (principal, action, resource);'
    policies = compile_policies([PolicyFile("all.cedar", everything)], shipped)

    report = run_cases([(name, case) for case in read_cases(bundled("policies") / "guardrails" / name)], policies)

    assert report.failed == ()
    determined = {rule for result in report.results for rule in result.judgement.rules}
    assert {rule.id for rule in policies.rules} == determined


CASE = """
- principal: {id: coder}
  action: call_tool
  resource: {server: tools, name: read, labels: {read_only: true, destructive: false, egress: false}}
  expect: %s
  by: %s
"""


@pytest.mark.parametrize(
    ("expect", "by", "words"),
    [
        ("allow", "[all]", ""),
        ("deny", "[all]", "expected deny, got allow by all"),
        ("allow", "[]", "by no rule, was by all"),
    ],
)
def test_a_case_fails_on_another_verdict_or_another_rule(
    policy_of: Open, tmp_path: Path, expect: str, by: str, words: str
) -> None:
    (tmp_path / "x.yaml").write_text(CASE % (expect, by))
    policy = policy_of(EVERYTHING)
    assert policy.rules is not None

    report = run_cases([("x.yaml", case) for case in read_cases(tmp_path / "x.yaml")], policy.rules)

    assert words in report.results[0].message
    assert bool(report.failed) == bool(words)


def test_a_rule_that_determines_no_case_is_named(policy_of: Open, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(CASE % ("allow", "[all]"))
    policy = policy_of(
        EVERYTHING + '@id("idle") forbid (principal, action, resource) when { context.args_bytes > 99 };'
    )
    assert policy.rules is not None

    assert run_cases([("x", case) for case in read_cases(tmp_path / "x.yaml")], policy.rules).uncovered == ("idle",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- {", "no YAML"),
        ("{}\n", "passed"),
        ("- {principal: {id: a}, action: fly}", "$.0.action"),
        ("- {principal: {id: a}, actoin: call_tool}", "$.0.actoin"),
        ("just text", "valid list"),
    ],
)
def test_a_broken_case_file_is_refused_with_the_place(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    if words == "passed":
        assert read_cases(tmp_path / "x.yaml") == []
        return

    with pytest.raises(ConfigError) as refused:
        read_cases(tmp_path / "x.yaml")

    assert words in str(refused.value)
