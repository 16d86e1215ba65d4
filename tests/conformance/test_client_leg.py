"""The client scenarios are those that count and need no OAuth, and a client that fails after its checks has failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conformance.client_leg import client_scenarios, judged
from tests.conformance.suite import SuiteBroken
from tests.conformance.upstream_leg import consent, sample_of
from tests.node.presence import needed_node


@pytest.mark.node
@pytest.mark.parametrize(("revision", "count"), [("2025-11-25", 4), ("2026-07-28", 7)])
def test_every_scored_scenario_without_oauth_is_run(revision: str, count: int) -> None:
    names = client_scenarios(needed_node(), revision)
    assert len(names) == count and "tools_call" in names
    assert not [name for name in names if name.startswith("auth/")]


def left(place: Path, *statuses: str) -> list[Path]:
    file = place / "checks.json"
    file.write_text(json.dumps([{"id": "a", "status": status, "description": "it"} for status in statuses]))
    return [file]


def test_a_scenario_is_judged_by_its_checks(tmp_path: Path) -> None:
    assert judged("it", 0, "", left(tmp_path, "SUCCESS", "INFO")).ok
    assert not judged("it", 0, "", left(tmp_path, "SUCCESS", "FAILURE")).ok
    assert not judged("it", 0, "", left(tmp_path, "INFO")).ok


def test_a_client_that_ends_badly_has_failed_though_its_checks_passed(tmp_path: Path) -> None:
    found = judged("it", 1, "a traceback", left(tmp_path, "SUCCESS"))
    assert not found.ok and "a traceback" in found.failures[0]


def test_a_scenario_that_left_nothing_is_no_pass(tmp_path: Path) -> None:
    with pytest.raises(SuiteBroken, match="0 results"):
        judged("it", 0, "", [])


def test_the_client_fills_in_forms_with_their_defaults_and_calls_with_samples() -> None:
    form = {"properties": {"a": {"type": "string", "default": "x"}, "b": {"type": "boolean"}}}
    assert consent({"requestedSchema": form}) == {"action": "accept", "content": {"a": "x", "b": True}}
    schema = {"properties": {"n": {"type": "number"}, "m": {"type": "string"}}, "required": ["n"]}
    assert sample_of(schema) == {"n": 2}
