"""What a rule can look at: nothing that it reads is missed, and what cannot be reached does not count."""

from __future__ import annotations

import cedarpy
import pytest

from omni_mcp.engines.policy.sight import seen_by
from omni_mcp.paths import bundled

ALWAYS = frozenset({"project", "run", "name", "args_digest", "args_bytes", "egress_hosts", "history"})


def seen(text: str, *more: str) -> set[str] | None:
    found = seen_by(cedarpy.policies_to_pst(text).static_policies.values(), ALWAYS | set(more))
    return None if found is None else set(found)


def rule(condition: str) -> str:
    return f"permit (principal, action, resource) when {{ {condition} }};"


@pytest.mark.parametrize(
    ("condition", "fields"),
    [
        ("resource.read_only", set()),
        ('context.run == "a" || context.args_bytes < 3', {"run", "args_bytes"}),
        ("context.approval.by == principal", {"approval"}),
        ("context has approval.by", {"approval"}),
        ('["a"].contains(context.name) && !(context.egress_hosts.isEmpty())', {"name", "egress_hosts"}),
        ('if context.run == "a" then context.args_bytes < 3 else principal has owner', {"run", "args_bytes"}),
        ('{"a": context.run}.a == "b"', {"run"}),
        ('context.name like "a*"', {"name"}),
        ("principal in context.project", {"project"}),
    ],
)
def test_every_field_that_is_read_counts(condition: str, fields: set[str]) -> None:
    assert seen(rule(condition)) == fields


@pytest.mark.parametrize("condition", ["context == context", '{"a": context}.a.args_bytes < 3', "[context].isEmpty()"])
def test_a_rule_that_handles_the_context_as_a_whole_reads_all_of_it(condition: str) -> None:
    assert seen(rule(condition)) is None


def test_what_stands_behind_a_missing_field_counts_only_where_it_is_there() -> None:
    condition = rule('context has approval && context.args_digest == "a"')

    assert seen(condition) == {"approval"}
    assert seen(condition, "approval") == {"approval", "args_digest"}


@pytest.mark.parametrize(
    "condition",
    [
        'context has approval || context.args_digest == "a"',
        '!(context has approval) && context.args_digest == "a"',
        'context.args_digest == "a" && context has approval',
        '(context has approval || context has standing) && context.args_digest == "a"',
        'principal has approval && context.args_digest == "a"',
        'if context has approval then true else context.args_digest == "a"',
    ],
)
def test_what_can_be_reached_without_the_field_counts(condition: str) -> None:
    found = seen(rule(condition), "standing")

    assert found is not None
    assert "args_digest" in found


def test_the_guardrails_look_at_no_arguments_until_there_is_an_approval() -> None:
    text = bundled("policies").joinpath("guardrails", "approvals.cedar").read_text()

    assert seen(text) == {"approval", "standing", "egress_hosts"}
    assert seen(text, "approval") == {"approval", "standing", "egress_hosts", "args_digest"}
