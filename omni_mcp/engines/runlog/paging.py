"""A page of a run's events as their own caller sees them: from sheets where there are any, from rows where not."""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from omni_mcp.engines.runlog.sheets import NO_SHEET, SHEET_EVENTS, SheetFiles, Stretch, sheet_of, stretch_of
from omni_mcp.engines.runlog.shown import SELECT_SHOWN, SEQ, line_of

_ROWS = f"{SELECT_SHOWN} WHERE e.run = ? AND e.seq > ? AND e.seq <= ? ORDER BY e.seq"
_NO_END = 2**62
_AHEAD_EVENTS = 1024  # what a page has at most, by its bytes, of events of usual size
_PORTION = 32  # events at a time: a page may have room for few
_PORTION_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsPage:
    """Events as JSON objects with a comma between any two, the seq of the last, and whether there are more."""

    text: bytes
    last: int
    more: bool


def page_of_run(
    connection: sqlite3.Connection, files: SheetFiles, run: str, *, after: int, limit: int, limit_bytes: int
) -> EventsPage:
    """Return events of *run* behind the seq *after*: *limit* of them, or fewer where they exceed *limit_bytes*.

    Raises:
        LogCorrupt: a text is no JSON.
    """
    if limit <= 0:
        return EventsPage(text=b"", last=after, more=has_more(connection, run, after))
    parts: list[memoryview] = []
    last, room = after, limit_bytes
    for stretch in stretches_of_run(connection, files, run, after=after, likely=limit):
        count = min(limit, len(stretch.seqs), bisect_left(stretch.ends, stretch.start + room) + 1)
        part = memoryview(stretch.text)[stretch.start : stretch.ends[count - 1]]
        parts.append(part)
        last, limit, room = stretch.seqs[count - 1], limit - count, room - len(part)
        if limit <= 0 or room <= 0:
            break
    return EventsPage(text=b",".join(parts), last=last, more=has_more(connection, run, last))


def stretches_of_run(
    connection: sqlite3.Connection, files: SheetFiles, run: str, *, after: int, likely: int = 0
) -> Iterator[Stretch]:
    """Yield the events of *run* behind the seq *after*, in their order, as they are stored.

    Args:
        likely: how many will be taken, so that the disk can be asked for all of them at once.

    Raises:
        LogCorrupt: a text is no JSON.
    """
    found = connection.execute("SELECT run FROM run_keys WHERE id = ?", (run,)).fetchone()
    if found is None:
        return
    key, at = int(found[0]), max(after, 0)
    sql = "SELECT number, digest FROM sheets WHERE run = ? AND number >= ? AND digest != ? ORDER BY number"
    files.expect(key, range(sheet_of(at + 1), sheet_of(at + min(likely, _AHEAD_EVENTS)) + 1))
    sheets = connection.execute(sql, (key, sheet_of(at + 1), NO_SHEET))
    try:
        for number, digest in sheets:
            if (sheet := files.read(key, number, run=run, digest=digest)) is None:
                continue
            if at < number * SHEET_EVENTS:
                yield from _rows(connection, key, at, number * SHEET_EVENTS)
            yield sheet.behind(max(at, number * SHEET_EVENTS))
            at = (number + 1) * SHEET_EVENTS
    finally:
        sheets.close()
    yield from _rows(connection, key, at, _NO_END)


def has_more(connection: sqlite3.Connection, run: str, last: int) -> bool:
    """Whether there are events of *run* behind the seq *last*."""
    sql = "SELECT EXISTS (SELECT 1 FROM events WHERE run = (SELECT run FROM run_keys WHERE id = ?) AND seq > ?)"
    return bool(connection.execute(sql, (run, last)).fetchone()[0])


def _rows(connection: sqlite3.Connection, key: int, after: int, until: int) -> Iterator[Stretch]:
    rows = connection.execute(_ROWS, (key, after, until))
    seqs: list[int] = []
    lines: list[bytes] = []
    size_bytes = 0
    try:
        for row in rows:
            line = line_of(row)
            seqs.append(row[SEQ])
            lines.append(line)
            size_bytes += len(line)
            if len(seqs) == _PORTION or size_bytes >= _PORTION_BYTES:
                yield stretch_of(seqs, lines)
                seqs, lines, size_bytes = [], [], 0
        if seqs:
            yield stretch_of(seqs, lines)
    finally:
        rows.close()
