"""The writer: the one connection of a store through which items are put, noted as carried, and removed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from omni_mcp.contracts.errors import Conflict, NotFound
from omni_mcp.contracts.json import canonical
from omni_mcp.contracts.memory import MemoryItem, Readers
from omni_mcp.engines.memory.connection import cut_log, open_writer, translated
from omni_mcp.engines.memory.marking import Marker
from omni_mcp.engines.memory.quotas import Quotas, Replaced
from omni_mcp.engines.memory.reading import places_of
from omni_mcp.engines.memory.removal import Pair, compact, empty, remove, save_change
from omni_mcp.engines.memory.renewing import Marked, Recipes, renew
from omni_mcp.engines.memory.rows import (
    ITEM_COLUMNS,
    ITEM_TABLES,
    KINDS,
    Limits,
    Mark,
    Prepared,
    item_of,
    name_hash,
    optional_hash,
    taint_bits,
)  # fmt: skip

NO_SUCH_ITEM = "there is no such item"


@dataclass(frozen=True, slots=True)
class _Stored:
    n: int
    place: int
    body: int
    mark: int
    writer: int | None
    version: int
    taint: int
    created_at_ns: int
    expires_at_ns: int | None
    size: int
    principal: int | None


_VALUES = (
    "body", "mark", "recipe", "writer", "kind", "importance", "key", "session", "subject", "at_ns", "expires_at_ns",
    "size", "principal", "change",
)  # fmt: skip
_STORED = "n, place, body, mark, writer, version, taint, created_at_ns, expires_at_ns, size, principal"


class Writer:
    """Writes through a connection of its own; belongs to one thread.

    Args:
        limits: how much may be kept.

    Raises:
        MemoryUnavailable: as `open_writer`, here and from every method.
    """

    def __init__(self, file: Path, marker: Marker, *, now_ns: Callable[[], int], limits: Limits) -> None:
        self._file = file
        self._marker = marker
        self._now_ns = now_ns
        self._connection = open_writer(file)
        self._quotas = Quotas(self._connection, limits)
        self._change = 0
        self._log_is_cut = True
        with self._translating():
            self.recipes = Recipes(
                whole=self._recipe_number(marker.recipe),
                without_vectors=self._recipe_number(marker.recipe_without_vectors),
            )
            compact(self._connection, only_unfinished=True)

    def put(
        self, items: Sequence[MemoryItem], *, expected_version: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[MemoryItem]:  # fmt: skip
        """Store *items* in one commit and return them as stored; see the port.

        Raises:
            QuotaExceeded, Conflict, NotFound: nothing was stored.
        """
        prepared = self._marker.prepared(items, on_progress)
        with self._transaction():
            numbers = [self._put(one, expected_version) for one in prepared]
            self._quotas.save()
            stored = [self._item(n) for n in numbers]
        self._tidy()
        return stored

    def touched(self, items: Sequence[str], *, run: str, call: str) -> list[str]:
        """Note that a call carried the text of *items*; returns those that are not there."""
        with self._transaction():
            found = {item: n for item in dict.fromkeys(items) if (n := self._number_of(item)) is not None}
            if found:
                carrier = self._carrier(run, call)
                rows = [(n, carrier) for n in found.values()]
                self._connection.executemany("INSERT OR IGNORE INTO carried VALUES (?, ?)", rows)
        return [item for item in items if item not in found]

    def forget(self, item: str, readers: Readers | None) -> list[Pair]:
        """Remove one item; see the port. Without *readers*, any.

        Raises:
            NotFound: as the port says.
        """
        with self._transaction():
            stored = self._find("id = ?", (item,))
            if stored is None or (readers is not None and stored.place not in places_of(self._connection, readers)):
                raise NotFound(NO_SUCH_ITEM, detail=f"item {item!r}")
            pairs = remove(self._connection, stored.n, change=self._next_change())
        self._log_is_cut = False
        self._tidy()
        return pairs

    def forget_all(self, items: Sequence[str]) -> int:
        """Remove *items* in one commit, as far as they are there; returns how many were."""
        with self._transaction():
            numbers = [n for item in items if (n := self._number_of(item)) is not None]
            for n in numbers:
                remove(self._connection, n, change=self._next_change())
        self._log_is_cut = self._log_is_cut and not numbers
        self._tidy()
        return len(numbers)

    def sweep(self, now_ns: int, limit: int, items: Sequence[str] | None) -> list[tuple[MemoryItem, list[Pair]]]:
        """Remove what expired up to *now_ns*; see the port."""
        with self._transaction():
            sql = (
                f"SELECT i.n, {ITEM_COLUMNS} FROM {ITEM_TABLES} WHERE i.expires_at_ns <= ?1 "
                "AND (?3 IS NULL OR i.id IN (SELECT value FROM json_each(?3))) ORDER BY i.n LIMIT ?2"
            )
            among = None if items is None else canonical(list(items)).decode()
            found = [(n, item_of(tuple(row))) for n, *row in self._connection.execute(sql, (now_ns, limit, among))]
            swept = [
                (item.model_copy(update={"text": ""}), remove(self._connection, n, change=self._next_change()))
                for n, item in found
            ]
        self._log_is_cut = self._log_is_cut and not swept
        self._tidy()
        return swept

    def erased(self, pairs: Sequence[Pair]) -> None:
        """Note that the log has let go of these calls."""
        with self._transaction():
            for run, call in pairs:
                found = self._connection.execute("SELECT carrier FROM carriers WHERE run = ? AND call = ?", (run, call))
                for (carrier,) in found.fetchall():
                    for table in ("to_erase", "carried"):
                        self._connection.execute(f"DELETE FROM {table} WHERE carrier = ?", (carrier,))
                    sql = (
                        "SELECT EXISTS (SELECT 1 FROM items WHERE writer = ?1) "
                        "OR EXISTS (SELECT 1 FROM earlier_writers WHERE carrier = ?1)"
                    )
                    if not self._connection.execute(sql, (carrier,)).fetchone()[0]:
                        self._connection.execute("DELETE FROM carriers WHERE carrier = ?", (carrier,))

    def renew(self, places: Sequence[int]) -> None:
        """Mark anew what stands in *places* and was marked by another recipe, or waits for its vector."""
        renew(self._connection, self._marker, self.recipes, places, self._rewrite)

    def settle(self) -> bool:
        """Give room back and cut the write-ahead log; False if it was read all the time: it may hold old pages then."""
        with self._translating():
            compact(self._connection)
            self._log_is_cut = cut_log(self._connection)
        return self._log_is_cut

    def close(self) -> None:
        """Close the connection; what was forgotten is not left behind in the write-ahead log."""
        if not self._log_is_cut:
            cut_log(self._connection)
        self._connection.close()

    def _put(self, new: Prepared, expected_version: int | None) -> int:
        item = new.item
        place = self._quotas.place_of(item)
        stored = self._target(item, place, expected_version)
        replaced = None if stored is None else Replaced(principal=stored.principal, size=stored.size)
        principal = self._quotas.exchange(item, len(new.body), replaced)
        n = self._insert(new, place, principal) if stored is None else self._replace(new, stored, principal)
        if item.tags:
            rows = [(place, name_hash(tag), n) for tag in set(item.tags)]
            self._connection.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?, ?)", rows)
        return n

    def _target(self, item: MemoryItem, place: int, expected_version: int | None) -> _Stored | None:
        """Return what *item* replaces."""
        by_id = self._find("id = ?", (item.id,))
        by_key = None if item.key is None else self._find("place = ? AND key = ?", (place, name_hash(item.key)))
        if by_key is not None and self._has_expired(by_key):
            self._connection.execute("UPDATE items SET key = NULL WHERE n = ?", (by_key.n,))
            by_key = None
        if by_id is not None and by_id.place != place:
            raise Conflict("there is such an item already", detail=f"item {item.id!r} is in another place")
        if by_id is not None and by_key is not None and by_id.n != by_key.n:
            raise Conflict("another item has this key", detail=f"item {item.id!r}")
        stored = by_id or by_key
        if (stored is None and expected_version is not None) or (by_id is not None and self._has_expired(by_id)):
            raise NotFound(NO_SUCH_ITEM, detail=f"item {item.id!r} is gone or has expired")
        if stored is not None and expected_version not in (None, stored.version):
            raise Conflict("somebody else revised the item", detail=f"it is at version {stored.version}")
        return stored

    def _insert(self, new: Prepared, place: int, principal: int | None) -> int:
        facts = (new.item.id, place, new.item.created_at_ns, 1, taint_bits(new.item.taint))
        values = (*facts, *self._values(new, principal))
        sql = (
            f"INSERT INTO items (id, place, created_at_ns, version, taint, {', '.join(_VALUES)}) "
            f"VALUES ({', '.join('?' for _ in values)})"
        )
        n = self._connection.execute(sql, values).lastrowid
        assert n is not None
        return n

    def _replace(self, new: Prepared, stored: _Stored, principal: int | None) -> int:
        if not self._keeps_something(new.item, stored):
            self._connection.execute("DELETE FROM earlier_writers WHERE n = ?", (stored.n,))
        elif stored.writer is not None:
            self._connection.execute("INSERT OR IGNORE INTO earlier_writers VALUES (?, ?)", (stored.n, stored.writer))
        empty(self._connection, "bodies", "body", stored.body)
        empty(self._connection, "marks", "mark", stored.mark)
        self._connection.execute("DELETE FROM tags WHERE n = ?", (stored.n,))
        if stored.writer is not None:
            self._connection.execute("INSERT OR IGNORE INTO carried VALUES (?, ?)", (stored.n, stored.writer))
        taint = taint_bits(new.item.taint) | stored.taint
        values = (self._now_ns(), stored.version + 1, taint, *self._values(new, principal), stored.n)
        sql = (
            "UPDATE items SET revised_at_ns = ?, version = ?, taint = ?, "
            f"{', '.join(f'{name} = ?' for name in _VALUES)} WHERE n = ?"
        )
        self._connection.execute(sql, values)
        self._log_is_cut = False
        return stored.n

    def _keeps_something(self, new: MemoryItem, stored: _Stored) -> bool:
        """Whether the next version says something that the stored one said; a key only names it."""
        old = self._item(stored.n)
        said = {old.text, old.subject, old.session, *old.tags} - {None}
        return not said.isdisjoint({new.text, new.subject, new.session, *new.tags})

    def _values(self, new: Prepared, principal: int | None) -> tuple[object, ...]:
        """Return the values of _VALUES; the body and the mark are appended on the way."""
        item = new.item
        return (
            self._insert_body(new.body), self._insert_mark(new.mark), self.recipes.of(new.mark), self._writer_of(item),
            KINDS.index(item.kind), item.importance, optional_hash(item.key), optional_hash(item.session),
            optional_hash(item.subject), item.at_ns, item.expires_at_ns, len(new.body), principal, self._next_change(),
        )  # fmt: skip

    def _insert_body(self, body: bytes) -> int:
        return int(self._connection.execute("INSERT INTO bodies (json) VALUES (?)", (body,)).lastrowid or 0)

    def _insert_mark(self, mark: Mark) -> int:
        sql = "INSERT INTO marks (length, question, vector, words, subject_words) VALUES (?, ?, ?, ?, ?)"
        values = (mark.length, mark.question, mark.vector, mark.words, mark.subject_words)
        return int(self._connection.execute(sql, values).lastrowid or 0)

    def _rewrite(self, rows: Sequence[Marked], marks: Sequence[Mark]) -> None:
        with self._transaction():
            for (n, old, _), mark in zip(rows, marks, strict=True):
                values = (self._insert_mark(mark), self.recipes.of(mark), self._next_change(), n, old)
                if self._connection.execute(
                    "UPDATE items SET mark = ?, recipe = ?, change = ? WHERE n = ? AND mark = ?", values
                ).rowcount:
                    empty(self._connection, "marks", "mark", old)

    def _item(self, n: int) -> MemoryItem:
        row = self._connection.execute(f"SELECT {ITEM_COLUMNS} FROM {ITEM_TABLES} WHERE i.n = ?", (n,)).fetchone()
        return item_of(row)

    def _find(self, where: str, values: tuple[object, ...]) -> _Stored | None:
        row = self._connection.execute(f"SELECT {_STORED} FROM items WHERE {where}", values).fetchone()
        return None if row is None else _Stored(*row)

    def _number_of(self, item: str) -> int | None:
        row = self._connection.execute("SELECT n FROM items WHERE id = ?", (item,)).fetchone()
        return None if row is None else int(row[0])

    def _has_expired(self, stored: _Stored) -> bool:
        return stored.expires_at_ns is not None and stored.expires_at_ns <= self._now_ns()

    def _writer_of(self, item: MemoryItem) -> int | None:
        source = item.source
        return self._carrier(source.run, source.call) if source.run and source.call else None

    def _carrier(self, run: str, call: str) -> int:
        self._connection.execute("INSERT OR IGNORE INTO carriers (run, call) VALUES (?, ?)", (run, call))
        sql = "SELECT carrier FROM carriers WHERE run = ? AND call = ?"
        return int(self._connection.execute(sql, (run, call)).fetchone()[0])

    def _recipe_number(self, name: str) -> int:
        self._connection.execute("INSERT OR IGNORE INTO recipes (name) VALUES (?)", (name,))
        return int(self._connection.execute("SELECT recipe FROM recipes WHERE name = ?", (name,)).fetchone()[0])

    def _next_change(self) -> int:
        self._change += 1
        return self._change

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Hold the write lock; leaving the block commits, an exception rolls back and nothing of it stays."""
        with self._translating():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._quotas.begin()
                self._change = before = self._connection.execute("SELECT change FROM state").fetchone()[0]
                yield
                if self._change != before:
                    save_change(self._connection, before, self._change)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise translated(error, self._file) from error

    def _tidy(self) -> None:
        """After a commit that removed texts: cut the write-ahead log, and give room back where there is much of it.

        What does not succeed now, because the file is read all the time, is tried again after the next change.
        """
        if self._log_is_cut:
            return
        with self._translating():
            self._log_is_cut = cut_log(self._connection)
            if compact(self._connection):
                self._log_is_cut = cut_log(self._connection)
