"""Which words a full table of the search index cannot have, so that a search for an old word passes most tables over.

A Bloom filter for each table, cut into slices by the word: all that a search needs of sixteen tables is one row. What
it says is in the index anyway; when an erasure fills a table anew its filter is zeroed, in place, and made later.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Collection, Sequence

SLICES = 128
SLICE_BYTES = 512
TOGETHER = 16  # tables that share a row
WORDS_LIMIT = 1 << 18  # of one table: of so many the bits of every other word are set anyway
_ROW_BYTES = TOGETHER * SLICE_BYTES
_ANY_WORD = b"\xff" * _ROW_BYTES  # in place of a row that is damaged


class WordSieve:
    """Says of tables whether they may have all of some words. For one search."""

    def __init__(self, connection: sqlite3.Connection, words: Collection[str]) -> None:
        self._connection = connection
        self._places = [_place_of(word) for word in words]
        self._filtered: frozenset[int] | None = None
        self._rows: dict[int, list[bytes]] = {}

    def may_have(self, number: int) -> bool:
        """Whether the table may have every word; yes where nothing is known of it."""
        if self._filtered is None:
            self._filtered = frozenset(made(self._connection))
        if number not in self._filtered:
            return True
        group, at = divmod(number, TOGETHER)
        if group not in self._rows:
            self._rows[group] = [_row(self._connection, group, slice_) for slice_, _ in self._places]
        start = at * SLICE_BYTES
        return all(
            row[start + (position >> 3)] >> (position & 7) & 1
            for row, (_, positions) in zip(self._rows[group], self._places, strict=True)
            for position in positions
        )


def made(connection: sqlite3.Connection, *, schema: str = "main") -> list[int]:
    """Return the numbers of the tables that have a filter; none in a log of which no gateway has made any yet."""
    there = f"SELECT EXISTS (SELECT 1 FROM {schema}.sqlite_schema WHERE type = 'table' AND name = 'filtered')"
    if not connection.execute(there).fetchone()[0]:
        return []
    return [number for (number,) in connection.execute(f"SELECT number FROM {schema}.filtered ORDER BY number")]


def filter_of(connection: sqlite3.Connection, table: str, *, schema: str = "main") -> list[bytes]:
    """Return the slices of the filter that a table of the index must have; one with too many words may have any."""
    slices = [bytearray(SLICE_BYTES) for _ in range(SLICES)]
    connection.execute(f"CREATE VIRTUAL TABLE temp.words_of USING fts5vocab({schema}, {table}, row)")
    try:
        words = connection.execute("SELECT term FROM temp.words_of LIMIT ?", (WORDS_LIMIT + 1,)).fetchall()
        if len(words) > WORDS_LIMIT:
            return [b"\xff" * SLICE_BYTES] * SLICES
        for (word,) in words:
            number = _number_of(word)
            part = slices[number >> 40 & SLICES - 1]
            part[number >> 3 & 511] |= 1 << (number & 7)
            part[number >> 15 & 511] |= 1 << (number >> 12 & 7)
            part[number >> 27 & 511] |= 1 << (number >> 24 & 7)
    finally:
        connection.execute("DROP TABLE temp.words_of")
    return [bytes(part) for part in slices]


def stored(connection: sqlite3.Connection, number: int, *, schema: str = "main") -> list[bytes]:
    """Return the slices of the filter that stands in the file."""
    group, at = divmod(number, TOGETHER)
    start = at * SLICE_BYTES
    return [_row(connection, group, slice_, schema=schema)[start : start + SLICE_BYTES] for slice_ in range(SLICES)]


def make(connection: sqlite3.Connection, number: int) -> None:
    """Make the filter of a full table, in the caller's transaction."""
    _have_rows(connection, number // TOGETHER)
    _write(connection, number, filter_of(connection, f"search_{number}"))
    connection.execute("INSERT INTO filtered (number) VALUES (?)", (number,))


def unmake(connection: sqlite3.Connection, number: int) -> None:
    """Zero the filter of a table, in the caller's transaction."""
    if connection.execute("DELETE FROM filtered WHERE number = ?", (number,)).rowcount:
        _have_rows(connection, number // TOGETHER)
        _write(connection, number, [bytes(SLICE_BYTES)] * SLICES)


def drop_all(connection: sqlite3.Connection) -> None:
    """Drop every filter, in the caller's transaction."""
    connection.execute("DELETE FROM filtered")
    connection.execute("DELETE FROM word_filters")


def _have_rows(connection: sqlite3.Connection, group: int) -> None:
    """Make the rows of a group of tables, unless all are there. Where one is damaged, none of its filters is one."""
    first, last = group * SLICES, (group + 1) * SLICES - 1
    sql = "SELECT count(*) FROM word_filters WHERE id BETWEEN ? AND ? AND length(bits) = ?"
    if connection.execute(sql, (first, last, _ROW_BYTES)).fetchone()[0] == SLICES:
        return
    connection.execute("DELETE FROM filtered WHERE number / ? = ?", (TOGETHER, group))
    connection.execute("DELETE FROM word_filters WHERE id BETWEEN ? AND ?", (first, last))
    connection.executemany(
        "INSERT INTO word_filters (id, bits) VALUES (?, zeroblob(?))",
        [(number, _ROW_BYTES) for number in range(first, last + 1)],
    )


def _write(connection: sqlite3.Connection, number: int, slices: Sequence[bytes]) -> None:
    group, at = divmod(number, TOGETHER)
    start = at * SLICE_BYTES
    for slice_, part in enumerate(slices):
        with connection.blobopen("word_filters", "bits", group * SLICES + slice_) as row:
            row.seek(start)
            row.write(part)


def _row(connection: sqlite3.Connection, group: int, slice_: int, *, schema: str = "main") -> bytes:
    sql = f"SELECT bits FROM {schema}.word_filters WHERE id = ?"
    found = connection.execute(sql, (group * SLICES + slice_,)).fetchone()
    return found[0] if found and len(found[0]) == _ROW_BYTES else _ANY_WORD


def _place_of(word: str) -> tuple[int, tuple[int, ...]]:
    """Return the slice of a word, and its three bits there."""
    number = _number_of(word)
    return number >> 40 & SLICES - 1, (number & 4095, number >> 12 & 4095, number >> 24 & 4095)


def _number_of(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
