"""One small SQLite database for state that is not evidence: open questions, threads."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from pathlib import Path

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.sqlite_settings import settle

STATE_VERSION = 1
BUSY_TIMEOUT_S = 5.0


def open_state(file: Path) -> sqlite3.Connection:
    """Open the database, made with mode 0600 if it is missing. Usable from any one thread at a time.

    The connection is in autocommit mode; whoever needs a transaction begins it.

    Raises:
        ConfigError: the file is a link, somebody else's, open to others, or was made by a newer version.
        sqlite3.DatabaseError: it is no database.
    """
    _make_private_file(file)
    connection = sqlite3.connect(file, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        settle(connection)
        found = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if found > STATE_VERSION:
            raise _refused(file, f"was made by a newer version of this program (state version {found})")
        if found < STATE_VERSION:
            connection.execute(f"PRAGMA user_version={STATE_VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection


def _make_private_file(file: Path) -> None:
    """Make the file if it is missing, and look at it without opening it.

    Closing any descriptor of a database drops the POSIX locks of every connection that this process has to it, and the
    next process that closes it would delete the write-ahead log under them (sqlite.org, "How To Corrupt", 2.2).
    """
    try:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        facts = file.lstat()
    except OSError as error:
        raise _refused(file, f"cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise _refused(file, f"must be a file of yours that nobody else can open (chmod 600 {file})")


def _refused(file: Path, message: str) -> ConfigError:
    return ConfigError([Problem(file=str(file), line=0, path="", message=message)])
