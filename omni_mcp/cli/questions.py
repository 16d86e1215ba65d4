"""Questions: what waits for a person in this home, as people and programs are shown it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import orjson

from omni_mcp.cli.person import printable, printable_lines
from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.approvals.store import ApprovalStore
from omni_mcp.engines.state.database import open_state
from omni_mcp.paths import find_home


@contextmanager
def open_questions() -> Iterator[ApprovalStore | None]:
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


def line_of(found: Approval) -> str:
    """Return a question in short."""
    return printable(f"{found.id}  {_when(found)}  {found.principal}  {found.name}")


def as_facts(found: Approval) -> JsonObject:
    """Return a question for programs, with its times as texts."""
    body: JsonObject = found.model_dump(mode="json")
    for name in ("asked_at", "expires_at", "decided_at"):
        at_ns = body.pop(f"{name}_ns")
        body[name] = iso_time(at_ns) if at_ns is not None else None
    return body


def full_text(found: Approval) -> str:
    """Return all of a question for a person; nothing in it acts on a terminal or begins a line of its own."""
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
    text = "\n".join(printable(line) for line in lines)
    return f"{text}\narguments  {found.arguments_digest}\n{printable_lines(shown)}"


def _when(found: Approval) -> str:
    """Say since when a question waits and until when, or what became of it."""
    since = f"since {iso_time(found.asked_at_ns)}"
    if found.state != "pending":
        return f"{since}  {found.state}"
    left_s = max(0, (found.expires_at_ns - time.time_ns()) // 1_000_000_000)
    return f"{since}  until {iso_time(found.expires_at_ns)} ({left_s} s left)"
