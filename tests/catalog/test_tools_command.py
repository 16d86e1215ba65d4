"""`omni-mcp tools` works on the manifests alone; a fault is an exit code and a place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from omni_mcp.cli.tools import tools
from omni_mcp.contracts.errors import ConfigError, NotFound
from omni_mcp.paths import bundled

BROKEN = "manifest: 1\nid: x\nversion: nope\nversion: 1.0.0\n"


@pytest.fixture
def runner(tmp_path: Path) -> CliRunner:
    """A command line of a user with an own, empty directory."""
    return CliRunner(env={"OMNI_HOME": str(tmp_path / "home")})


def test_list_and_show_agree_on_every_bundled_tool(runner: CliRunner) -> None:
    rows = json.loads(runner.invoke(tools, ["list", "--json"]).output)
    assert len(list(bundled("manifests").glob("*.yaml"))) < len(rows)
    assert {row["server"] for row in rows} == {"tools", "runs", "memory", "messages"}
    for row in rows:
        full = json.loads(runner.invoke(tools, ["show", row["name"], "--json"]).output)
        assert full["digest"].startswith("sha256:")
        assert row.items() <= full.items()
    text = runner.invoke(tools, ["list"]).output
    assert all(row["name"] in text for row in rows)
    assert "inputSchema" in runner.invoke(tools, ["show", "files_read"]).output


def test_an_unknown_tool_is_an_error_with_the_next_step(runner: CliRunner) -> None:
    result = runner.invoke(tools, ["show", "nope"])
    assert isinstance(result.exception, NotFound)
    assert "tools list" in str(result.exception)


def test_lint_is_silent_on_good_files_and_names_every_fault_of_bad_ones(runner: CliRunner, tmp_path: Path) -> None:
    good = [str(file) for file in sorted(bundled("manifests").glob("*.yaml"))]
    passed = runner.invoke(tools, ["lint", *good])
    assert (passed.exit_code, passed.output) == (0, "")

    broken = tmp_path / "broken.yaml"
    broken.write_text(BROKEN)
    failed = runner.invoke(tools, ["lint", good[0], str(broken)])
    assert failed.exit_code == 1
    assert f"{broken}:4: $.version: duplicate key; the first one is on line 3" in failed.output
    assert f"{broken}:1: $.title: is missing" in failed.output
    rows = json.loads(runner.invoke(tools, ["lint", "--json", str(broken)]).output)
    assert {"file": str(broken), "line": 1, "path": "$.binding", "message": "is missing"} in rows


def test_an_own_manifest_that_is_broken_is_reported_by_list(runner: CliRunner, tmp_path: Path) -> None:
    own = tmp_path / "home" / "manifests"
    own.mkdir(parents=True, mode=0o700)
    own.chmod(0o700)
    (own / "broken.yaml").write_text(BROKEN)
    (own / "broken.yaml").chmod(0o600)
    result = runner.invoke(tools, ["list"])
    assert isinstance(result.exception, ConfigError)
    assert "broken.yaml:4" in str(result.exception)
