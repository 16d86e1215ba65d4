"""`omni-mcp init` writes one small file, says what it allows, and never overwrites what a person edited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from omni_mcp.cli.root import cli


def init(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["init", *arguments], env={"OMNI_HOME": str(home)})


@pytest.mark.parametrize(
    ("starter", "expected"),
    [
        ("desktop", {"tools__files_read": "allow", "tools__files_write": "ask"}),
        ("team", {"tools__text_hash": "allow", "tools__files_read": "deny", "tools__files_write": "deny"}),
        ("ci", {"tools__files_read": "allow", "tools__files_write": "deny", "tools__http_fetch": "deny"}),
    ],
)
def test_a_starter_says_what_becomes_of_the_tools_that_are_there(
    tmp_path: Path, starter: str, expected: dict[str, str]
) -> None:
    said = json.loads(init(tmp_path, "--starter", starter, "--json").output)

    assert {name: said["tools"][name] for name in expected} == expected
    assert Path(said["file"]).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("starter", ["desktop", "team"])
def test_a_tool_whose_every_call_is_asked_about_for_its_host_is_not_said_to_run(tmp_path: Path, starter: str) -> None:
    said = json.loads(init(tmp_path, "--starter", starter, "--json").output)

    assert said["tools"]["tools__http_fetch"] == "ask"
    runs = next(line for line in init(tmp_path, "--starter", starter).output.splitlines() if "  runs:" in line)
    assert "tools__http_fetch" not in runs and "tools__text_hash" in runs


def test_a_starter_of_before_is_named_because_it_stays_in_force(tmp_path: Path) -> None:
    first = Path(json.loads(init(tmp_path, "--starter", "ci", "--json").output)["file"])
    (first.parent / "mine.cedar").write_text('@id("mine") permit (principal, action, resource) when { false };\n')
    (first.parent / "mine.cedar").chmod(0o600)
    said = init(tmp_path, "--starter", "team").output

    assert "in force beside it" in said and "ci.cedar, mine.cedar" in said and f"rm {first}" in said
    assert f"rm {first.parent / 'mine.cedar'}" not in said
    assert json.loads(init(tmp_path, "--starter", "team", "--json").output)["beside"] == ["ci.cedar", "mine.cedar"]


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    init(tmp_path)

    assert json.loads(init(tmp_path, "--json").output)["written"] is False


def test_what_a_person_edited_is_not_overwritten_unless_they_say_so(tmp_path: Path) -> None:
    file = Path(json.loads(init(tmp_path, "--json").output)["file"])
    file.write_text("// mine")
    refused = init(tmp_path)
    kept = file.read_text()
    forced = init(tmp_path, "--force")

    assert (refused.exit_code, kept) == (1, "// mine")
    assert forced.exit_code == 0
    assert "desktop-asks" in file.read_text()


def test_a_starter_that_clashes_with_rules_that_are_there_is_not_written(tmp_path: Path) -> None:
    file = Path(json.loads(init(tmp_path, "--starter", "ci", "--json").output)["file"])
    file.rename(file.with_name("other.cedar"))
    refused = init(tmp_path, "--starter", "ci")

    assert refused.exit_code != 0
    assert not file.exists()
