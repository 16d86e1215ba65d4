"""Reads the log without being able to write it: for the gateway's own readers, and for the command line."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.events import RunEvent, payload_digest
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.runlog.connection import open_reader, translated
from omni_mcp.engines.runlog.rows import BODY, SALT_BYTES, SELECT_EVENT, Row, event_of, payload_of
from omni_mcp.engines.runlog.search_index import (
    SHARD_EVENTS,
    Query,
    indexed_gid,
    memory_index,
    payloads_between,
    shards,
)

RUNS_LIMIT, EVENTS_LIMIT, SEARCH_LIMIT = 1000, 10_000, 1000
SCAN_EVENTS = 20_000  # how far back a query is looked for that has no word for the index
TAIL_POLL_S = 0.1

_SELECT_RUN = (
    "SELECT k.id, r.created_at_ns, r.closed_seq, r.erased, h.count, r.calls, coalesce(c.open, 0), "
    "e.erased_by, e.payload_digest, t.body "
    "FROM runs r JOIN run_keys k ON k.run = r.run JOIN heads h ON h.run = r.run "
    "JOIN events e ON e.run = r.run AND e.seq = 1 LEFT JOIN texts t ON t.gid = e.gid "
    "LEFT JOIN (SELECT run, count(*) AS open FROM open_calls GROUP BY run) c ON c.run = r.run "
)


class LogReader:
    """A read-only view of the run log in *file*. One thread at a time.

    Raises:
        LogUnavailable: there is no run log yet.
        LogCorrupt: it cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._connection = open_reader(file)

    def __enter__(self) -> LogReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def runs(self, *, principal: str | None = None, limit: int = 50, before: str | None = None) -> list[JsonObject]:
        """Return the newest runs first; *before* is the id of the last run of the page before.

        Whose a run is, is what its sealed first event says: the list only finds it quickly.
        """
        where, values = ["1"], []
        if principal is not None:
            where.append("r.principal = ?")
            values.append(principal)
        if before is not None:
            where.append("r.run < (SELECT run FROM run_keys WHERE id = ?)")
            values.append(before)
        sql = f"{_SELECT_RUN} WHERE {' AND '.join(where)} ORDER BY r.run DESC LIMIT ?"
        found = [_run_of(row) for row in self._all(sql, (*values, _between(limit, RUNS_LIMIT)))]
        return [run for run in found if principal is None or run["principal"] == principal]

    def get_run(self, run: str) -> JsonObject:
        """Return one run as `runs` does.

        Raises:
            NotFound: there is no such run.
        """
        rows = self._all(f"{_SELECT_RUN} WHERE k.id = ?", (run,))
        if not rows:
            raise NotFound("there is no such run")
        return _run_of(rows[0])

    def run_id(self, name: str) -> str:
        """Return the id that *name* means: an id, the beginning of exactly one, or `last` for the newest run.

        Raises:
            NotFound: there is none, or more than one.
        """
        if name == "last":
            rows = self._all("SELECT id FROM run_keys ORDER BY run DESC LIMIT 1", ())
        else:
            wild = name.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
            rows = self._all(
                "SELECT id FROM run_keys WHERE id LIKE ? ESCAPE '\\' ORDER BY id != ? LIMIT 2", (wild, name)
            )
            rows = rows[:1] if rows and rows[0][0] == name else rows
        if not name or not rows:
            raise NotFound(f"there is no run {name!r}; see: omni-mcp runs list")
        if len(rows) > 1:
            raise NotFound(f"more than one run begins with {name!r}; give more of the id")
        return str(rows[0][0])

    def events(self, run: str, *, after: int = 0, limit: int = 1000) -> list[RunEvent]:
        """Return events of a run in order of seq, from the one after *after*."""
        sql = f"{SELECT_EVENT} WHERE k.id = ? AND e.seq > ? ORDER BY e.seq LIMIT ?"
        return [event_of(row) for row in self._all(sql, (run, after, _between(limit, EVENTS_LIMIT)))]

    def events_since(self, gid: int, *, limit: int = 1000) -> list[RunEvent]:
        """Return events of all runs in their global order, from the one after *gid*."""
        sql = f"{SELECT_EVENT} WHERE e.gid > ? ORDER BY e.gid LIMIT ?"
        return [event_of(row) for row in self._all(sql, (gid, _between(limit, EVENTS_LIMIT)))]

    def last_gid(self) -> int:
        """Return the global number of the newest event; 0 if there is none."""
        return int(self._all("SELECT coalesce(max(gid), 0) FROM events", ())[0][0])

    def find_call(self, call: str) -> list[RunEvent]:
        """Return the events of one call in order, or nothing."""
        sql = f"{SELECT_EVENT} WHERE e.call = ? ORDER BY e.gid LIMIT ?"
        return [event_of(row) for row in self._all(sql, (call, EVENTS_LIMIT))]

    def open_calls(self) -> list[tuple[str, str, int]]:
        """Return (run, call, seq) of each call without an outcome, oldest first."""
        sql = "SELECT k.id, c.call, c.seq FROM open_calls c JOIN run_keys k ON k.run = c.run ORDER BY c.run, c.seq"
        return [(run, call, seq) for run, call, seq in self._all(sql, ())]

    def open_runs(self) -> list[str]:
        """Return the runs that were not closed, oldest first."""
        sql = "SELECT k.id FROM runs r JOIN run_keys k ON k.run = r.run WHERE r.closed_seq IS NULL ORDER BY r.run"
        return [run for (run,) in self._all(sql, ())]

    def tail(self, run: str | None = None, *, after: int | None = None, stop: threading.Event) -> Generator[RunEvent]:
        """Yield events as they are committed, by whatever process, until *stop* is set.

        *after* is a global number; without it the tail begins with what comes next.
        """
        at = self.last_gid() if after is None else after
        seen = -1
        while not stop.is_set():
            version = self._all("PRAGMA data_version", ())[0][0]
            if version == seen:
                stop.wait(TAIL_POLL_S)
                continue
            seen = version
            while events := self.events_since(at):
                at = events[-1].gid
                yield from (event for event in events if run is None or event.run == run)

    def search(
        self, query: str, *, principal: str | None = None, run: str | None = None, limit: int = 20
    ) -> list[RunEvent]:
        """Return events that contain every word of *query*, newest first. Any text is a valid query."""
        wanted = Query(query)
        if not wanted:
            return []
        return self._reading(lambda: self._search(wanted, principal, run, _between(limit, SEARCH_LIMIT)))

    def _search(self, query: Query, principal: str | None, run: str | None, limit: int) -> list[RunEvent]:
        found: list[RunEvent] = []
        owners: dict[str, str | None] = {}
        for row in self._candidates(query, principal, run):
            if principal is not None and row[0] not in owners:
                owners[row[0]] = self.get_run(row[0])["principal"]
            if query.fits(row[BODY][SALT_BYTES:]) and (principal is None or owners[row[0]] == principal):
                found.append(event_of(row))
            if len(found) == limit:
                break
        return found

    def _candidates(self, query: Query, principal: str | None, run: str | None) -> Iterator[Row]:
        """Yield rows that the index finds, newest first: what is not indexed yet, then table after table."""
        filters, values = "e.erased_by IS NULL AND t.body IS NOT NULL", []
        if principal is not None:
            filters += " AND e.run IN (SELECT run FROM runs WHERE principal = ?)"
            values.append(principal)
        if run is not None:
            filters += " AND k.id = ?"
            values.append(run)
        if not query.match:
            sql = f"{SELECT_EVENT} WHERE {filters} AND e.gid > ? ORDER BY e.gid DESC"
            yield from self._connection.execute(sql, (*values, self.last_gid() - SCAN_EVENTS))
            return
        one = f"{SELECT_EVENT} WHERE e.gid = ? AND {filters}"
        for gid in self._fresh(query):
            yield from self._connection.execute(one, (gid, *values))
        first, last = self._span(run)
        for shard in shards(self._connection):
            number = int(shard.removeprefix("search_"))
            if number * SHARD_EVENTS > last or (number + 1) * SHARD_EVENTS <= first:
                continue
            sql = f"SELECT rowid FROM {shard} WHERE {shard} MATCH ? AND rowid BETWEEN ? AND ? ORDER BY rowid DESC"
            for (gid,) in self._connection.execute(sql, (query.match, first, last)):
                yield from self._connection.execute(one, (gid, *values))

    def _fresh(self, query: Query) -> list[int]:
        rows = payloads_between(self._connection, indexed_gid(self._connection), self.last_gid())
        with closing(memory_index(rows)) as index:
            found = index.execute("SELECT rowid FROM search WHERE search MATCH ? ORDER BY rowid DESC", (query.match,))
            return [gid for (gid,) in found]

    def _span(self, run: str | None) -> tuple[int, int]:
        if run is None:
            return 0, self.last_gid()
        sql = "SELECT min(e.gid), max(e.gid) FROM events e JOIN run_keys k ON k.run = e.run WHERE k.id = ?"
        first, last = self._connection.execute(sql, (run,)).fetchone()
        return (first or 0), (last or 0)

    def _all(self, sql: str, values: tuple[Any, ...]) -> list[Row]:
        return self._reading(lambda: self._connection.execute(sql, values).fetchall())

    def _reading(self, read: Callable[[], list[Any]]) -> list[Any]:
        """Run *read* on one snapshot, and speak of our errors and not of SQLite's."""
        try:
            if self._connection.in_transaction:
                return read()
            self._connection.execute("BEGIN")
            try:
                return read()
            finally:
                self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise translated(error, self._file) from error


def _between(limit: int, cap: int) -> int:
    return max(0, min(limit, cap))


def _run_of(row: Row) -> JsonObject:
    run, created, closed, erased, count, calls, open_calls, erased_by, digest, body = row
    told = _sealed(erased_by, digest, body)
    return {
        "id": run, "kind": told.get("run_kind"), "project": told.get("project"), "principal": told.get("principal"),
        "thread": told.get("thread"), "parent_run": told.get("parent_run"), "trace_id": told.get("trace_id"),
        "title": told.get("title"), "created_at": iso_time(created), "created_at_ns": created, "last_seq": count,
        "open": closed is None, "calls": calls, "open_calls": open_calls, "erased": erased,
    }  # fmt: skip


def _sealed(erased_by: int | None, digest: bytes, body: bytes | None) -> JsonObject:
    """Return what the first event of a run says of it; nothing once it is erased, or if it is not what was sealed.

    A run of which nothing is known is nobody's; `audit verify` names the event.
    """
    payload = payload_of(erased_by, body)
    if payload is None or body is None or payload_digest(body[:SALT_BYTES], payload) != digest:
        return {}
    told = orjson.loads(payload)
    return told if isinstance(told, dict) else {}
