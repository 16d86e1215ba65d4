"""Reads what came after a place in the log, for one run or for all runs of a principal, a bounded page at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from omni_mcp.contracts.events import RunEvent
from omni_mcp.engines.runlog.rows import BODY, SELECT_EVENT, event_of

PAGE_EVENTS = 256
PAGE_BYTES = 64 * 1024  # of texts: what is read waits in memory for its client, and an erasure does not find it there
SCAN_EVENTS = 50_000  # of everybody's that one look passes over, so that it ends in milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """Events in their order, and the global number up to which everything was looked at."""

    events: tuple[RunEvent, ...]
    reached: int
    more: bool


def events_of_run(connection: sqlite3.Connection, run: str, *, after: int) -> Followed:
    """Return events of *run* behind the seq *after*; `reached` is the last seq that was looked at."""
    rows = connection.execute(f"{SELECT_EVENT} WHERE k.id = ? AND e.seq > ? ORDER BY e.seq", (run, after))
    found, full = _page(rows, lambda run: True)
    return Followed(events=found, reached=found[-1].seq if found else after, more=full)


def events_of_principal(
    connection: sqlite3.Connection, principal: str, *, after: int, is_theirs: Callable[[str], bool]
) -> Followed:
    """Return events behind the global number *after* of runs that are the principal's.

    The list of runs finds them; *is_theirs* is asked about each run, because a list proves nothing.
    """
    last = int(connection.execute("SELECT coalesce(max(gid), 0) FROM events").fetchone()[0])
    until = min(last, after + SCAN_EVENTS)
    rows = connection.execute(
        f"{SELECT_EVENT} WHERE e.gid > ? AND e.gid <= ? "
        "AND (SELECT r.principal FROM runs r WHERE r.run = e.run) = ? ORDER BY e.gid",
        (after, until, principal),
    )
    found, full = _page(rows, is_theirs)
    reached = found[-1].gid if full else max(after, until)
    return Followed(events=found, reached=reached, more=full or until < last)


def _page(rows: sqlite3.Cursor, wanted: Callable[[str], bool]) -> tuple[tuple[RunEvent, ...], bool]:
    """Return the first events that are wanted and fit, and whether the page is full."""
    found: list[RunEvent] = []
    size_bytes = 0
    known: dict[str, bool] = {}
    try:
        for row in rows:
            run = row[0]
            if run not in known:
                known[run] = wanted(run)
            if not known[run]:
                continue
            found.append(event_of(row))
            size_bytes += len(row[BODY] or b"")
            if len(found) >= PAGE_EVENTS or size_bytes >= PAGE_BYTES:
                return tuple(found), True
    finally:
        rows.close()
    return tuple(found), False
