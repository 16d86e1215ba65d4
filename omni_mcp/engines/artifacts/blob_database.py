"""The database of blobs: how it is opened, brought to its present form, and made smaller.

Its rows stay where they are when what they held is removed. So it only grows while it is used, and where most of it is
zeros, it is written anew when it is opened.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.engines.artifacts import references
from omni_mcp.sqlite_settings import settle

BUSY_TIMEOUT_S = 5.0
SCHEMA_VERSION = 3
SHRINK_FROM_BYTES = 64 << 20  # a smaller database is not looked through when it is opened
REWRITTEN_BYTES = 256 << 20  # what is left is held in memory meanwhile
_BLOBS = "CREATE TABLE IF NOT EXISTS blobs (sha256 TEXT PRIMARY KEY, size INTEGER NOT NULL, data BLOB) STRICT;"


def open_database(file: Path, *, shrink_from_bytes: int = SHRINK_FROM_BYTES) -> sqlite3.Connection:
    """Open the database in *file*, made with mode 0600 if there is none, for use in any thread.

    Args:
        shrink_from_bytes: one of this size, of which half or more was removed, is made smaller now.

    Raises:
        LogCorrupt: it is damaged or newer than this program.
    """
    if not file.exists():
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(file, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, file)
        size_bytes = file.stat().st_size
        if size_bytes >= shrink_from_bytes:
            _drop_empty_rows(connection, size_bytes)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise LogCorrupt("the artifact store cannot be opened", detail=f"{file}: {error}") from error
        raise
    return connection


def _prepare(connection: sqlite3.Connection, file: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise LogCorrupt("the artifact store was written by a newer version", detail=f"{file}: schema {version}")
    if version == 0:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    settle(connection)
    connection.executescript(_BLOBS)
    if version < SCHEMA_VERSION:
        with _transaction(connection):
            references.take_names_out(connection)
    connection.executescript(references.SCHEMA)
    if version == SCHEMA_VERSION:
        return
    with _transaction(connection):
        references.count_owners(connection)
    if version:
        _rewrite(connection)  # names that stood in rows which moved
    else:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _drop_empty_rows(connection: sqlite3.Connection, size_bytes: int) -> None:
    """Drop rows of zeros where they are half of the database, and give their room back.

    Their neighbours move, so all is written anew; the older version has that done at the next start if this one ends
    before.
    """
    empty = f"FROM blobs WHERE NOT {references.HELD}"
    dropped = connection.execute(f"SELECT coalesce(sum(length(data)), 0) {empty}").fetchone()[0]
    if 2 * dropped < size_bytes or size_bytes - dropped > REWRITTEN_BYTES:
        return
    with suppress(sqlite3.OperationalError):  # another process is at it: the next start does it
        with _transaction(connection):
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION - 1}")
            connection.execute(f"DELETE {empty}")
            connection.execute("DELETE FROM titles WHERE title NOT IN (SELECT title FROM refs)")
        _rewrite(connection)


def _rewrite(connection: sqlite3.Connection) -> None:
    """Write everything anew: nothing is left where a row has been."""
    connection.execute("VACUUM")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
