"""`omni-mcp approvals watch`: each question as it comes, and its answer, until interrupted."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Mapping

import click
import orjson

from omni_mcp.cli.person import confirm, json_option, printable
from omni_mcp.cli.questions import as_facts, full_text, line_of, open_questions
from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.errors import Conflict, NotFound
from omni_mcp.engines.approvals.store import ApprovalStore
from omni_mcp.engines.identity.keys import local_user

LOOK_S = 0.3
LINE_LIMIT_BYTES = 4096
WORDS = {"a": "approve", "approve": "approve", "d": "deny", "deny": "deny", "s": "show", "show": "show"}
HELP = "Answer with: approve N, deny N, show N (a, d, s; N is the number or the id). ^C ends."


@click.command()
@json_option
def watch(as_json: bool) -> None:
    """Show each question as it comes, and take the answers, until ^C.

    On a terminal `approve N` shows the call in full and asks once more; `deny N` refuses it; `show N` shows it. With
    --json it answers nothing, needs no terminal, and prints a line for each question and one for what became of it.
    """
    if not as_json and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to answer on; add --json, or see: omni-mcp approvals list")
    if not as_json:
        click.echo(HELP, err=True)
    shown = Shown(as_json=as_json)
    try:
        while True:
            with open_questions() as store:
                if store is not None:
                    _watch(store, shown)
            time.sleep(LOOK_S)  # no gateway has run here yet
    except (KeyboardInterrupt, EOFError):
        return


class Shown:
    """What was shown already: the open questions, and a number for each that was ever shown."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._open: dict[str, Approval] = {}
        self._numbers: dict[int, str] = {}

    def follow(self, now: Mapping[str, Approval], store: ApprovalStore) -> None:
        """Say what is new among the open questions, and what became of those that were open."""
        for one in [found for key, found in now.items() if key not in self._open]:
            self._numbers[len(self._numbers) + 1] = one.id
            self._say("asked", one, f"[{len(self._numbers)}] {line_of(one)}")
        for key in [key for key in self._open if key not in now]:
            try:
                closed = store.get(key)
            except NotFound:  # erased meanwhile
                continue
            if closed.state == "pending":  # nobody has written down yet that its time is over
                closed = closed.model_copy(update={"state": "expired"})
            by = f" by {closed.decided_by}" if closed.decided_by else ""
            self._say("closed", closed, printable(f"{closed.state}{by}: {closed.name} ({closed.id})"))
        self._open = dict(now)

    def id_of(self, word: str) -> str:
        """Return the id that a number stands for, or *word* itself; of nothing, that of the only open question."""
        if not word and len(self._open) == 1:
            return next(iter(self._open))
        return self._numbers.get(int(word), word) if word.isdecimal() and len(word) < 9 else word

    def _say(self, event: str, one: Approval, text: str) -> None:
        click.echo(orjson.dumps({"event": event, "question": as_facts(one)}) if self.as_json else text)


def _watch(store: ApprovalStore, shown: Shown) -> None:
    while True:
        shown.follow({one.id: one for one in store.open_questions()}, store)
        if shown.as_json:
            time.sleep(LOOK_S)
        elif select.select([sys.stdin], [], [], LOOK_S)[0]:
            _answer(store, shown, _line())


def _line() -> str:
    """Read what was typed; a terminal gives one line at a time.

    Raises:
        EOFError: the terminal has gone, or its person said ^D.
    """
    data = os.read(sys.stdin.fileno(), LINE_LIMIT_BYTES)
    if not data:
        raise EOFError
    return data.decode(errors="replace")


def _answer(store: ApprovalStore, shown: Shown, line: str) -> None:
    word, _, rest = line.strip().partition(" ")
    wanted = WORDS.get(word.lower())
    if wanted is None:
        if word:
            click.echo(HELP, err=True)
        return
    try:
        found = store.find(shown.id_of(rest.strip()))
        if wanted == "show":
            click.echo(full_text(found), err=True)
            return
        if found.state != "pending":
            raise Conflict(f"question {found.id} is {found.state} already")
        if wanted == "approve":
            confirm(full_text(found), "Let this call run?", look="look at it with `approvals show`")
        store.decide(found.id, by=local_user(os.getuid()).id, approve=wanted == "approve", note=None)
    except click.Abort:
        click.echo("not answered; it still waits", err=True)
    except (NotFound, Conflict) as error:
        click.echo(printable(error.message), err=True)
