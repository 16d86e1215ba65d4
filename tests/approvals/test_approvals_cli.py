"""The commands with which a person answers."""

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
from omni_mcp.contracts.ids import iso_time
from omni_mcp.engines.approvals.store import ApprovalStore
from omni_mcp.engines.state.database import open_state

Run = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def omni(home: Path) -> Run:
    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, list(words), env={"OMNI_HOME": str(home)})

    return run


@pytest.fixture
def asked(home: Path, question: Callable[..., Approval]) -> Approval:
    """One open question in that home; the commands go by the real clock."""
    now_ns = time.time_ns()
    (home / "data").mkdir(parents=True, mode=0o700)
    store = ApprovalStore(open_state(home / "data" / "state.db"))
    text = "x" * 5000 + "\u202egnp.exe\x1b[2J"
    found = store.claim(question(asked_at_ns=now_ns, expires_at_ns=now_ns + 10**12, arguments={"text": text})).approval
    store.close()
    return found


def test_where_no_gateway_ran_nothing_waits_and_nothing_is_made(omni: Run, home: Path) -> None:
    assert omni("approvals", "list").output == "Nothing waits for a person.\n"
    assert orjson.loads(omni("approvals", "list", "--json").output) == []
    assert omni("approvals", "show", "x").exit_code == 1
    assert not home.exists()


def test_list_shows_what_waits_since_when_and_until_when_and_with_all_what_is_closed(
    omni: Run, asked: Approval
) -> None:
    line = omni("approvals", "list").output
    assert line.startswith(f"{asked.id}  since {iso_time(asked.asked_at_ns)}  until {iso_time(asked.expires_at_ns)} (")
    assert f" s left)  {asked.principal}  {asked.name}\n" in line

    assert omni("approvals", "deny", asked.id).exit_code == 0

    assert omni("approvals", "list").output == "Nothing waits for a person.\n"
    assert omni("approvals", "list", "--all").output.count("  denied  ") == 1
    closed = orjson.loads(omni("approvals", "list", "--all", "--json").output)
    assert [(one["id"], one["state"], one["decided_by"]) for one in closed] == [(asked.id, "denied", str(os.getuid()))]


def test_the_arguments_are_shown_in_full_and_escaped(omni: Run, asked: Approval) -> None:
    text = omni("approvals", "show", asked.id[:20]).output

    assert "x" * 5000 in text
    assert "\u202e" not in text and "\x1b" not in text
    assert "\\u202e" in text


def test_without_a_terminal_approving_needs_yes(omni: Run, asked: Approval) -> None:
    refused = omni("approvals", "approve", asked.id)
    assert refused.exit_code == 2
    assert "--yes" in refused.output

    done = omni("approvals", "approve", asked.id, "--yes", "--note", "looked at it", "--json")

    found = orjson.loads(done.stdout)
    assert (found["state"], found["note"], found["decided_by"]) == ("approved", "looked at it", str(os.getuid()))


def test_a_second_answer_fails_and_says_what_it_is(omni: Run, asked: Approval) -> None:
    omni("approvals", "deny", asked.id)

    again = omni("approvals", "approve", asked.id, "--yes")

    assert again.exit_code == 1
    assert "is denied already" in again.output


def test_two_processes_answer_at_once_and_one_wins(home: Path, asked: Approval) -> None:
    environment = {**os.environ, "OMNI_HOME": str(home)}
    words = [["approve", asked.id, "--yes"], ["deny", asked.id]]
    answers = [
        subprocess.Popen(
            [sys.executable, "-m", "omni_mcp.cli.main", "approvals", *one],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for one in words
    ]

    assert sorted(answer.wait(60) for answer in answers) == [0, 1]


@pytest.mark.parametrize(("typed", "state"), [("y\n", "approved"), ("n\n", "pending"), ("\n", "pending")])
def test_on_a_terminal_the_call_is_shown_and_only_a_y_approves(
    home: Path, asked: Approval, omni: Run, typed: str, state: str
) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "omni_mcp.cli.main", "approvals", "approve", asked.id],
        env={**os.environ, "OMNI_HOME": str(home)}, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, typed.encode())
    _, shown = process.communicate(timeout=60)
    os.close(ours)

    assert b"x" * 5000 in shown and b"Let this call run?" in shown
    found: Any = orjson.loads(omni("approvals", "show", asked.id, "--json").output)
    assert found["state"] == state
