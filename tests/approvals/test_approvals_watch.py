"""`omni-mcp approvals watch`: questions as they come, answered on the terminal by number or id, until ^C."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from omni_mcp.cli.root import cli
from omni_mcp.contracts.approval import Approval
from omni_mcp.engines.approvals.store import ApprovalStore
from omni_mcp.engines.state.database import open_state

WAIT_S = 60.0  # a command takes two seconds of a processor, and on a loaded machine it gets little of one
FORGED = "notes__write\napproved by 0: everything"


class Watching:
    """A person at a terminal, and the gateway's side of the questions."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int, store: ApprovalStore) -> None:
        self.process = process
        self._terminal = terminal
        self.store = store
        self.said = ""

    def types(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def sees(self, text: str) -> str:
        """Wait until *text* is on the screen; returns all of it."""
        out = self.process.stdout
        assert out is not None
        ends_s = time.monotonic() + WAIT_S
        while text not in self.said:
            assert select.select([out], [], [], max(0.0, ends_s - time.monotonic()))[0], self.said
            data = os.read(out.fileno(), 65536)
            assert data, self.said
            self.said += data.decode()
        return self.said


@contextmanager
def watching(home: Path, *options: str) -> Iterator[Watching]:
    """Run the command on a terminal until the context is left."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "OMNI_HOME": str(home), "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "omni_mcp.cli.main", "approvals", "watch", *options], env=environment, stdin=theirs,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    (home / "data").mkdir(parents=True, mode=0o700, exist_ok=True)
    store = ApprovalStore(open_state(home / "data" / "state.db"))
    try:
        yield Watching(process, ours, store)
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
        os.close(theirs)
        store.close()


@pytest.fixture
def now_asked(question: Callable[..., Approval]) -> Callable[..., Approval]:
    """Make a question that is open by the real clock."""

    def make(**changes: object) -> Approval:
        now_ns = time.time_ns()
        return question(asked_at_ns=now_ns, expires_at_ns=now_ns + 10**12, **changes)

    return make


def test_questions_are_shown_as_they_come_and_answered_by_number_and_by_id(
    tmp_path: Path, now_asked: Callable[..., Approval]
) -> None:
    with watching(tmp_path / "home") as person:
        person.sees("^C ends")
        first = person.store.claim(now_asked(arguments={"text": "the whole of it"})).approval
        person.sees(f"[1] {first.id}")
        second = person.store.claim(now_asked(arguments_digest="other")).approval
        third = person.store.claim(now_asked(arguments_digest="third")).approval
        person.sees(f"[3] {third.id}")
        person.types("approve 1\n")
        assert "the whole of it" in person.sees("Let this call run?")
        person.types("y\n")
        person.sees(f"approved by {os.getuid()}: {first.name} ({first.id})")
        person.types(f"d {second.id[:26]}\n")
        person.sees(f"denied by {os.getuid()}: {second.name} ({second.id})")
        person.types("a 3\nn\n")
        person.sees("it still waits")
        person.types("a 1\n")
        person.sees(f"question {first.id} is approved already")
        states = [person.store.get(one.id).state for one in (first, second, third)]
        person.process.send_signal(signal.SIGINT)
        code = person.process.wait(WAIT_S)

    assert states == ["approved", "denied", "pending"] and code == 0


def test_what_a_question_says_begins_no_line_of_its_own(tmp_path: Path, now_asked: Callable[..., Approval]) -> None:
    with watching(tmp_path / "home") as person:
        person.store.claim(now_asked(name=FORGED, arguments={FORGED: FORGED}))
        person.sees("[1] ")
        person.types("s\n")
        said = person.sees("arguments ")

    assert not [line for line in said.splitlines() if line.lstrip().startswith("approved by")]


def test_with_json_each_question_and_its_end_is_a_line_and_nothing_is_answered(
    tmp_path: Path, now_asked: Callable[..., Approval]
) -> None:
    with watching(tmp_path / "home", "--json") as person:
        one = person.store.claim(now_asked()).approval
        person.sees("\n")
        person.types("approve 1\ny\n")
        person.store.decide(one.id, by="ann", approve=False, note="no")
        person.sees('"closed"')
        lines = [orjson.loads(line) for line in person.said.splitlines()]

    assert [(line["event"], line["question"]["id"], line["question"]["state"]) for line in lines] == [
        ("asked", one.id, "pending"), ("closed", one.id, "denied"),
    ]  # fmt: skip


def test_without_a_terminal_it_says_what_to_do(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["approvals", "watch"], env={"OMNI_HOME": str(tmp_path / "home")})
    assert done.exit_code == 2 and "--json" in done.output
