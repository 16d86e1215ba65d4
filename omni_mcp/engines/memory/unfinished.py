"""Whether an earlier process ended between a forgetting and its erasure, asked without loading what a search needs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from omni_mcp.contracts.errors import MemoryUnavailable
from omni_mcp.engines.memory.connection import open_reader
from omni_mcp.engines.memory.reading import to_erase


def has_unfinished(file: Path) -> bool:
    """Whether calls wait to be erased. A file that cannot be read says no here: its first use says why."""
    if not file.exists():
        return False
    try:
        with closing(open_reader(file)) as connection:
            return bool(to_erase(connection))
    except (MemoryUnavailable, sqlite3.Error):
        return False
