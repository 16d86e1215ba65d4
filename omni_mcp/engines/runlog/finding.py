"""Finds events by their words, newest first: it looks back table by table and stops when it has enough."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice

from omni_mcp.contracts.events import RunEvent
from omni_mcp.engines.runlog.rows import BODY, SALT_BYTES, SELECT_EVENT, Row, event_of
from omni_mcp.engines.runlog.search_index import (
    SHARD_EVENTS,
    Query,
    Tokenizer,
    indexed_gid,
    memory_index,
    payloads_between,
    shards,
)
from omni_mcp.engines.runlog.word_filters import WordSieve

SCAN_EVENTS = 20_000  # how far back a query is looked for that has no word for the index
IN_VAIN = 4  # tables in a row without the words: then filters are asked first. Words of now and then do not need them
_PORTION = 64  # places whose runs are looked up at once, before any text is read
_TEXT_IS_THERE = "e.erased_by IS NULL AND t.body IS NOT NULL"
_ROW = f"{SELECT_EVENT} WHERE e.gid = ? AND {_TEXT_IS_THERE}"


class Finder:
    """Searches through one connection.

    Args:
        owner_of: whose a run is by its sealed first event; lists only find candidates.
        in_vain: how many tables in a row may be without the words before filters are asked.
    """

    def __init__(
        self, connection: sqlite3.Connection, owner_of: Callable[[str], str | None], *, in_vain: int = IN_VAIN
    ) -> None:
        self._connection = connection
        self._owner_of = owner_of
        self._in_vain = in_vain
        self._tokenizer = Tokenizer()
        self._schema = -1
        self._shards: list[int] = []

    def find(self, query: Query, *, principal: str | None, run: str | None, limit: int) -> list[RunEvent]:
        """Return the newest events that hold every word, of one principal or run if they are given."""
        found: list[RunEvent] = []
        owners: dict[str, bool] = {}
        if not limit:
            return found
        rows = self._rows(query, principal, run) if query.match else self._scanned(principal, run)
        for row in rows:
            name = row[0]
            if name not in owners:
                owners[name] = principal is None or self._owner_of(name) == principal
            if owners[name] and query.fits(row[BODY][SALT_BYTES:]):
                found.append(event_of(row))
                if len(found) == limit:
                    break
        return found

    def _rows(self, query: Query, principal: str | None, run: str | None) -> Iterator[Row]:
        """Yield rows that the index finds. Whose they are is looked up before their texts are read."""
        wanted = self._wanted(principal, run)
        for portion in self._places(query, run):
            marks = ", ".join("?" * len(portion))
            keys = dict(self._connection.execute(f"SELECT gid, run FROM events WHERE gid IN ({marks})", portion))
            for gid in portion:
                if gid in keys and wanted(keys[gid]):
                    yield from self._connection.execute(_ROW, (gid,))

    def _wanted(self, principal: str | None, run: str | None) -> Callable[[int], bool]:
        """Return whether a run, by its key, is one that is searched; each is looked up once."""
        known: dict[int, bool] = {}
        sql = "SELECT (?1 IS NULL OR r.principal = ?1) AND (?2 IS NULL OR k.id = ?2) FROM run_keys k "
        sql += "LEFT JOIN runs r ON r.run = k.run WHERE k.run = ?3"

        def wanted(key: int) -> bool:
            if key not in known:
                row = self._connection.execute(sql, (principal, run, key)).fetchone()
                known[key] = bool(row and row[0])
            return known[key]

        return wanted

    def _places(self, query: Query, run: str | None) -> Iterator[list[int]]:
        """Yield the global numbers that the index finds, some at a time, never of two tables: what is not indexed yet,
        then table after table."""
        last = self._last()
        indexed = indexed_gid(self._connection)
        if indexed < last:
            yield from _portions(iter(self._unindexed(query, indexed, last)))
        first, last = self._span(run, last)
        sieve: WordSieve | None = None
        in_vain = 0
        for number in self._tables():
            if number * SHARD_EVENTS > last or (number + 1) * SHARD_EVENTS <= first:
                continue
            if in_vain >= self._in_vain:
                sieve = sieve or WordSieve(self._connection, self._tokenizer.words_of(query))
                if not sieve.may_have(number):
                    continue
            table = f"search_{number}"
            sql = f"SELECT rowid FROM {table} WHERE {table} MATCH ? AND rowid BETWEEN ? AND ? ORDER BY rowid DESC"
            found = _portions(gid for (gid,) in self._connection.execute(sql, (query.match, first, last)))
            in_vain += 1
            for portion in found:
                in_vain = 0
                yield portion

    def _unindexed(self, query: Query, indexed: int, last: int) -> list[int]:
        with closing(memory_index(payloads_between(self._connection, indexed, last))) as index:
            found = index.execute("SELECT rowid FROM search WHERE search MATCH ? ORDER BY rowid DESC", (query.match,))
            return [gid for (gid,) in found]

    def _scanned(self, principal: str | None, run: str | None) -> Iterator[Row]:
        """Yield the newest rows, for a query that has nothing for the index."""
        filters = f"{_TEXT_IS_THERE} AND (?1 IS NULL OR k.id = ?1)"
        filters += " AND (?2 IS NULL OR (SELECT r.principal FROM runs r WHERE r.run = e.run) = ?2)"
        sql = f"{SELECT_EVENT} WHERE {filters} AND e.gid > ?3 ORDER BY e.gid DESC"
        yield from self._connection.execute(sql, (run, principal, self._last() - SCAN_EVENTS))

    def _tables(self) -> list[int]:
        """Return the numbers of the tables of the index, newest first; read again when the schema has changed."""
        schema = self._connection.execute("PRAGMA schema_version").fetchone()[0]
        if schema != self._schema:
            self._shards = [int(name.removeprefix("search_")) for name in shards(self._connection)]
            self._schema = schema
        return self._shards

    def _span(self, run: str | None, last: int) -> tuple[int, int]:
        if run is None:
            return 0, last
        sql = "SELECT min(e.gid), max(e.gid) FROM events e JOIN run_keys k ON k.run = e.run WHERE k.id = ?"
        first, last = self._connection.execute(sql, (run,)).fetchone()
        return (first or 0), (last or 0)

    def _last(self) -> int:
        return int(self._connection.execute("SELECT coalesce(max(gid), 0) FROM events").fetchone()[0])


def _portions(places: Iterator[int]) -> Iterator[list[int]]:
    while portion := list(islice(places, _PORTION)):
        yield portion
