"""Makes full tables of the search index quick to ask, a step in each transaction, when nothing else is to be done.

A table that was filled commit by commit lies in many pieces, and a word is looked up in each: they are merged into one.
Then the table gets its filter.
"""

from __future__ import annotations

import sqlite3

from omni_mcp.engines.runlog.search_index import SHARD_EVENTS, indexed_gid, merge, shards
from omni_mcp.engines.runlog.word_filters import made, make

PAGES_A_STEP = 64  # in one transaction: about 256 KiB are written, in 5 ms; who comes meanwhile waits for it


class FilterMaker:
    """Makes what is missing through the connection of a ledger, inside its transactions."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.is_due = True  # or may be

    def look_again(self) -> None:
        """A table is full, or was filled anew."""
        self.is_due = True

    def make_one(self) -> None:
        """Take a step towards the newest filter that is missing, if one is: merge some of its table, or make it.

        Raises:
            sqlite3.Error: it cannot be made.
        """
        done, known = indexed_gid(self._connection), set(made(self._connection))
        numbers = (int(name.removeprefix("search_")) for name in shards(self._connection))
        missing = (number for number in numbers if number not in known and (number + 1) * SHARD_EVENTS - 1 <= done)
        number = next(missing, None)
        if number is None:
            self.is_due = False
        elif not _merged_some(self._connection, f"search_{number}"):
            make(self._connection, number)


def _merged_some(connection: sqlite3.Connection, table: str) -> bool:
    """Merge some pages of a table; False if it lies in one piece."""
    if connection.execute(f"SELECT count(DISTINCT segid) FROM {table}_idx").fetchone()[0] < 2:
        return False
    return merge(connection, table, -PAGES_A_STEP)
