"""The gate: what becomes of each answer that Cedar can give, and of each that it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.manifest import Labels
from omni_mcp.contracts.policy import ApprovalFacts, StandingFacts
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.policy.files import PolicyFile
from omni_mcp.engines.policy.policy import CedarPolicy, open_policy
from omni_mcp.engines.policy.policy_set import compile_policies, read_shipped
from omni_mcp.engines.policy.request import uid
from omni_mcp.paths import bundled

Open = Callable[[str], CedarPolicy]
YES = ApprovalFacts(id="a", by="2000", arguments_digest="sha256:these")
EVERYTHING = '@id("all") permit (principal, action, resource);'
ASKING = """
@id("ask") @approval("required") @approvers("lead, Omni::User::\\"2000\\"") @ttl("5m")
forbid (principal, action, resource)
unless { context has approval && context.approval.digest == context.args_digest };
"""


def test_without_a_rule_everything_is_denied_and_no_rule_is_named(policy_of: Open, decide: Any) -> None:
    decision = decide(policy_of("// nothing here"))

    assert (decision.verdict, decision.rules, decision.errors) == ("deny", (), ())


def test_a_permit_allows_and_is_named(policy_of: Open, decide: Any) -> None:
    policy = policy_of(EVERYTHING)

    decision = decide(policy)

    assert (decision.verdict, decision.rules, decision.policy_version) == ("allow", ("all",), policy.version)


def test_a_forbid_wins_over_a_permit(policy_of: Open, decide: Any) -> None:
    decision = decide(policy_of(EVERYTHING + '@id("no") forbid (principal, action, resource);'))

    assert (decision.verdict, decision.rules) == ("deny", ("no",))


def test_an_approval_rule_over_a_permit_asks_with_its_approvers_and_time(policy_of: Open, decide: Any) -> None:
    policy = policy_of(EVERYTHING + ASKING)

    decision = decide(policy)

    assert (decision.verdict, decision.rules) == ("ask", ("ask",))
    assert decision.question.approvers == ("lead", 'Omni::User::"2000"')
    assert (decision.question.ttl_s, decision.question.policy_version) == (300, policy.version)


def test_an_approval_of_these_arguments_turns_ask_into_allow(policy_of: Open, decide: Any) -> None:
    decision = decide(policy_of(EVERYTHING + ASKING), approval=YES)

    assert (decision.verdict, decision.rules) == ("allow", ("all",))


def test_an_approval_of_other_arguments_counts_for_nothing_even_if_the_rule_forgets_the_digest(
    policy_of: Open, decide: Any
) -> None:
    careless = '@id("ask") @approval("required") forbid (principal, action, resource) unless { context has approval };'
    policy = policy_of(EVERYTHING + careless)

    assert decide(policy, approval=YES).verdict == "allow"
    assert decide(policy, approval=replace(YES, arguments_digest="sha256:those")).verdict == "ask"


def test_nobody_is_asked_about_what_no_permit_covers(policy_of: Open, decide: Any) -> None:
    decision = decide(policy_of(ASKING))

    assert (decision.verdict, decision.rules, decision.question) == ("deny", ("ask",), None)


def test_nobody_is_asked_where_another_forbid_stands(policy_of: Open, decide: Any) -> None:
    decision = decide(policy_of(EVERYTHING + ASKING + '@id("no") forbid (principal, action, resource);'))

    assert (decision.verdict, decision.rules) == ("deny", ("ask", "no"))


def test_several_approval_rules_ask_one_question_for_the_shortest_time(policy_of: Open, decide: Any) -> None:
    second = ASKING.replace('"ask"', '"ask-too"').replace("5m", "30s").replace("lead", "chief")

    decision = decide(policy_of(EVERYTHING + ASKING + second))

    assert (decision.verdict, decision.rules, decision.question.ttl_s) == ("ask", ("ask", "ask-too"), 30)
    assert decision.question.approvers == ("lead", 'Omni::User::"2000"', "chief")


def test_a_forbid_that_fails_to_evaluate_is_a_deny_although_cedar_says_allow(policy_of: Open, decide: Any) -> None:
    overflow = '@id("no") forbid (principal, action, resource) when { context.args_bytes + 9223372036854775807 > 0 };'
    policy = policy_of(EVERYTHING + overflow)

    assert decide(policy, arguments_bytes=0).rules == ("no",)
    failing = decide(policy, arguments_bytes=1)
    assert failing.verdict == "deny"
    assert "overflow" in failing.errors[0]


def test_a_permit_that_fails_beside_one_that_holds_is_a_deny(policy_of: Open, decide: Any) -> None:
    overflow = '@id("odd") permit (principal, action, resource) when { context.args_bytes * 9223372036854775807 > 0 };'

    assert decide(policy_of(EVERYTHING + overflow), arguments_bytes=2).verdict == "deny"


def test_an_approval_rule_that_fails_asks_nobody(policy_of: Open, decide: Any) -> None:
    failing = ASKING.replace("unless {", "when { context.args_bytes + 9223372036854775807 > 0 } unless {")

    decision = decide(policy_of(EVERYTHING + failing), arguments_bytes=2)

    assert (decision.verdict, decision.question) == ("deny", None)
    assert decision.errors


def test_text_that_cedar_cannot_read_is_a_deny_and_raises_nothing(policy_of: Open, decide: Any) -> None:
    decision = decide(policy_of(EVERYTHING), run="\ud800")  # half a surrogate pair

    assert decision.verdict == "deny"
    assert decision.errors


def test_text_that_cedar_cannot_read_is_a_deny_although_its_like_was_allowed(policy_of: Open, decide: Any) -> None:
    policy = policy_of(EVERYTHING)
    assert decide(policy).verdict == "allow"

    assert decide(policy, name="\ud800").verdict == "deny"
    assert decide(policy, run="\ud800").verdict == "deny"


def test_each_call_is_judged_by_its_own_arguments(policy_of: Open, coder: Principal, reader: Entry) -> None:
    these = '@id("these") permit (principal, action, resource) when { context.args_digest == "sha256:these" };'
    policy = policy_of(these)

    def verdict(digest: str) -> str:
        return policy.decide(
            action="call_tool", principal=coder, entry=reader, name="tools__read", run="run", arguments_digest=digest,
            arguments_bytes=2,
        ).verdict  # fmt: skip

    asked = ("sha256:these", "sha256:those", "sha256:these")
    assert [verdict(digest) for digest in asked] == ["allow", "deny", "allow"]


def test_rules_that_came_since_decide_although_the_same_call_was_allowed(
    policy_of: Open, decide: Any, write: Callable[..., Path]
) -> None:
    policy = policy_of(EVERYTHING)
    assert decide(policy).verdict == "allow"

    write("// nothing here")
    policy.reload()

    assert decide(policy).verdict == "deny"


@pytest.mark.parametrize("size", [-5, 2**63, 2**200])
def test_a_size_beyond_64_bits_is_clamped_rather_than_failing(policy_of: Open, decide: Any, size: int) -> None:
    large = '@id("large") forbid (principal, action, resource) when { context.args_bytes > 1000 };'

    decision = decide(policy_of(EVERYTHING + large), arguments_bytes=size)

    assert (decision.verdict, decision.errors) == ("deny" if size > 0 else "allow", ())


def test_too_many_hosts_are_a_deny(policy_of: Open, decide: Any) -> None:
    decision = decide(policy_of(EVERYTHING), egress=tuple(f"h{n}:443" for n in range(257)))

    assert decision.verdict == "deny"
    assert "256" in decision.errors[0]


def test_a_decision_over_its_budget_is_a_deny_with_the_reason(rules_dir: Path, write: Any, decide: Any) -> None:
    write(EVERYTHING)
    ticks: Iterator[int] = iter(range(0, 10**12, 60_000_000))
    policy = CedarPolicy(rules_dir, read_shipped(bundled("policies")), budget_ms=50, cpu_ns=lambda: next(ticks))

    decision = decide(policy)

    assert decision.verdict == "deny"
    assert "60.0 ms" in decision.errors[0]


def test_the_unknown_resource_is_denied_under_a_permit_for_everything(policy_of: Open, decide: Any) -> None:
    decision = decide(policy_of(EVERYTHING), None, name="no__such")

    assert (decision.verdict, decision.rules, decision.question) == ("deny", (), None)
    assert decision.request["known"] is False


def test_a_quarantined_entry_is_the_unknown_resource(policy_of: Open, decide: Any, reader: Entry) -> None:
    decision = decide(policy_of(EVERYTHING), replace(reader, state="quarantined"))

    assert (decision.verdict, decision.request["known"]) == ("deny", False)


def test_an_entry_of_another_kind_than_the_action_is_denied(policy_of: Open, decide: Any, reader: Entry) -> None:
    assert decide(policy_of(EVERYTHING), reader, action="get_prompt").verdict == "deny"


@pytest.mark.parametrize("kind", ["resource", "resource_template"])
def test_a_resource_and_a_template_are_read_by_the_same_rule(
    policy_of: Open, decide: Any, reader: Entry, kind: Any
) -> None:
    policy = policy_of('@id("r") permit (principal, action == Omni::Action::"read_resource", resource);')
    entry = replace(reader, kind=kind, server="runs", name="run://{id}", digest="")

    assert decide(policy, entry, action="read_resource").verdict == "allow"
    assert decide(policy, reader).verdict == "deny"


@pytest.mark.parametrize("name", ["a\nb", "a\x00b", "\u0301a", "a\u202eb", "", "x" * 3000])
def test_a_name_that_cedar_reads_in_two_ways_is_neither_allowed_nor_listed(
    policy_of: Open, decide: Any, coder: Principal, reader: Entry, name: str
) -> None:
    entry = replace(reader, name=name, server=name[:1] or "", digest="")
    policy = policy_of(EVERYTHING)

    decision = decide(policy, entry)

    assert (decision.verdict, bool(decision.errors)) == ("deny", True)
    assert policy.visible(action="call_tool", principal=coder, entries=[entry]) == [False]


@pytest.mark.parametrize("name", ["it's", 'say "hi"', "back\\slash", "é日本", "file:///a?b=c&d='e'"])
def test_names_with_quotes_and_foreign_letters_are_decided_and_listed_alike(
    policy_of: Open, decide: Any, coder: Principal, reader: Entry, name: str
) -> None:
    entry = replace(reader, name=name, digest="")
    policy = policy_of(EVERYTHING)

    assert decide(policy, entry).verdict == "allow"
    assert policy.visible(action="call_tool", principal=coder, entries=[entry]) == [True]


def test_the_same_agent_name_of_another_owner_can_be_told_apart(policy_of: Open, decide: Any, coder: Principal) -> None:
    policy = policy_of(
        '@id("mine") permit (principal == Omni::Agent::"coder", action, resource)'
        ' when { principal.owner == Omni::User::"1000" };'
    )

    assert decide(policy).verdict == "allow"
    assert decide(policy, principal=replace(coder, owner="1001")).verdict == "deny"


def test_a_role_of_the_approver_decides_who_may_approve(rules_dir: Path, write: Any, decide: Any) -> None:
    write((bundled("policies") / "examples" / "editors.cedar").read_text())
    roles = {"2000": ("lead",), "1000": ("lead",)}
    shipped = read_shipped(bundled("policies"))
    policy = CedarPolicy(rules_dir, shipped, budget_ms=5000, roles_of=lambda user: roles.get(user, ()))
    entry = Entry(kind="tool", server="files", name="w", definition={}, labels=Labels(destructive=False, egress=False))

    assert decide(policy, entry).verdict == "ask"
    assert decide(policy, entry, approval=YES).verdict == "allow"
    assert decide(policy, entry, approval=replace(YES, by="3000")).verdict == "ask"
    assert decide(policy, entry, approval=replace(YES, by="1000")).verdict == "ask"  # its own owner


def test_a_user_who_approves_their_own_call_is_one_entity(policy_of: Open, decide: Any) -> None:
    user = Principal(kind="User", id="2000", project="default")

    assert decide(policy_of(EVERYTHING + ASKING), principal=user, approval=YES).verdict == "allow"


@pytest.mark.parametrize(
    ("labels", "hosts", "expected"),
    [
        (Labels(read_only=True, destructive=False, egress=False), (), "allow"),
        (Labels(read_only=True, destructive=False, egress=True), (), "allow"),
        (Labels(destructive=False, egress=False), (), "allow"),
        (Labels(destructive=True, egress=False), (), "guardrail-destructive"),
        (Labels(destructive=False, egress=True), (), "guardrail-external-write"),
        (Labels(read_only=True, destructive=False, egress=True), ("a.example:443",), "guardrail-new-egress"),
        (Labels(destructive=False, egress=False), ("a.example:443",), "guardrail-new-egress"),
    ],
)
def test_guardrails_ask_whatever_is_permitted_and_a_yes_lets_the_call_through(
    policy_of: Open, decide: Any, reader: Entry, labels: Labels, hosts: tuple[str, ...], expected: str
) -> None:
    policy = policy_of(EVERYTHING)
    entry = replace(reader, labels=labels, digest="")

    decision = decide(policy, entry, egress=hosts)

    assert decision.verdict == ("allow" if expected == "allow" else "ask")
    assert expected == "allow" or decision.rules == (expected,)
    assert decide(policy, entry, egress=hosts, approval=YES).verdict == "allow"


def test_a_tool_that_nobody_vouched_for_meets_every_guardrail_that_can_apply(
    policy_of: Open, decide: Any, unlabelled: Entry
) -> None:
    decision = decide(policy_of(EVERYTHING), unlabelled)

    assert decision.rules == ("guardrail-destructive", "guardrail-external-write")


def test_guardrails_alone_allow_nothing(policy_of: Open, decide: Any, unlabelled: Entry) -> None:
    policy = policy_of("")

    assert decide(policy, unlabelled, approval=YES).verdict == "deny"
    assert all(rule.effect == "forbid" for rule in policy.rules.rules if rule.shipped)  # type: ignore[union-attr]


GIVEN = StandingFacts(id="G1", by="1000")


def test_a_standing_grant_lets_a_guarded_call_through_and_its_id_is_in_the_decision(
    policy_of: Open, decide: Any, unlabelled: Entry
) -> None:
    decision = decide(policy_of(EVERYTHING), unlabelled, egress=("a.example:443",), standing=GIVEN)

    assert (decision.verdict, decision.standing, decision.rules) == ("allow", "G1", ("all",))
    assert decision.request["context"]["standing"] == {"id": "G1", "by": {"__entity": uid("Omni::User", "1000")}}


def test_without_a_rule_that_allows_it_a_standing_grant_is_not_even_looked_at(
    policy_of: Open, decide: Any, unlabelled: Entry
) -> None:
    only_under_a_grant = '@id("odd") permit (principal, action, resource) when { context has standing };'
    for text in ("", only_under_a_grant):
        decision = decide(policy_of(text), unlabelled, standing=GIVEN)

        assert (decision.verdict, decision.standing) == ("deny", None)
        assert "standing" not in decision.request["context"]


def test_a_standing_grant_is_no_part_of_a_decision_that_does_not_need_it(policy_of: Open, decide: Any) -> None:
    decision = decide(policy_of(EVERYTHING), standing=GIVEN)

    assert (decision.verdict, decision.standing) == ("allow", None)


def test_a_rule_can_refuse_standing_grants_or_say_who_may_give_them(
    rules_dir: Path, write: Any, unlabelled: Entry, coder: Any
) -> None:
    lead = 'context has standing && context.standing.by in Omni::Role::"lead"'
    write(
        EVERYTHING + f'@id("each") @approval("required") forbid (principal, action, resource) '
        f"unless {{ context has approval || ({lead}) }};"
    )
    policy = CedarPolicy(
        rules_dir, read_shipped(bundled("policies")), roles_of=lambda user: ("lead",) if user == "2000" else ()
    )

    decisions = [
        policy.decide(
            action="call_tool", principal=coder, entry=unlabelled, name="x", run="", arguments_digest="",
            arguments_bytes=2, standing=StandingFacts(id="G", by=by),
        )
        for by in ("1000", "2000")
    ]  # fmt: skip

    assert [(one.verdict, one.standing) for one in decisions] == [("ask", None), ("allow", "G")]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("\n\npermit (principal, action, resource) when { ; };", 3, "no Cedar rule"),
        ("permit (principal, action, resource)", 1, "no end"),
        ("permit (principal, action, resource);\npermit (principal, act", 2, "no end"),
        ('permit (principal, action, resource) when { "open };', 1, "no end"),
        ('\n@approval("required") permit (principal, action, resource);', 2, "never on a permit"),
        ('@approval("maybe") forbid (principal, action, resource) unless { context has approval };', 1, '"required"'),
        ('@approval("required") forbid (principal, action, resource);', 1, "never looks at context.approval"),
        ('@ttl("5m") forbid (principal, action, resource);', 1, "only beside"),
        (ASKING.replace("5m", "5 minutes"), 2, "no span"),
        (ASKING.replace("5m", "0s"), 2, "no span"),
        (ASKING.replace("5m", "8d"), 2, "no span"),
        (
            '@id("a") permit (principal, action, resource);\n@id("a") forbid (principal, action, resource);',
            2,
            "taken by",
        ),
        ('@id("guardrail-mine") permit (principal, action, resource);', 1, "belong to the rules that ship"),
        ('@id("guardrail-destructive") forbid (principal, action, resource);', 1, "belong to the rules that ship"),
        ('@id("no spaces") permit (principal, action, resource);', 1, "letters, digits"),
        ("permit (principal == ?principal, action, resource);", 1, "slots"),
        ("forbid (principal, action, resource) when { context.approval.by == principal };", 1, "optional attribute"),
        ("permit (principal, action, resource is Omni::Tol);", 1, "unrecognized entity type"),
        ('permit (principal, action == Omni::Action::"call_tol", resource);', 1, "unrecognized action"),
        ("permit (principal, action, resource) when { resource.readonly };", 1, "readonly"),
        ("forbid (principal, action, resource) when { context.history.calls_1h > 3 };", 1, "not found"),
        ("permit (principal, action, resource) when {" + "(" * 200 + "true" + ")" * 200 + "};", 1, "nested"),
        ("permit (principal, action, resource) when {" + "(" * 30000 + "true" + ")" * 30000 + "};", 1, "nested"),
        ("permit (principal, action, resource) when {" + "true && " * 3000 + "true };", 1, "operators"),
        ("permit (principal, action, resource) when { context" + ".run" * 3000 + " };", 1, "operators"),
        ("permit (principal, action, resource) when {" + "true || " * 300 + "true };", 1, "100 levels"),
    ],
)
def test_a_rule_that_would_not_do_what_it_says_is_refused_with_its_file_and_line(
    text: str, line: int, words: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        compile_policies([PolicyFile("mine.cedar", text)], read_shipped(bundled("policies")))

    problem = refused.value.problems[0]
    assert (problem.file, problem.line) == ("mine.cedar", line)
    assert words in str(refused.value)


def test_every_problem_of_every_file_is_reported_at_once() -> None:
    files = [PolicyFile("a.cedar", "permit (x);\n\npermit (y);"), PolicyFile("b.cedar", "forbid")]

    with pytest.raises(ConfigError) as refused:
        compile_policies(files, read_shipped(bundled("policies")))

    places = [(problem.file, problem.line) for problem in refused.value.problems]
    assert places == [("a.cedar", 1), ("a.cedar", 3), ("b.cedar", 1)]


def test_a_rule_without_an_id_gets_one_from_its_place_and_a_warning() -> None:
    text = '@id("first") permit (principal, action, resource);\npermit (principal, action, resource);'

    rules = compile_policies([PolicyFile("mine.cedar", text)], read_shipped(bundled("policies")))

    assert [rule.id for rule in rules.rules if not rule.shipped] == ["first", "mine.cedar#2"]
    assert [(warning.file, warning.line) for warning in rules.warnings] == [("mine.cedar", 2)]


def test_semicolons_quotes_and_slashes_in_strings_and_comments_end_no_rule() -> None:
    text = (
        '// a comment; with "quotes\n'
        '@id("one") // after; it\n'
        'permit (principal, action, resource) when { resource.name == "a;b // c \\" d" };\n'
        '@id("two") forbid (principal, action, resource) when { resource.name like "*;*" };'
    )

    rules = compile_policies([PolicyFile("mine.cedar", text)], read_shipped(bundled("policies")))

    own = [rule for rule in rules.rules if not rule.shipped]
    assert [(rule.id, rule.line) for rule in own] == [("one", 2), ("two", 4)]
    assert own[0].text.startswith('@id("one")') and own[0].text.endswith(";")


def test_the_version_changes_with_any_byte_of_any_rule_and_with_nothing_else() -> None:
    shipped = read_shipped(bundled("policies"))

    def version(*files: tuple[str, str]) -> str:
        return compile_policies([PolicyFile(*file) for file in files], shipped).version

    assert version(("a", EVERYTHING)) == version(("a", EVERYTHING))
    assert version(("a", EVERYTHING)) != version(("a", EVERYTHING + " "))
    assert version(("a", EVERYTHING)) != version(("b", EVERYTHING))
    assert version() != compile_policies([], replace(shipped, schema_text=shipped.schema_text + "\n")).version


def test_the_recorded_request_holds_all_that_was_decided_on(policy_of: Open, decide: Any) -> None:
    request = decide(policy_of(EVERYTHING)).request

    assert request["context"]["args_digest"] == "sha256:these"
    assert request["context"]["run"] == "run"
    types = [entity["uid"]["type"] for entity in request["entities"]]
    assert types == ["Omni::Agent", "Omni::Tool"]
    assert request["entities"][1]["attrs"]["read_only"] is True


def test_shipped_rules_that_are_missing_stop_the_start(rules_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "shipped").mkdir()

    with pytest.raises(FileNotFoundError):
        open_policy(rules_dir, tmp_path / "shipped")
