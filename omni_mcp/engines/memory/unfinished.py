"""What an unused memory still has to do, erase and let go of what is over, asked without loading what searches need."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from omni_mcp.contracts.errors import MemoryUnavailable
from omni_mcp.engines.memory.connection import open_reader
from omni_mcp.engines.memory.reading import runs_with_items, to_erase


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """Whether something has expired, whether calls wait to be erased, and which runs have items of their own."""

    expired: bool = False
    to_erase: bool = False
    runs: tuple[str, ...] = ()


def find_unfinished(file: Path, now_ns: int) -> Unfinished:
    """Look at *file*. One that cannot be read has nothing to do here: its first use says why."""
    if not file.exists():
        return Unfinished()
    try:
        with closing(open_reader(file)) as connection:
            sql = "SELECT EXISTS (SELECT 1 FROM items WHERE expires_at_ns <= ?)"
            return Unfinished(
                expired=bool(connection.execute(sql, (now_ns,)).fetchone()[0]),
                to_erase=bool(to_erase(connection)),
                runs=tuple(runs_with_items(connection)),
            )
    except (MemoryUnavailable, sqlite3.Error):
        return Unfinished()
