"""The suite against our own gateway: what `make conformance` runs, with its exit code and its JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.node.presence import needed_node

LONG = pytest.mark.long
RUN = Path(__file__).with_name("run.py")
LIMIT_S = 280


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


@pytest.mark.node
@pytest.mark.slow
@pytest.mark.parametrize("suite", [pytest.param("1", marks=LONG), pytest.param("2", marks=LONG), "3"])
def test_every_scored_scenario_passes_through_the_gateway(suite: str) -> None:
    needed_node()
    end = run("--json", "--suite", suite)
    assert end.stdout, end.stderr
    found = json.loads(end.stdout)
    [report] = found["suites"]
    failed = [row for row in report["scenarios"] if row["scored"] and not row["ok"]]
    assert failed == []
    assert (end.returncode, found["ok"]) == (0, True)


@pytest.mark.node
@pytest.mark.long
@pytest.mark.parametrize(("road", "suite"), [("stdio/modern", "2"), ("http/handshake", "3")])
def test_every_scenario_but_the_excused_passes_though_client_and_server_are_of_different_eras(
    road: str, suite: str
) -> None:
    needed_node()
    end = run("--json", "--road", road, "--suite", suite)
    assert end.stdout, end.stderr
    found = json.loads(end.stdout)
    [report] = found["suites"]
    failed = [row for row in report["scenarios"] if row["scored"] and not row["ok"]]
    assert (failed, found["stale"], end.returncode) == ([], [], 0)


@pytest.mark.node
def test_a_server_that_fails_makes_the_run_fail() -> None:
    needed_node()
    end = run("--suite", "2", "--url", "http://127.0.0.1:9/mcp")
    assert end.returncode == 1
    assert "0/30 scored scenarios" in end.stdout
