"""Reads the log without being able to write it: for the gateway's own readers, and for the command line."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import orjson

from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.events import Kind, RunEvent, payload_digest
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.premises import with_premises
from omni_mcp.engines.runlog.connection import open_reader, translated
from omni_mcp.engines.runlog.finding import Finder
from omni_mcp.engines.runlog.following import Followed, events_of_principal, events_of_run
from omni_mcp.engines.runlog.paging import EventsPage, page_of_run
from omni_mcp.engines.runlog.premises import find_premises
from omni_mcp.engines.runlog.rows import SALT_BYTES, SELECT_EVENT, Row, event_of, payload_of
from omni_mcp.engines.runlog.search_index import Query
from omni_mcp.engines.runlog.sheets import SheetFiles

RUNS_LIMIT, EVENTS_LIMIT, SEARCH_LIMIT = 1000, 10_000, 1000
PAGE_BYTES = 1024 * 1024
TAIL_POLL_S = 0.1

T = TypeVar("T")

_SELECT_RUN = (
    "SELECT k.id, r.created_at_ns, r.closed_seq, r.erased, h.count, r.calls, coalesce(c.open, 0), "
    "e.erased_by, e.payload_digest, t.body "
    "FROM runs r JOIN run_keys k ON k.run = r.run JOIN heads h ON h.run = r.run "
    "JOIN events e ON e.run = r.run AND e.seq = 1 LEFT JOIN texts t ON t.gid = e.gid "
    "LEFT JOIN (SELECT run, count(*) AS open FROM open_calls GROUP BY run) c ON c.run = r.run "
)
_SELECT_OWNER = (
    "SELECT e.erased_by, e.payload_digest, t.body FROM events e LEFT JOIN texts t ON t.gid = e.gid "
    "WHERE e.run = (SELECT run FROM run_keys WHERE id = ?) AND e.seq = 1"
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
        self._finder = Finder(self._connection, self.owner_of)
        self._sheets = SheetFiles(file)

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

    def thread_runs(
        self, thread: str, *, principal: str, since_ns: int, after: str | None, limit: int
    ) -> list[JsonObject]:
        """Return runs of a thread in their order, from the one behind the run *after*; none is older than *since_ns*.

        Whose a run is and of which thread is what its sealed first event says.
        """
        sql = (
            f"{_SELECT_RUN} WHERE r.principal = ? AND r.created_at_ns >= ? "
            "AND r.run > coalesce((SELECT run FROM run_keys WHERE id = ?), 0) AND e.erased_by IS NULL "
            f"AND json_extract(CAST(substr(t.body, {SALT_BYTES + 1}) AS TEXT), '$.thread') = ? ORDER BY r.run LIMIT ?"
        )
        rows = self._all(sql, (principal, since_ns, after, thread, _between(limit, RUNS_LIMIT)))
        return [run for run in map(_run_of, rows) if run["principal"] == principal and run["thread"] == thread]

    def follow_run(self, run: str, *, after: int) -> Followed:
        """Return a page of events of a run behind the seq *after*, bounded in bytes."""
        return self._one(lambda: events_of_run(self._connection, self._sheets, run, after=after))

    def page_of_run(self, run: str, *, after: int = 0, limit: int = 1000, limit_bytes: int = PAGE_BYTES) -> EventsPage:
        """Return events of a run as their own caller sees them, from the one after seq *after*, ready to be passed on.

        The page ends with the event that reaches *limit* or *limit_bytes*.
        """
        most = _between(limit, EVENTS_LIMIT)
        return self._one(
            lambda: page_of_run(self._connection, self._sheets, run, after=after, limit=most, limit_bytes=limit_bytes)
        )

    def follow_principal(self, principal: str, *, after: int) -> Followed:
        """Return a page of events of a principal's runs behind the global number *after*, bounded in bytes."""
        return self._one(
            lambda: events_of_principal(
                self._connection, principal, after=after,
                is_theirs=lambda run: bool(self.get_run(run)["principal"] == principal),
            )
        )  # fmt: skip

    def _one(self, read: Callable[[], T]) -> T:
        found: T = self._reading(lambda: [read()])[0]
        return found

    def get_run(self, run: str) -> JsonObject:
        """Return one run as `runs` does.

        Raises:
            NotFound: there is no such run.
        """
        rows = self._all(f"{_SELECT_RUN} WHERE k.id = ?", (run,))
        if not rows:
            raise NotFound("there is no such run")
        return _run_of(rows[0])

    def owner_of(self, run: str) -> str | None:
        """Return whose a run is, by its sealed first event; None if nothing is known of it, or there is none."""
        rows = self._all(_SELECT_OWNER, (run,))
        owner = _sealed(*rows[0]).get("principal") if rows else None
        return owner if isinstance(owner, str) else None

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
        return self._events(sql, (run, after, _between(limit, EVENTS_LIMIT)))

    def events_of_kind(
        self, run: str, kinds: Sequence[Kind], *, after: int = 0, before: int | None = None, newest_first: bool = False,
        limit: int = 1000,
    ) -> list[RunEvent]:  # fmt: skip
        """Return events of a run of certain kinds, behind seq *after* and ahead of seq *before*."""
        marks, order = ", ".join("?" * len(kinds)), "DESC" if newest_first else "ASC"
        where = f"k.id = ? AND e.kind IN ({marks}) AND e.seq > ? AND e.seq < ?"
        sql = f"{SELECT_EVENT} WHERE {where} ORDER BY e.seq {order} LIMIT ?"
        values = (run, *kinds, after, 2**62 if before is None else before, _between(limit, EVENTS_LIMIT))
        return self._events(sql, values)

    def events_since(self, gid: int, *, limit: int = 1000) -> list[RunEvent]:
        """Return events of all runs in their global order, from the one after *gid*."""
        sql = f"{SELECT_EVENT} WHERE e.gid > ? ORDER BY e.gid LIMIT ?"
        return self._events(sql, (gid, _between(limit, EVENTS_LIMIT)))

    def newest_events(
        self, kind: Kind, *, code: str | None = None, before: int | None = None, after: int = 0, limit: int = 1000
    ) -> list[RunEvent]:
        """Return events of a kind, and of a code if one is given, newest first, between two global numbers.

        There is no index for it: it reads headers back to *after* where there are few.
        """
        where = "e.kind = ? AND (? IS NULL OR e.code = ?) AND e.gid > ? AND e.gid < ?"
        sql = f"{SELECT_EVENT} WHERE {where} ORDER BY e.gid DESC LIMIT ?"
        values = (kind, code, code, after, 2**62 if before is None else before, _between(limit, EVENTS_LIMIT))
        return [event_of(row) for row in self._all(sql, values)]

    def last_gid(self) -> int:
        """Return the global number of the newest event; 0 if there is none."""
        return int(self._all("SELECT coalesce(max(gid), 0) FROM events", ())[0][0])

    def find_call(self, call: str) -> list[RunEvent]:
        """Return the events of one call in order, or nothing."""
        sql = f"{SELECT_EVENT} WHERE e.call = ? ORDER BY e.gid LIMIT ?"
        return self._events(sql, (call, EVENTS_LIMIT))

    def child_runs(self, run: str) -> list[str]:
        """Return the runs whose parent is *run*, oldest first."""
        sql = "SELECT k.id FROM runs r JOIN run_keys k ON k.run = r.run WHERE r.parent_run = ? ORDER BY r.run"
        return [child for (child,) in self._all(sql, (run,))]

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
        most = _between(limit, SEARCH_LIMIT)
        return self._reading(lambda: self._told(self._finder.find(wanted, principal=principal, run=run, limit=most)))

    def _events(self, sql: str, values: tuple[Any, ...]) -> list[RunEvent]:
        """Return events, each decision together with its premises: of the same snapshot."""
        return self._reading(lambda: self._told(map(event_of, self._connection.execute(sql, values))))

    def _told(self, events: Iterable[RunEvent]) -> list[RunEvent]:
        return with_premises(list(events), lambda run, seq: find_premises(self._connection, run, seq))

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
