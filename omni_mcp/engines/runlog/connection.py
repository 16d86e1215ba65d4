"""How a connection to the run log is opened: the settings on which its promises rest stand here and nowhere else."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from omni_mcp.contracts.errors import LogCorrupt, LogUnavailable
from omni_mcp.sqlite_settings import settle

READER_STATEMENTS = 1024  # a search has one for each table of the index: 305 at 10 million events
BUSY_TIMEOUT_S = 2.0  # promise 2: a log that is locked for longer refuses calls
APPLICATION_ID = 0x6F6D6C67  # "omlg", so that `file` and a person know whose database this is
_LOCK_CODES = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_CORRUPT_CODES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
REPAIR_HINT = (
    "Stop the gateway and keep a copy of the file with its -wal and -shm. `omni-mcp audit verify` names what is wrong, "
    "`sqlite3 FILE .recover` saves what can be read; or restore a backup. Never delete the file: it is the evidence."
)


def open_writer(file: Path) -> sqlite3.Connection:
    """Open *file* for writing, made with mode 0600 if it is missing. Transactions are begun and ended by hand.

    Raises:
        sqlite3.DatabaseError: it is not a database, or locked.
    """
    if not file.exists():
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(
        file, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    try:
        settle(connection, application_id=APPLICATION_ID)
        connection.execute("PRAGMA cache_size = -16384")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(file: Path) -> sqlite3.Connection:
    """Open *file* so that nothing can be written through this connection.

    Not `mode=ro`: a database in WAL mode without its -wal and -shm files cannot be read that way.

    Raises:
        LogUnavailable: there is no such file.
        LogCorrupt: it is not a database.
    """
    if not file.exists():
        raise LogUnavailable("there is no run log yet", detail=f"{file} does not exist; `omni-mcp serve` makes it")
    uri = f"{file.absolute().as_uri()}?mode=rw"
    try:
        connection = sqlite3.connect(
            uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False,
            cached_statements=READER_STATEMENTS,
        )  # fmt: skip
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA cache_size = -16384")  # a page of 1,000 events lies on more pages than 2 MB hold
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.DatabaseError as error:
        raise translated(error, file) from error
    return connection


def translated(error: sqlite3.Error, file: Path) -> LogUnavailable | LogCorrupt:
    """Return our error for one of SQLite's. Clients learn only that the log cannot be used."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _CORRUPT_CODES:
        return LogCorrupt("the run log is damaged", detail=f"{file}: {error}. {REPAIR_HINT}")
    if code in _LOCK_CODES:
        detail = f"{file} is locked by another process"
        return LogUnavailable("the run log cannot be written", detail=detail)
    return LogUnavailable("the run log cannot be written", detail=f"{file}: {error}")
