"""`omni-mcp approvals`: what waits for a person, shown in full, and the person's answer."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
import orjson

from omni_mcp.cli.person import confirm, json_option, note_option, printable, yes_option
from omni_mcp.cli.standing import grant, grants, revoke
from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.errors import Conflict, NotFound
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.approvals.store import ApprovalStore
from omni_mcp.engines.identity.keys import local_user
from omni_mcp.engines.state.database import open_state
from omni_mcp.paths import find_home


@click.group()
def approvals() -> None:
    """List, approve and deny calls that wait for a person."""


for command in (grant, grants, revoke):
    approvals.add_command(command)


@approvals.command("list")
@click.option("--all", "everything", is_flag=True, help="Closed ones too, newest first.")
@json_option
def list_questions(everything: bool, as_json: bool) -> None:
    """List what waits, oldest first."""
    with _store() as store:
        found = [] if store is None else store.recent() if everything else store.open_questions()
    if as_json:
        click.echo(orjson.dumps([_as_json(one) for one in found]))
        return
    for one in found:
        click.echo(printable(f"{one.id}  {_when(one)}  {one.principal}  {one.name}"))
    if not found:
        click.echo("Nothing waits for a person.")


@approvals.command()
@click.argument("question")
@json_option
def show(question: str, as_json: bool) -> None:
    """Show QUESTION (an id or the beginning of one) in full."""
    with _store() as store:
        found = _find(store, question)
    click.echo(orjson.dumps(_as_json(found)) if as_json else _full_text(found))


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
    with _store() as store:
        found = _find(store, question)
        if store is None or found.state != "pending":
            raise Conflict(f"question {found.id} is {found.state} already", data={"state": found.state})
        if not yes:
            confirm(_full_text(found), "Let this call run?", look="look at it with `approvals show`")
        answer = store.decide(found.id, by=local_user(os.getuid()).id, approve=approve, note=note)
    click.echo(orjson.dumps(_as_json(answer)) if as_json else f"{answer.state}: {printable(answer.name)} ({answer.id})")


def _when(found: Approval) -> str:
    """Say since when a question waits and until when, or what became of it."""
    since = f"since {iso_time(found.asked_at_ns)}"
    if found.state != "pending":
        return f"{since}  {found.state}"
    left_s = max(0, (found.expires_at_ns - time.time_ns()) // 1_000_000_000)
    return f"{since}  until {iso_time(found.expires_at_ns)} ({left_s} s left)"


def _find(store: ApprovalStore | None, question: str) -> Approval:
    if store is None:
        raise NotFound(f"there is no question {question!r}: no gateway has run here yet")
    return store.find(question)


@contextmanager
def _store() -> Iterator[ApprovalStore | None]:
    """Open the state of this home; None where no gateway has run yet."""
    file = find_home().state_file
    if not file.exists():
        yield None
        return
    store = ApprovalStore(open_state(file))
    try:
        yield store
    finally:
        store.close()


def _as_json(found: Approval) -> JsonObject:
    body: JsonObject = found.model_dump(mode="json")
    for name in ("asked_at", "expires_at", "decided_at"):
        at_ns = body.pop(f"{name}_ns")
        body[name] = iso_time(at_ns) if at_ns is not None else None
    return body


def _full_text(found: Approval) -> str:
    labels = ", ".join(f"{key}={value}" for key, value in found.labels.items())
    shown = orjson.dumps(found.arguments, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode()
    lines = [
        f"question   {found.id} ({found.state})",
        f"who        {found.principal}",
        f"what       {found.name}  (server {found.server}, definition {found.definition_digest})",
        f"labels     {labels}",
        *([f"hosts      {', '.join(found.hosts)}"] if found.hosts else []),
        f"because    {', '.join(found.rules)}",
        f"approvers  {', '.join(found.approvers) or 'anybody who can run this command'}",
        f"asked      {iso_time(found.asked_at_ns)}, open until {iso_time(found.expires_at_ns)}",
    ]
    if found.decided_by:
        lines.append(f"answered   by {found.decided_by}{': ' + found.note if found.note else ''}")
    text = "\n".join(printable(line.replace("\n", "\\n")) for line in lines)
    return f"{text}\narguments  {found.arguments_digest}\n{printable(shown)}"
