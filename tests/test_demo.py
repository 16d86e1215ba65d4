"""`omni-mcp demo` shows the main job with real clients, cleans up, and says what it lacks without a sandbox."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from omni_mcp.engines.sandbox.probe import Missing, find_bwrap

LIMIT_S = 280


def run_demo(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TMPDIR": str(tmp_path), **environment}
    env.pop("OMNI_HOME", None)
    command = [sys.executable, "-m", "omni_mcp.cli.main", "demo"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.mark.long
def test_the_demo_walks_one_call_through_everything_and_leaves_nothing(tmp_path: Path) -> None:
    if isinstance(find_bwrap(), Missing):
        if "bwrap" in os.environ.get("OMNI_REQUIRE", "").split(","):
            pytest.fail("OMNI_REQUIRE names bwrap, which is not there")
        pytest.skip("bubblewrap is not there")

    done = run_demo(tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    for shown in (
        "silence is a deny",  # refused, and why
        "in force without a restart",  # allowed
        "approvals approve",  # waited for a person
        "your home directory: stopped",  # sandboxed
        "the internet: stopped",
        "computed all the same",
        "tool_result",  # the timeline
        "verified: 2 runs",  # the chain
    ):
        assert shown in done.stdout, shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_without_bubblewrap_the_demo_says_what_it_lacks_refuses_sandboxed_calls_and_exits_3(tmp_path: Path) -> None:
    done = run_demo(tmp_path, PATH=str(tmp_path))

    assert done.returncode == 3, done.stdout + done.stderr
    assert "isolation in force: landlock" in done.stdout or "isolation in force: none" in done.stdout
    assert "install bubblewrap" in done.stdout
    assert "sandbox_unavailable" in done.stdout
    assert "computed all the same" not in done.stdout
    assert list(tmp_path.iterdir()) == []
