"""How an item leaves the disk: zeros in place over what was written, then its rows, then, now and then, the room.

SQLite overwrites a value of the same length where it lies. A row that is deleted makes SQLite move its neighbours, and
a page that rows were moved from keeps their old bytes; so rows with texts are deleted only right before a vacuum, which
writes every page anew.
"""

from __future__ import annotations

import sqlite3

Pair = tuple[str, str]  # run, call
GONE_KEPT = 10_000  # changes; an index in memory that is further behind is made anew
COMPACT_FROM_BYTES = 1024 * 1024
_LENGTH = {"bodies": "length(json)", "marks": "length(vector) + length(words) + length(subject_words)"}
_ZEROS = {
    "bodies": "json = zeroblob(length(json))",
    "marks": (
        "vector = zeroblob(length(vector)), words = zeroblob(length(words)), "
        "subject_words = zeroblob(length(subject_words))"
    ),
}


def empty(connection: sqlite3.Connection, table: str, column: str, number: int) -> None:
    """Put zeros over one row of `bodies` or `marks`."""
    size = connection.execute(f"SELECT {_LENGTH[table]} FROM {table} WHERE {column} = ?", (number,)).fetchone()[0]
    connection.execute(f"UPDATE {table} SET {_ZEROS[table]} WHERE {column} = ?", (number,))
    connection.execute("UPDATE state SET emptied = emptied + ?", (size,))


def remove(connection: sqlite3.Connection, n: int, *, change: int) -> list[Pair]:
    """Remove one item in the caller's transaction; its calls are kept to be erased, and returned."""
    sql = "SELECT place, body, mark, writer, size, principal FROM items WHERE n = ?"
    place, body, mark, writer, size, principal = connection.execute(sql, (n,)).fetchone()
    if writer is not None:
        connection.execute("INSERT OR IGNORE INTO carried VALUES (?, ?)", (n, writer))
    sql = "SELECT c.carrier, c.run, c.call FROM carried JOIN carriers c USING (carrier) WHERE n = ? ORDER BY c.carrier"
    calls = connection.execute(sql, (n,)).fetchall()
    connection.executemany("INSERT OR IGNORE INTO to_erase VALUES (?)", [(carrier,) for carrier, _, _ in calls])
    empty(connection, "bodies", "body", body)
    empty(connection, "marks", "mark", mark)
    for table in ("items", "tags", "carried", "earlier_writers"):
        connection.execute(f"DELETE FROM {table} WHERE n = ?", (n,))
    connection.execute("UPDATE places SET items = items - 1, bytes = bytes - ? WHERE place = ?", (size, place))
    connection.execute("UPDATE writers SET items = items - 1, bytes = bytes - ? WHERE writer = ?", (size, principal))
    connection.execute("INSERT INTO gone VALUES (?, ?, ?)", (change, place, n))
    return [(run, call) for _, run, call in calls]


def save_change(connection: sqlite3.Connection, before: int, change: int) -> None:
    """Note the newest change at the end of a transaction, and let go of what is long gone."""
    connection.execute("UPDATE state SET change = ?", (change,))
    if change // GONE_KEPT > before // GONE_KEPT:
        connection.execute("DELETE FROM gone WHERE change <= ?", (change - GONE_KEPT,))
        connection.execute("UPDATE state SET forgot_until = max(forgot_until, ?)", (change - GONE_KEPT,))


def compact(connection: sqlite3.Connection, *, only_unfinished: bool = False) -> bool:
    """Give the room of emptied rows back if that is a quarter of the file; says whether it was done.

    A vacuum that was cut short is done again: until then, pages may hold old bytes.
    """
    emptied, unclean = connection.execute("SELECT emptied, unclean FROM state").fetchone()
    pages, page_bytes = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    due = not only_unfinished and emptied >= max(COMPACT_FROM_BYTES, pages * page_bytes // 4)
    if not due and not unclean:
        return False
    if due:
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute("UPDATE state SET emptied = 0, unclean = 1")
            connection.execute("DELETE FROM bodies WHERE body NOT IN (SELECT body FROM items)")
            connection.execute("DELETE FROM marks WHERE mark NOT IN (SELECT mark FROM items)")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
    connection.execute("VACUUM")
    connection.execute("UPDATE state SET unclean = 0")
    return True
