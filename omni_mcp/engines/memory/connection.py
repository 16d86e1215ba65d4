"""How a connection to the memory is opened: the settings on which forgetting rests stand here and nowhere else."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import suppress
from pathlib import Path

from omni_mcp.contracts.errors import MemoryUnavailable
from omni_mcp.migrations import migrate, read_migrations
from omni_mcp.sqlite_settings import settle

BUSY_TIMEOUT_S = 15.0  # an import of 100,000 items holds the lock for some seconds
TRUNCATE_WAIT_S = 2.0  # then it is tried again after the next change
APPLICATION_ID = 0x6F6D6D65  # "omme", so that `file` and a person know whose database this is
SCHEMA = Path(__file__).parent / "schema"


def open_writer(file: Path) -> sqlite3.Connection:
    """Open *file* for writing, made with mode 0600 if it is missing, and bring it to the present schema.

    What a process that died left in the write-ahead log is moved into the file first: it may hold forgotten texts.

    Raises:
        MemoryUnavailable: it is locked, damaged, not yours alone, or was made by a newer version.
    """
    try:
        _make_private_file(file)
        connection = sqlite3.connect(
            file, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )
    except (OSError, sqlite3.Error) as error:
        raise translated(error, file) from error
    try:
        settle(connection, application_id=APPLICATION_ID)
        connection.execute("PRAGMA cache_size = -8192")
        migrate(connection, read_migrations(SCHEMA), refused=MemoryUnavailable)
        cut_log(connection, wait_s=0)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise translated(error, file) from error
        raise
    return connection


def open_reader(file: Path) -> sqlite3.Connection:
    """Open *file*, which `open_writer` has made, so that nothing can be written through this connection.

    Raises:
        MemoryUnavailable: it is gone, locked or damaged.
    """
    try:
        connection = sqlite3.connect(
            f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None,
            check_same_thread=False, cached_statements=256,
        )  # fmt: skip
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error as error:
        raise translated(error, file) from error
    return connection


def cut_log(connection: sqlite3.Connection, *, wait_s: float = TRUNCATE_WAIT_S) -> bool:
    """Move the write-ahead log into the file and cut it to nothing: it still has the old pages.

    Returns:
        False if somebody read it all the time, so that old pages may still be there.
    """
    connection.execute(f"PRAGMA busy_timeout = {int(wait_s * 1000)}")
    try:
        busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.OperationalError:
        busy = 1
    finally:
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    return not busy


def translated(error: OSError | sqlite3.Error, file: Path) -> MemoryUnavailable:
    """Return our error for one of SQLite's or of the system. Clients learn only that the memory cannot be used."""
    return MemoryUnavailable("the memory cannot be used now", detail=f"{file}: {error}")


def _make_private_file(file: Path) -> None:
    """Make the file if it is missing, and look at it without opening it.

    Closing any descriptor of a database drops the POSIX locks of every connection that this process has to it
    (sqlite.org, "How To Corrupt", 2.2).
    """
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    facts = file.lstat()
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise MemoryUnavailable(
            "the memory cannot be used now",
            detail=f"{file} must be a file of yours that nobody else can open (chmod 600 {file})",
        )
