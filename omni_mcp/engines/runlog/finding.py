"""Finds events by their words, newest first: it looks back table by table and stops when it has enough."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing

from omni_mcp.contracts.events import RunEvent
from omni_mcp.engines.runlog.rows import BODY, EVENT_COLUMNS, SALT_BYTES, SELECT_EVENT, Row, event_of
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
IN_VAIN_OF_SOME = 4  # times as many for one principal or run: others may have the words, and a filter says not whose
_TEXT_IS_THERE = "e.erased_by IS NULL AND t.body IS NOT NULL"
_OF_TABLE = "TABLE s CROSS JOIN events e ON e.gid = s.rowid"
_NEWEST_FIRST = " ORDER BY s.rowid DESC"


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
        """Yield rows that the index finds: of what is not indexed yet, then table after table."""
        key = self._key_of(run)
        if run is not None and key is None:
            return
        last = self._last()
        indexed = indexed_gid(self._connection)
        wanted = {"match": query.match, "principal": principal, "run": key}
        if indexed < last:
            sql = _select("events e", "e.gid = :gid", wanted)
            for gid in self._unindexed(query, indexed, last):
                yield from self._connection.execute(sql, {**wanted, "gid": gid})
        first, last = self._span(key, last)
        wanted |= {"first": first, "last": last}
        sql = _select(_OF_TABLE, "s.TABLE MATCH :match AND s.rowid BETWEEN :first AND :last", wanted)
        patience = self._in_vain * (1 if principal is run is None else IN_VAIN_OF_SOME)
        sieve: WordSieve | None = None
        in_vain = 0
        for number in self._tables():
            if number * SHARD_EVENTS > last or (number + 1) * SHARD_EVENTS <= first:
                continue
            if in_vain >= patience:
                sieve = sieve or WordSieve(self._connection, self._tokenizer.words_of(query))
                if not sieve.may_have(number):
                    continue
            in_vain += 1
            for row in self._connection.execute(sql.replace("TABLE", f"search_{number}") + _NEWEST_FIRST, wanted):
                in_vain = 0
                yield row

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

    def _key_of(self, run: str | None) -> int | None:
        found = self._connection.execute("SELECT run FROM run_keys WHERE id = ?", (run,)).fetchone()
        return None if found is None else int(found[0])

    def _span(self, run: int | None, last: int) -> tuple[int, int]:
        if run is None:
            return 0, last
        first, last = self._connection.execute("SELECT min(gid), max(gid) FROM events WHERE run = ?", (run,)).fetchone()
        return (first or 0), (last or 0)

    def _last(self) -> int:
        return int(self._connection.execute("SELECT coalesce(max(gid), 0) FROM events").fetchone()[0])


def _select(found: str, where: str, wanted: Mapping[str, object]) -> str:
    """Return a query for rows of `event_of`. Whose an event is, is looked up before its text is read."""
    theirs = "" if wanted["principal"] is None else "CROSS JOIN runs r ON r.run = e.run AND r.principal = :principal"
    of_run = "" if wanted["run"] is None else "AND e.run = :run"
    return (
        f"SELECT {EVENT_COLUMNS} FROM {found} {theirs} CROSS JOIN run_keys k ON k.run = e.run "
        f"CROSS JOIN texts t ON t.gid = e.gid WHERE {where} {of_run} AND {_TEXT_IS_THERE}"
    )
