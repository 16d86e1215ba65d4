"""Reads what came after a place in the log, for one run or for all runs of a principal, a bounded page at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from omni_mcp.engines.runlog.paging import stretches_of_run
from omni_mcp.engines.runlog.sheets import SheetFiles
from omni_mcp.engines.runlog.shown import GID, RUN, SELECT_SHOWN, line_of

PAGE_EVENTS = 256
PAGE_BYTES = 64 * 1024  # of texts: what is read waits in memory for its client, and an erasure does not find it there
SCAN_EVENTS = 50_000  # of everybody's that one look passes over, so that it ends in milliseconds
_CLOSED = "SELECT closed_seq FROM runs WHERE run = (SELECT run FROM run_keys WHERE id = ?)"


class Line(NamedTuple):
    """One event as its own caller sees it, in JSON, and its place: its seq in a run, or its global number."""

    place: int
    text: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """Events in their order, and the place up to which everything was looked at. `closed`: their run ends with them."""

    lines: tuple[Line, ...]
    reached: int
    more: bool
    closed: bool = False


def events_of_run(connection: sqlite3.Connection, files: SheetFiles, run: str, *, after: int) -> Followed:
    """Return events of *run* behind the seq *after*; `reached` is the last seq that was looked at."""
    stretches = stretches_of_run(connection, files, run, after=after)
    found, full = _page(Line(*line) for stretch in stretches for line in stretch.lines())
    reached = found[-1].place if found else after
    ended = connection.execute(_CLOSED, (run,)).fetchone()
    closed = ended is not None and ended[0] is not None and ended[0] <= reached
    return Followed(lines=found, reached=reached, more=full, closed=closed)


def events_of_principal(
    connection: sqlite3.Connection, principal: str, *, after: int, is_theirs: Callable[[str], bool]
) -> Followed:
    """Return events behind the global number *after* of runs that are the principal's.

    The list of runs finds them; *is_theirs* is asked about each run, because a list proves nothing.
    """
    last = int(connection.execute("SELECT coalesce(max(gid), 0) FROM events").fetchone()[0])
    until = min(last, after + SCAN_EVENTS)
    rows = connection.execute(
        f"{SELECT_SHOWN} WHERE e.gid > ? AND e.gid <= ? "
        "AND (SELECT r.principal FROM runs r WHERE r.run = e.run) = ? ORDER BY e.gid",
        (after, until, principal),
    )
    known: dict[str, bool] = {}

    def theirs(run: str) -> bool:
        if run not in known:
            known[run] = is_theirs(run)
        return known[run]

    found, full = _page(Line(row[GID], line_of(row)) for row in rows if theirs(row[RUN]))
    rows.close()
    reached = found[-1].place if full else max(after, until)
    return Followed(lines=found, reached=reached, more=full or until < last)


def _page(lines: Iterable[Line]) -> tuple[tuple[Line, ...], bool]:
    """Return the first lines that fit, and whether the page is full."""
    found: list[Line] = []
    size_bytes = 0
    for line in lines:
        found.append(line)
        size_bytes += len(line.text)
        if len(found) >= PAGE_EVENTS or size_bytes >= PAGE_BYTES:
            return tuple(found), True
    return tuple(found), False
