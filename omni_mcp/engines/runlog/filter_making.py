"""Makes the filters of full tables of the search index: one in each transaction, when nothing else is to be done."""

from __future__ import annotations

import sqlite3

from omni_mcp.engines.runlog.search_index import SHARD_EVENTS, indexed_gid, shards
from omni_mcp.engines.runlog.word_filters import made, make


class FilterMaker:
    """Makes what is missing through the connection of a ledger, inside its transactions."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.is_due = True  # or may be

    def look_again(self) -> None:
        """A table is full, or was filled anew."""
        self.is_due = True

    def make_one(self) -> None:
        """Make the newest filter that is missing, if one is.

        Raises:
            sqlite3.Error: it cannot be made.
        """
        done, known = indexed_gid(self._connection), set(made(self._connection))
        numbers = (int(name.removeprefix("search_")) for name in shards(self._connection))
        missing = (number for number in numbers if number not in known and (number + 1) * SHARD_EVENTS - 1 <= done)
        number = next(missing, None)
        if number is None:
            self.is_due = False
        else:
            make(self._connection, number)
