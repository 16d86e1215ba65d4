"""The settings of every database here: what is committed survives a power cut, what is erased is overwritten."""

from __future__ import annotations

import sqlite3

_SETTINGS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "secure_delete = ON",
    "foreign_keys = ON",
    "temp_store = MEMORY",  # texts must not end up in a temporary file
)


def settle(connection: sqlite3.Connection, *, application_id: int | None = None) -> None:
    """Put the settings in force for a connection that writes.

    Args:
        application_id: whose database this is, for `file` and for people. A new database gets it, and gives room back
            in steps from its first byte on, which has no effect after the first table.

    Raises:
        sqlite3.DatabaseError: it is not a database, or locked.
    """
    if application_id is not None and connection.execute("PRAGMA schema_version").fetchone()[0] == 0:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute(f"PRAGMA application_id = {application_id}")
    for setting in _SETTINGS:
        connection.execute(f"PRAGMA {setting}")
