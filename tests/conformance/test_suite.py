"""What the suite's checks are made into: a scenario counts only if it showed something."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.conformance.suite import Report, Suite, SuiteBroken, every_suite, read_results, run_suite
from tests.node.presence import needed_node
from tests.node.setup import Node

SUITE = Suite("a suite", "none", (), frozenset({"ping", "server-initialize", "empty"}), {"tasks": "extension"})


def checks(out: Path, scenario: str, *statuses: str) -> None:
    place = out / f"server-{scenario}-2026-01-02T03-04-05-678Z"
    place.mkdir(parents=True)
    found = [{"id": f"c{n}", "description": "d", "status": status} for n, status in enumerate(statuses)]
    (place / "checks.json").write_text(json.dumps(found))


def test_a_scored_scenario_that_failed_or_showed_nothing_fails_the_run(tmp_path: Path) -> None:
    checks(tmp_path, "ping", "SUCCESS", "WARNING")
    checks(tmp_path, "server-initialize", "SUCCESS", "FAILURE")
    checks(tmp_path, "empty", "SKIPPED", "INFO")
    checks(tmp_path, "tasks", "FAILURE")

    report = Report("a suite", tuple(read_results(SUITE, tmp_path)))

    assert [scenario.name for scenario in report.scored_failures] == ["empty", "server-initialize"]
    assert report.summary() == "a suite: 1/3 scored scenarios; 2 checks passed, 2 failed, 1 warnings in 4 scenarios"
    tasks = report.scenarios[-1]
    assert (tasks.scored, tasks.reason, tasks.failures) == (False, "extension", ("c0: d",))


def fake_node(tmp_path: Path, script: str) -> Node:
    """A `node` that is a Python, and a package whose command is *script*."""
    home = tmp_path / "node_modules" / "none"
    home.mkdir(parents=True)
    (home / "package.json").write_text('{"bin": "main.py"}')
    (home / "main.py").write_text(script)
    (tmp_path / "node_modules" / ".bin").mkdir()
    (tmp_path / "node_modules" / ".bin" / "node").symlink_to(sys.executable)
    return Node(tmp_path)


def test_a_suite_that_leaves_fewer_results_than_it_announced_is_broken_and_not_green(tmp_path: Path) -> None:
    node = fake_node(tmp_path, "print('Running all suite (3 scenarios) against x')")
    with pytest.raises(SuiteBroken, match="0 of 3 scenarios"):
        run_suite(node, SUITE, "http://127.0.0.1:1/", tmp_path / "out")


def test_a_suite_that_says_nothing_is_broken(tmp_path: Path) -> None:
    with pytest.raises(SuiteBroken, match="0 of 0 scenarios"):
        run_suite(fake_node(tmp_path, ""), SUITE, "http://127.0.0.1:1/", tmp_path / "out")


def test_a_suite_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(SuiteBroken, match="took longer"):
        run_suite(fake_node(tmp_path, "import signal; signal.pause()"), SUITE, "u", tmp_path / "o", limit_s=0.3)


@pytest.mark.node
def test_the_frozen_requirements_are_read_from_the_installed_package() -> None:
    suites = every_suite(needed_node())
    assert [len(suite.scored or ()) for suite in suites] == [0, 30, 37]
    assert suites[0].scored is None and suites[2].unscored["tasks-lifecycle"] == "extension"


@pytest.mark.node
def test_a_server_that_is_not_there_fails_every_scenario(tmp_path: Path) -> None:
    node = needed_node()
    stable = every_suite(node)[0]
    report = run_suite(node, stable, "http://127.0.0.1:9/mcp", tmp_path)
    assert len(report.scenarios) == 32
    assert len(report.scored_failures) == len(report.scenarios)
