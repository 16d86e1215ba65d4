"""The commands with which a person says yes in advance, and takes it back."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from omni_mcp.cli.root import cli
from omni_mcp.contracts.approval import Approval
from omni_mcp.engines.approvals.standing_store import MAX_SPAN_NS, StandingStore
from omni_mcp.engines.approvals.store import ApprovalStore
from omni_mcp.engines.state.database import open_state

Run = Callable[..., Result]
ME = str(os.getuid())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def omni(home: Path) -> Run:
    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, list(words), env={"OMNI_HOME": str(home)})

    return run


def given(omni: Run, *words: str) -> Any:
    """Give a grant without a terminal and return it."""
    result = omni("approvals", "grant", *words, "--yes", "--json")
    assert result.exit_code == 0, result.output
    return orjson.loads(result.stdout)


def digest_of(omni: Run, tool: str) -> str:
    return str(orjson.loads(omni("tools", "show", tool, "--json").stdout)["digest"])


def test_a_grant_is_bound_to_the_definition_that_stands_now_and_to_whom_it_names(omni: Run) -> None:
    grant = given(omni, "tools__files_write", "--to", "coder", "--expires", "7d", "--note", "release week")

    assert grant["principal"] == f'Agent::"coder"/{ME}@default'
    assert (grant["server"], grant["tool"], grant["project"]) == ("tools", "files_write", "default")
    assert grant["definitions"] == [digest_of(omni, "tools__files_write")]
    assert (grant["given_by"], grant["note"], grant["state"]) == (ME, "release week", "not on record yet")
    days = (time.time() + 7 * 86400) * 1e9
    assert abs(_ns(grant["expires_at"]) - days) < 60e9


def _ns(text: str) -> float:
    return float(subprocess.check_output(["date", "-u", "-d", text, "+%s"])) * 1e9


@pytest.mark.parametrize(
    ("words", "principal"),
    [
        ([], None),
        (["--user", "7"], 'User::"7"@default'),
        (["--to", "coder", "--user", "7", "--project", "p"], 'Agent::"coder"/7@p'),
    ],
)
def test_a_grant_is_for_whom_it_says(omni: Run, words: list[str], principal: str | None) -> None:
    assert given(omni, "tools__files_write", "--expires", "1h", *words)["principal"] == principal


def test_a_whole_server_is_its_tools_as_they_are_now(omni: Run) -> None:
    grant = given(omni, "tools__*", "--expires", "1h")

    assert grant["tool"] is None
    assert len(grant["definitions"]) > 5 and digest_of(omni, "tools__files_write") in grant["definitions"]


@pytest.mark.parametrize("span", ["91d", "0d", "13w", "soon", "-1d", ""])
def test_a_grant_without_an_end_within_90_days_is_refused_with_an_example(omni: Run, span: str) -> None:
    result = omni("approvals", "grant", "tools__files_write", "--expires", span, "--yes")

    assert result.exit_code == 1
    assert "7d" in result.output or "30d" in result.output
    assert omni("approvals", "grant", "tools__files_write", "--yes").exit_code == 2
    assert orjson.loads(omni("approvals", "grants", "--all", "--json").stdout) == []
    assert MAX_SPAN_NS == 90 * 86400 * 10**9


def test_an_unknown_tool_needs_a_question_about_it_or_any_definition(
    omni: Run, home: Path, question: Callable[..., Approval]
) -> None:
    refused = omni("approvals", "grant", "far__tool", "--expires", "1d", "--yes")
    assert refused.exit_code == 1
    assert "--any-definition" in refused.output
    assert given(omni, "far__tool", "--expires", "1d", "--any-definition")["definitions"] is None

    store = ApprovalStore(open_state(home / "data" / "state.db"))
    for number in (1, 2):
        asked = time.time_ns() + number
        store.claim(
            question(
                server="far", tool="tool", definition_digest=f"sha256:{number}", labels={"destructive": True},
                asked_at_ns=asked, expires_at_ns=asked + 10**12,
            )
        )  # fmt: skip
    store.close()

    assert given(omni, "far__tool", "--expires", "1d")["definitions"] == ["sha256:2"]
    assert "waives ask" in omni("approvals", "grant", "far__tool", "--expires", "1d", "--yes").output


def test_what_it_would_change_is_said_with_the_labels(omni: Run) -> None:
    words = ("approvals", "grant", "tools__files_write", "--to", "coder", "--expires", "1d", "--yes")
    omni("policy", "check")
    omni("allow", "elsewhere__tool")

    assert "has no effect until a rule allows the call" in omni(*words).output
    omni("allow", "tools__files_write", "--to", "coder")
    text = omni(*words).output

    assert "waives guardrail-destructive" in text
    omni("allow", "tools__text_hash", "--to", "coder")
    harmless = omni("approvals", "grant", "tools__text_hash", "--to", "coder", "--expires", "1d", "--yes")
    assert "nothing asks about this call" in harmless.output
    assert "destructive=" in text and "side_effects=" in text and digest_of(omni, "tools__files_write") in text
    assert "no rule allows it to everyone" in omni("approvals", "grant", "tools__*", "--expires", "1d", "--yes").output


def test_grants_are_listed_and_revoked_by_the_beginning_of_their_id(omni: Run, home: Path) -> None:
    assert omni("approvals", "grants").output.startswith("No standing grants")
    assert omni("approvals", "revoke", "0199").exit_code == 1
    assert not home.exists()
    grant = given(omni, "tools__files_write", "--expires", "1d")
    assert f"{grant['id']}  until " in omni("approvals", "grants").output
    assert "everyone of project default  tools__files_write  [not on record yet]" in omni("approvals", "grants").output

    gone = orjson.loads(omni("approvals", "revoke", grant["id"][:24], "--json").stdout)

    assert (gone["state"], gone["revoked_by"]) == ("revoked", ME)
    assert orjson.loads(omni("approvals", "grants", "--json").stdout) == []
    assert [one["state"] for one in orjson.loads(omni("approvals", "grants", "--all", "--json").stdout)] == ["revoked"]
    again = omni("approvals", "revoke", grant["id"])
    assert again.exit_code == 1
    assert "is revoked already" in again.output


def test_without_a_terminal_granting_needs_yes(omni: Run) -> None:
    refused = omni("approvals", "grant", "tools__files_write", "--expires", "1d")

    assert refused.exit_code == 2
    assert "--yes" in refused.output
    assert orjson.loads(omni("approvals", "grants", "--json").stdout) == []


@pytest.mark.parametrize(("typed", "count"), [("y\n", 1), ("n\n", 0), ("\n", 0)])
def test_on_a_terminal_the_scope_is_shown_and_only_a_y_grants(home: Path, omni: Run, typed: str, count: int) -> None:
    ours, theirs = pty.openpty()
    words = ["approvals", "grant", "tools__files_write", "--to", "a\u202eb", "--expires", "1d"]
    process = subprocess.Popen(
        [sys.executable, "-m", "omni_mcp.cli.main", *words],
        env={**os.environ, "OMNI_HOME": str(home)}, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, typed.encode())
    _, shown = process.communicate(timeout=60)
    os.close(ours)

    assert b"Let these calls run unasked?" in shown and b"destructive=" in shown
    assert b"a\\u202eb" in shown and "\u202e".encode() not in shown
    assert len(orjson.loads(omni("approvals", "grants", "--json").output)) == count


def test_a_home_that_others_can_write_to_keeps_no_grant(omni: Run, home: Path) -> None:
    (home / "data").mkdir(parents=True)
    (home / "data").chmod(0o777)

    result = omni("approvals", "grant", "tools__files_write", "--expires", "1d", "--yes")

    assert result.exit_code == 1
    assert "chmod 700" in result.output


def test_ended_grants_are_shown_only_when_asked_for(omni: Run, home: Path) -> None:
    given(omni, "tools__files_write", "--expires", "1m")
    later = StandingStore(open_state(home / "data" / "state.db"), now_ns=lambda: time.time_ns() + 120 * 10**9)

    assert later.standing() == ()
    assert [one.state_at(time.time_ns() + 120 * 10**9) for one in later.all()] == ["expired"]
