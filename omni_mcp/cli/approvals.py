"""`omni-mcp approvals`: what waits for a person, shown in full, and the person's answer."""

from __future__ import annotations

import os

import click
import orjson

from omni_mcp.cli.approvals_watch import watch
from omni_mcp.cli.person import confirm, json_option, note_option, printable, yes_option
from omni_mcp.cli.questions import as_facts, full_text, line_of, open_questions
from omni_mcp.cli.standing import grant, grants, revoke
from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.errors import Conflict, NotFound
from omni_mcp.engines.approvals.store import ApprovalStore
from omni_mcp.engines.identity.keys import local_user


@click.group()
def approvals() -> None:
    """List, approve and deny calls that wait for a person."""


for command in (watch, grant, grants, revoke):
    approvals.add_command(command)


@approvals.command("list")
@click.option("--all", "everything", is_flag=True, help="Closed ones too, newest first.")
@json_option
def list_questions(everything: bool, as_json: bool) -> None:
    """List what waits, oldest first."""
    with open_questions() as store:
        found = [] if store is None else store.recent() if everything else store.open_questions()
    if as_json:
        click.echo(orjson.dumps([as_facts(one) for one in found]))
        return
    for one in found:
        click.echo(line_of(one))
    if not found:
        click.echo("Nothing waits for a person.")


@approvals.command()
@click.argument("question")
@json_option
def show(question: str, as_json: bool) -> None:
    """Show QUESTION (an id or the beginning of one) in full."""
    with open_questions() as store:
        found = _find(store, question)
    click.echo(orjson.dumps(as_facts(found)) if as_json else full_text(found))


@approvals.command()
@click.argument("question")
@note_option
@yes_option
@json_option
def approve(question: str, note: str | None, yes: bool, as_json: bool) -> None:
    """Let the one call of QUESTION run, exactly as it is shown."""
    _answer(question, approve=True, note=note, yes=yes, as_json=as_json)


@approvals.command()
@click.argument("question")
@note_option
@yes_option
@json_option
def deny(question: str, note: str | None, yes: bool, as_json: bool) -> None:
    """Refuse the call of QUESTION."""
    # A no harms nothing that a second call could not mend, so it asks nothing more.
    _answer(question, approve=False, note=note, yes=True, as_json=as_json)


def _answer(question: str, *, approve: bool, note: str | None, yes: bool, as_json: bool) -> None:
    with open_questions() as store:
        found = _find(store, question)
        if store is None or found.state != "pending":
            raise Conflict(f"question {found.id} is {found.state} already", data={"state": found.state})
        if not yes:
            confirm(full_text(found), "Let this call run?", look="look at it with `approvals show`")
        answer = store.decide(found.id, by=local_user(os.getuid()).id, approve=approve, note=note)
    click.echo(orjson.dumps(as_facts(answer)) if as_json else f"{answer.state}: {printable(answer.name)} ({answer.id})")


def _find(store: ApprovalStore | None, question: str) -> Approval:
    if store is None:
        raise NotFound(f"there is no question {question!r}: no gateway has run here yet")
    return store.find(question)
