"""Compares the projections with what the events say, without changing anything: for `audit verify`."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from omni_mcp.engines.runlog.connection import open_reader, translated
from omni_mcp.engines.runlog.guards import SCHEMA
from omni_mcp.engines.runlog.projections import project_run_again
from omni_mcp.engines.runlog.rows import Row
from omni_mcp.engines.runlog.search_index import (
    SHARD_EVENTS,
    digest_of_shard,
    find_indexed_gid,
    index_payloads,
    payloads_between,
    shards,
)
from omni_mcp.engines.runlog.sheet_making import derived
from omni_mcp.engines.runlog.sheets import NO_SHEET, SHEET_EVENTS, SheetFiles, salt_of
from omni_mcp.engines.runlog.word_filters import filter_of, stored
from omni_mcp.engines.runlog.word_filters import made as made_filters
from omni_mcp.migrations import migrate, read_migrations

NAMED_EACH = 1000
MEND = "run: omni-mcp db rebuild"
_EVIDENCE = ("run_keys", "events", "texts", "heads", "global_head")  # these are read in the file
_PORTION_EVENTS = 1024


def projection_faults(file: Path) -> list[tuple[str, str]]:
    """Return (run, what is wrong) of each projected row that a rebuild would change; an empty run is the log itself.

    Reads one snapshot. Takes about as long as a rebuild, and memory for one table of the search index at a time.

    Raises:
        LogUnavailable, LogCorrupt: the database cannot be read.
    """
    open_reader(file).close()  # says in our words what is wrong with the file
    with _scratch(file) as scratch:
        try:
            scratch.execute("BEGIN")
            return [*_rows(scratch), *_sheets(scratch, file), *_index(scratch)][: NAMED_EACH + 1]
        except sqlite3.Error as error:
            raise translated(error, file) from error


@contextmanager
def _scratch(file: Path) -> Iterator[sqlite3.Connection]:
    """Open empty projections in memory beside the log: what is not in memory, the events, is found in the file."""
    with closing(sqlite3.connect("file::memory:", uri=True, isolation_level=None)) as connection:
        connection.execute("PRAGMA temp_store = MEMORY")
        migrate(connection, read_migrations(SCHEMA))
        for table in _EVIDENCE:
            connection.execute(f"DROP TABLE {table}")
        connection.execute("ATTACH ? AS log", (f"{file.absolute().as_uri()}?mode=rw",))
        yield connection


def _rows(scratch: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    names = dict(scratch.execute("SELECT run, id FROM log.run_keys ORDER BY run"))
    for key, name in names.items():
        try:
            project_run_again(scratch, key)
        except (ValueError, TypeError, AttributeError, sqlite3.IntegrityError) as error:
            yield name, f"nothing can be derived from its events ({type(error).__name__})"
    for table, label, run_at in (("runs", "the list of runs", 0), ("open_calls", "the list of open calls", 1)):
        columns = [name for _, name, *_ in scratch.execute(f"PRAGMA main.table_info({table})")]
        found = {row[0]: row for row in scratch.execute(f"SELECT * FROM log.{table}")}
        expected = {row[0]: row for row in scratch.execute(f"SELECT * FROM main.{table}")}
        for key in sorted(found.keys() | expected.keys()):
            if found.get(key) != expected.get(key):
                row = expected.get(key) or found[key]
                differs = _difference(columns, found.get(key), expected.get(key))
                yield names.get(row[run_at], ""), f"{label} says otherwise than its events ({differs}); {MEND}"


def _sheets(scratch: sqlite3.Connection, file: Path) -> Iterator[tuple[str, str]]:
    """Make each sheet once more. One whose file is gone is none that anybody reads, and an older log has none."""
    files = SheetFiles(file)
    there = "SELECT EXISTS (SELECT 1 FROM log.sqlite_schema WHERE type = 'table' AND name = 'sheets')"
    if not scratch.execute(there).fetchone()[0]:
        return
    rows = scratch.execute(
        "SELECT k.id, s.run, s.number, s.digest FROM log.sheets s LEFT JOIN log.run_keys k ON k.run = s.run "
        "WHERE s.digest != ? ORDER BY s.run, s.number",
        (NO_SHEET,),
    )
    for name, key, number, digest in rows:
        data = files.stored(key, number)
        if data is None:
            continue
        expected = derived(scratch, key, number, salt_of(data))
        if data != expected or hashlib.sha256(data).digest() != digest:
            first = number * SHEET_EVENTS + 1
            yield name or "", f"the sheet of events {first} to {first + SHEET_EVENTS - 1} is not theirs; {MEND}"


def _difference(columns: list[str], found: Row | None, expected: Row | None) -> str:
    if found is None:
        return "missing"
    if expected is None:
        return "there is no such event"
    return ", ".join(name for name, old, new in zip(columns, found, expected, strict=True) if old != new)


def _index(scratch: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """Fill one table of the index at a time in memory, and compare the words in it with those in the file."""
    last = scratch.execute("SELECT coalesce(max(gid), 0) FROM log.events").fetchone()[0]
    done = find_indexed_gid(scratch, schema="log")
    if done is None or not 0 <= done <= last:
        yield "", f"the search index does not know how far it goes; {MEND}"
        return
    found, filtered = set(shards(scratch, schema="log")), set(made_filters(scratch, schema="log"))
    numbers = {int(name.removeprefix("search_")) for name in found} | set(range(done // SHARD_EVENTS + 1))
    for number in sorted(numbers):
        name, first = f"search_{number}", number * SHARD_EVENTS
        _fill(scratch, first - 1, min(done, first + SHARD_EVENTS - 1))
        made = name in shards(scratch, schema="main")
        if made != (name in found) or (made and _digest(scratch, name, "main") != _digest(scratch, name, "log")):
            yield "", f"the search index of events {max(first, 1)} to {first + SHARD_EVENTS - 1} is not theirs; {MEND}"
        if made and number in filtered and stored(scratch, number, schema="log") != filter_of(scratch, name):
            yield "", f"the filter of events {max(first, 1)} to {first + SHARD_EVENTS - 1} is not theirs; {MEND}"
        if made:
            scratch.execute(f"DROP TABLE main.{name}")


def _fill(scratch: sqlite3.Connection, at: int, end: int) -> None:
    while at < end:
        until = min(end, at + _PORTION_EVENTS)
        index_payloads(scratch, payloads_between(scratch, at, until), until)
        at = until


def _digest(scratch: sqlite3.Connection, shard: str, schema: str) -> bytes | None:
    """Return the digest of a table of the index; None if it is broken."""
    try:
        return digest_of_shard(scratch, shard, schema=schema)
    except sqlite3.DatabaseError:
        return None
