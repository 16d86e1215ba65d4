"""Numbered SQL files bring a database to the present schema; what was applied once never changes afterwards."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omni_mcp.contracts.errors import LogCorrupt, OmniError

_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied_at_ns INTEGER NOT NULL
) STRICT"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One numbered step; the checksum covers its text."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def read_migrations(directory: Path) -> tuple[Migration, ...]:
    """Return the steps in *directory* (`0001_name.sql`, …) in order.

    Raises:
        ValueError: a number is missing or given twice.
    """
    found = tuple(
        Migration(version=int(path.name[:4]), name=path.stem[5:], sql=path.read_text("utf-8"))
        for path in sorted(directory.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    )
    if [step.version for step in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"{directory}: migrations must be numbered 0001, 0002, … without gaps")
    return found


def migrate(
    connection: sqlite3.Connection, steps: Sequence[Migration], *, refused: type[OmniError] = LogCorrupt
) -> int:
    """Apply what is missing, each step in its own transaction, and return how many there were.

    Raises:
        refused: the database is newer than this program, or an applied step was not the one we know.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(steps):
        raise refused(
            "the database was written by a newer version of omni-mcp",
            detail=f"its schema is {version}, this program knows {len(steps)}; install the newer version again",
        )
    if version:
        _check_applied(connection, steps[:version], refused)
    for step in steps[version:]:
        _apply(connection, step)
    return len(steps) - version


def _check_applied(connection: sqlite3.Connection, steps: Sequence[Migration], refused: type[OmniError]) -> None:
    rows = dict(connection.execute("SELECT version, checksum FROM schema_migrations"))
    for step in steps:
        if rows.get(step.version) != step.checksum:
            raise refused(
                "the schema of the database is not the one that this program made",
                detail=f"migration {step.version:04d}_{step.name} differs from what was applied",
            )


def _apply(connection: sqlite3.Connection, step: Migration) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("PRAGMA user_version").fetchone()[0] >= step.version:
            connection.execute("ROLLBACK")  # another process was faster
            return
        connection.execute(_TABLE)
        for statement in _statements(step.sql):
            connection.execute(statement)
        connection.execute(
            "INSERT INTO schema_migrations VALUES (?, ?, ?, ?)",
            (step.version, step.name, step.checksum, time.time_ns()),
        )
        connection.execute(f"PRAGMA user_version = {step.version}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _statements(sql: str) -> Iterator[str]:
    """Split at the semicolons that end a statement; those inside a trigger do not."""
    part = ""
    for line in sql.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            yield part
            part = ""
    if part.strip():
        raise ValueError("the last statement of a migration has no end")
