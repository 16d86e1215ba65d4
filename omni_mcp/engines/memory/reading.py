"""What can be read of the memory without searching: single items, lists, and what the operator may ask."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.memory import MemoryItem, MemoryScope, Readers, Taint
from omni_mcp.engines.memory.rows import (
    ITEM_COLUMNS,
    ITEM_TABLES,
    KINDS,
    item_of,
    name_hash,
    taint_bits,
    text_and_subject,
)  # fmt: skip

LIST_LIMIT = 1000
_LIVE = "(i.expires_at_ns IS NULL OR i.expires_at_ns > ?)"
_LAST_ID = "\U0010ffff"


def places_of(connection: sqlite3.Connection, readers: Readers) -> list[int]:
    """Return the numbers of the places that *readers* cover, as far as there are any."""
    sql = "SELECT place FROM places WHERE scope = ? AND owner = ? AND project = ?"
    found = [
        connection.execute(sql, (scope, owner, readers.project)).fetchone()
        for scope, owner in dict.fromkeys(readers.places)
    ]
    return [int(row[0]) for row in found if row is not None]


def larger_than(connection: sqlite3.Connection, places: Sequence[int], items: int) -> list[int]:
    """Return those of *places* that hold more than so many items."""
    sql = f"SELECT place FROM places WHERE items > ? AND place IN ({_marks(places)})"
    return [place for (place,) in connection.execute(sql, (items, *places))]


def get_item(connection: sqlite3.Connection, item: str, readers: Readers, now_ns: int) -> MemoryItem:
    """Return an item by id.

    Raises:
        NotFound: as the port says.
    """
    places = places_of(connection, readers)
    sql = f"SELECT i.place, {ITEM_COLUMNS} FROM {ITEM_TABLES} WHERE i.id = ? AND {_LIVE}"
    row = connection.execute(sql, (item, now_ns)).fetchone()
    if row is None or row[0] not in places:
        raise NotFound("there is no such item", detail=f"item {item!r}")
    return item_of(row[1:])


def list_items(
    connection: sqlite3.Connection, readers: Readers, now_ns: int, *, limit: int, before: str | None,
    kinds: Sequence[str], tags: Sequence[str], subject: str | None, session: str | None,
    without_taint: Sequence[Taint] = (),
) -> list[MemoryItem]:  # fmt: skip
    """Return newest items first; each of *tags* is on every one of them."""
    where: list[str] = ["i.place = ?", _LIVE, "i.id < ?"]
    values: list[Any] = [now_ns, before or _LAST_ID]
    if kinds:
        numbers = [number for number, kind in enumerate(KINDS) if kind in kinds]
        where, values = [*where, f"i.kind IN ({_marks(numbers)})"], [*values, *numbers]
    if without_taint:
        where, values = [*where, "i.taint & ? = 0"], [*values, taint_bits(tuple(without_taint))]
    for tag in set(tags):
        where.append("EXISTS (SELECT 1 FROM tags t WHERE t.place = i.place AND t.n = i.n AND t.tag = ?)")
        values.append(name_hash(tag))
    for column, name in (("subject", subject), ("session", session)):
        if name is not None:
            where, values = [*where, f"i.{column} = ?"], [*values, name_hash(name)]
    places = places_of(connection, readers)
    found = [item for place in places for item in _items(connection, where, [place, *values], limit)]
    return sorted(found, key=lambda item: item.id, reverse=True)[:limit]


def find_item(connection: sqlite3.Connection, item: str) -> MemoryItem:
    """Return an item of any place, expired or not.

    Raises:
        NotFound: there is none.
    """
    found = _items(connection, ["i.id = ?"], [item], 1)
    if not found:
        raise NotFound("there is no such item", detail=f"item {item!r}")
    return found[0]


def all_items(
    connection: sqlite3.Connection, *, limit: int, before: str | None, project: str | None, scope: MemoryScope | None
) -> list[MemoryItem]:
    """Return the newest items of any place first, expired or not."""
    where, values = ["i.id < ?"], [before or _LAST_ID]
    for column, value in (("project", project), ("scope", scope)):
        if value is not None:
            where, values = [*where, f"p.{column} = ?"], [*values, value]
    return _items(connection, where, values, limit)


def expired(connection: sqlite3.Connection, now_ns: int, limit: int) -> list[MemoryItem]:
    """Return the items that a sweep would remove now, in its order."""
    sql = f"SELECT {ITEM_COLUMNS} FROM {ITEM_TABLES} WHERE i.expires_at_ns <= ? ORDER BY i.n LIMIT ?"
    return [item_of(row) for row in connection.execute(sql, (now_ns, limit))]


def runs_with_items(connection: sqlite3.Connection) -> list[str]:
    """Return the runs that have items of their own."""
    sql = "SELECT DISTINCT owner FROM places WHERE scope = 'run' AND items > 0"
    return [owner for (owner,) in connection.execute(sql)]


def items_of_run(connection: sqlite3.Connection, run: str, limit: int) -> list[MemoryItem]:
    """Return the first items that a run has of its own."""
    sql = f"SELECT {ITEM_COLUMNS} FROM {ITEM_TABLES} WHERE p.scope = 'run' AND p.owner = ? ORDER BY i.n LIMIT ?"
    return [item_of(row) for row in connection.execute(sql, (run, limit))]


def written_by(connection: sqlite3.Connection, run: str, call: str | None) -> list[str]:
    """Return the ids of the items of which a run, or one of its calls, wrote something that still stands."""
    sql = (
        "SELECT id FROM items WHERE n IN (SELECT i.n FROM items i JOIN carriers c ON c.carrier = i.writer "
        "WHERE c.run = ?1 AND c.call = coalesce(?2, c.call) UNION "
        "SELECT e.n FROM earlier_writers e JOIN carriers c USING (carrier) "
        "WHERE c.run = ?1 AND c.call = coalesce(?2, c.call)) ORDER BY n"
    )
    return [id_ for (id_,) in connection.execute(sql, (run, call))]


def to_erase(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Return the calls that carried a forgotten text and that the log has not let go of yet."""
    sql = "SELECT c.run, c.call FROM to_erase JOIN carriers c USING (carrier) ORDER BY c.carrier"
    return [(run, call) for run, call in connection.execute(sql)]


def items_at(connection: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, MemoryItem]:
    """Return the items with these row numbers, as far as they are still there."""
    sql = f"SELECT i.n, {ITEM_COLUMNS} FROM {ITEM_TABLES} WHERE i.n IN ({_marks(numbers)})"
    return {row[0]: item_of(row[1:]) for row in connection.execute(sql, list(numbers))}


def texts_at(connection: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, str]:
    """Return the texts of the items with these row numbers."""
    sql = f"SELECT i.n, b.json FROM items i JOIN bodies b ON b.body = i.body WHERE i.n IN ({_marks(numbers)})"
    return {n: text_and_subject(body)[0] for n, body in connection.execute(sql, list(numbers))}


def words_at(connection: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, bytes]:
    """Return the counted words of the items with these row numbers."""
    sql = f"SELECT i.n, m.words FROM items i JOIN marks m ON m.mark = i.mark WHERE i.n IN ({_marks(numbers)})"
    return {n: bytes(words) for n, words in connection.execute(sql, list(numbers))}


def _items(connection: sqlite3.Connection, where: Sequence[str], values: Sequence[Any], limit: int) -> list[MemoryItem]:
    sql = f"SELECT {ITEM_COLUMNS} FROM {ITEM_TABLES} WHERE {' AND '.join(where)} ORDER BY i.id DESC LIMIT ?"
    rows = connection.execute(sql, (*values, max(0, min(limit, LIST_LIMIT)))).fetchall()
    return [item_of(row) for row in rows]


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" for _ in values)
