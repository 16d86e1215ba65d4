"""What docs/policy.md shows can be loaded and passes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from omni_mcp.engines.policy.cases import read_cases, run_cases
from omni_mcp.engines.policy.files import PolicyFile
from omni_mcp.engines.policy.policy_set import MAX_RULES, compile_policies, read_shipped
from omni_mcp.engines.policy.rules import MAX_LINKS, MAX_NESTING
from omni_mcp.paths import bundled

PAGE = Path(__file__).parents[2] / "docs" / "policy.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def test_the_rules_on_the_page_are_in_order_and_its_case_passes(tmp_path: Path) -> None:
    rules, cases = _blocks("cedar"), _blocks("yaml")
    assert (len(rules), len(cases)) == (2, 1)
    (tmp_path / "page.test.yaml").write_text(cases[0], "utf-8")

    policies = compile_policies([PolicyFile("page.cedar", "\n".join(rules))], read_shipped(bundled("policies")))

    report = run_cases([("page", case) for case in read_cases(tmp_path / "page.test.yaml")], policies)
    assert report.failed == ()


def test_the_guardrails_on_the_page_are_those_that_ship() -> None:
    named = set(re.findall(r"^- `(guardrail-[a-z-]+)`", PAGE.read_text("utf-8"), re.MULTILINE))

    assert named == {rule.id for rule in compile_policies([], read_shipped(bundled("policies"))).rules}


@pytest.mark.parametrize("limit", [f"{MAX_RULES:,} rules", f"{MAX_NESTING} levels", f"{MAX_LINKS} operators"])
def test_the_limits_on_the_page_are_those_in_force(limit: str) -> None:
    assert limit in PAGE.read_text("utf-8").replace("\n", " ")
