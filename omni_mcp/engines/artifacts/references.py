"""References: who holds a blob in which run, what that costs, and what its maker called it.

A name is what somebody wrote, and may be what has to be erased. It stands in `titles` and nowhere else: a row there is
appended and later overwritten with zeros of the same length. Rows of other tables and of indexes move between pages,
and a page that something moved away from keeps its old bytes.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterable

from omni_mcp.contracts.artifact import ArtifactRef

REFERENCE_BYTES = 512  # what a reference costs its owner besides the bytes: rows take room too
NAMES_LOOKED_AT = 64  # of one blob in one run; names stand in no index (see above), so that each is a row to read
SCHEMA = """
CREATE TABLE IF NOT EXISTS titles (
    title INTEGER PRIMARY KEY AUTOINCREMENT, name BLOB NOT NULL, media_type BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS refs (
    id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL REFERENCES blobs (sha256), owner TEXT NOT NULL, run TEXT NOT NULL,
    title INTEGER NOT NULL REFERENCES titles (title), at_ns INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS refs_blob ON refs (sha256, owner, run);
CREATE INDEX IF NOT EXISTS refs_owner ON refs (owner, id);
CREATE INDEX IF NOT EXISTS refs_run ON refs (run);
CREATE TABLE IF NOT EXISTS owners (owner TEXT PRIMARY KEY, bytes INTEGER NOT NULL) STRICT;
"""
FACTS = "r.sha256, b.size, t.media_type, t.name"
TABLES = "refs r JOIN blobs b ON b.sha256 = r.sha256 JOIN titles t ON t.title = r.title"
HELD = "EXISTS (SELECT 1 FROM refs WHERE refs.sha256 = blobs.sha256)"
_HOLDS = "SELECT EXISTS (SELECT 1 FROM refs WHERE sha256 = ? AND owner = ?)"
_COUNT_OWNERS = """
INSERT OR REPLACE INTO owners
SELECT owner, sum(cost) FROM (
    SELECT r.owner AS owner, b.size + count(*) * ? AS cost
    FROM refs r JOIN blobs b ON b.sha256 = r.sha256 GROUP BY r.owner, r.sha256
) GROUP BY owner
"""


def ref_of(row: tuple[str, int, bytes, bytes]) -> ArtifactRef:
    """Return the reference of a row of FACTS."""
    sha256, size, media_type, name = row
    return ArtifactRef(sha256=sha256, size=size, media_type=media_type.decode(), name=name.decode() or None)


def is_there(connection: sqlite3.Connection, reference: ArtifactRef, owner: str, run: str) -> bool:
    """Whether *owner* holds just this in *run* already, by one of the newest names."""
    sql = (
        "SELECT t.name FROM refs r JOIN titles t ON t.title = r.title "
        "WHERE r.sha256 = ? AND r.owner = ? AND r.run = ? ORDER BY r.id DESC LIMIT ?"
    )
    names = connection.execute(sql, (reference.sha256, owner, run, NAMES_LOOKED_AT))
    return any(bytes(name) == _name(reference) for (name,) in names)


def add(connection: sqlite3.Connection, reference: ArtifactRef, owner: str, run: str) -> None:
    """Note that *owner* holds a blob in *run*, which is not noted yet."""
    said = (_name(reference), reference.media_type.encode("utf-8", "replace"))
    title = connection.execute("INSERT INTO titles (name, media_type) VALUES (?, ?)", said).lastrowid
    connection.execute(
        "INSERT INTO refs (sha256, owner, run, title, at_ns) VALUES (?, ?, ?, ?, ?)",
        (reference.sha256, owner, run, title, time.time_ns()),
    )


def cost(connection: sqlite3.Connection, reference: ArtifactRef, owner: str) -> int:
    """Return what a new reference costs *owner*."""
    known = connection.execute(_HOLDS, (reference.sha256, owner)).fetchone()[0]
    return REFERENCE_BYTES + (0 if known else reference.size)


def charge(connection: sqlite3.Connection, owner: str, size: int) -> None:
    """Count what *owner* has more."""
    sql = "INSERT INTO owners VALUES (?, ?) ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes"
    connection.execute(sql, (owner, size))


def held_bytes(connection: sqlite3.Connection, owner: str) -> int:
    """Return what *owner* has in all."""
    row = connection.execute("SELECT bytes FROM owners WHERE owner = ?", (owner,)).fetchone()
    return int(row[0]) if row else 0


def named(connection: sqlite3.Connection, run: str, names: Iterable[str]) -> list[str]:
    """Return the sha256 of what *run* refers to by one of *names*."""
    wanted = {name.encode("utf-8", "replace") for name in names}
    rows = connection.execute(f"SELECT r.sha256, t.name FROM {TABLES} WHERE r.run = ?", (run,)).fetchall()
    return list(dict.fromkeys(sha256 for sha256, name in rows if bytes(name) in wanted))


def give_back(connection: sqlite3.Connection, run: str, sha256: str) -> int:
    """Drop the references of *run* to a blob, names and all, and give their owners back what they cost.

    Returns how many there were.
    """
    sql = "DELETE FROM refs WHERE run = ? AND sha256 = ? RETURNING owner, title"
    rows = connection.execute(sql, (run, sha256)).fetchall()
    empty = "UPDATE titles SET name = zeroblob(length(name)), media_type = zeroblob(length(media_type)) WHERE title = ?"
    connection.executemany(empty, [(title,) for _, title in rows])
    dropped = Counter(owner for owner, _ in rows)
    for owner, count in dropped.items():
        freed = count * REFERENCE_BYTES
        if not connection.execute(_HOLDS, (sha256, owner)).fetchone()[0]:
            freed += connection.execute("SELECT size FROM blobs WHERE sha256 = ?", (sha256,)).fetchone()[0]
        connection.execute("UPDATE owners SET bytes = bytes - ? WHERE owner = ?", (freed, owner))
        connection.execute("DELETE FROM owners WHERE owner = ? AND bytes <= 0", (owner,))
    return dropped.total()


def take_names_out(connection: sqlite3.Connection) -> bool:
    """Bring a table of references that has the names in it to the present form; says whether it was one.

    Old names, of what was erased too, stay in pages until the caller's vacuum.
    """
    columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(refs)")]
    if "name" not in columns:
        return False
    connection.execute("ALTER TABLE refs RENAME TO old_refs")
    for index in ("refs_owner", "refs_run"):
        connection.execute(f"DROP INDEX IF EXISTS {index}")
    for statement in SCHEMA.split(";"):
        connection.execute(statement)
    rows = connection.execute("SELECT id, sha256, owner, run, name, media_type, at_ns FROM old_refs ORDER BY id")
    for number, sha256, owner, run, name, media_type, at_ns in rows.fetchall():
        said = (name.encode(), media_type.encode())
        title = connection.execute("INSERT INTO titles (name, media_type) VALUES (?, ?)", said).lastrowid
        connection.execute("INSERT INTO refs VALUES (?, ?, ?, ?, ?, ?)", (number, sha256, owner, run, title, at_ns))
    connection.execute("DROP TABLE old_refs")
    return True


def count_owners(connection: sqlite3.Connection) -> None:
    """Count anew what everybody holds."""
    connection.execute(_COUNT_OWNERS, (REFERENCE_BYTES,))


def _name(reference: ArtifactRef) -> bytes:
    return (reference.name or "").encode("utf-8", "replace")
