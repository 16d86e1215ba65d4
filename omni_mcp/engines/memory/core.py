"""The core of the memory, loaded on first use: a writer, readers and an index, each used by one thread at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from omni_mcp.contracts.memory import Hits, MemoryItem, Readers, Recall
from omni_mcp.contracts.ports import Embedder
from omni_mcp.engines.memory.connection import open_reader, translated
from omni_mcp.engines.memory.duplicates import Snapshot, duplicates, snapshot_of
from omni_mcp.engines.memory.embedder import StaticEmbedder
from omni_mcp.engines.memory.index import Index
from omni_mcp.engines.memory.marking import Marker
from omni_mcp.engines.memory.reading import places_of
from omni_mcp.engines.memory.rows import Limits
from omni_mcp.engines.memory.searching import recall
from omni_mcp.engines.memory.writing import Writer

T = TypeVar("T")


class Core:
    """Everything that needs numpy.

    Raises:
        MemoryUnavailable: the file is locked, damaged, not yours alone, or was made by a newer version.
    """

    def __init__(
        self, file: Path, embedder: Callable[[], Embedder] | None, now_ns: Callable[[], int], limits: Limits
    ) -> None:
        self._file = file
        self._now_ns = now_ns
        self._embedder = embedder() if embedder else StaticEmbedder()
        marker = Marker(self._embedder)
        self.writer = Writer(file, marker, now_ns=now_ns, limits=limits)
        try:
            self._connection = open_reader(file)
        except BaseException:
            self.writer.close()
            raise
        self._comparing: sqlite3.Connection | None = None
        self._index = Index(
            self._connection, self.writer.recipes.whole, marker.dimensions, self.writer.recipes.without_vectors
        )

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what *work* reads.

        Raises:
            MemoryUnavailable: the file cannot be read.
        """
        try:
            return work(self._connection)
        except sqlite3.Error as error:
            raise translated(error, self._file) from error

    def stale(self, readers: Readers) -> list[int]:
        """Return the places that are to be marked anew before they are searched."""
        return self.read(lambda connection: self._index.stale(places_of(connection, readers)))

    def recall(self, wanted: Recall) -> Hits:
        """Return what fits best; see the port."""
        return self.read(
            lambda connection: recall(
                connection, self._index, places_of(connection, wanted.readers), wanted, self._embedder, self._now_ns()
            )
        )

    def to_compare(self, readers: Readers) -> list[Snapshot]:
        """Return copies of what *readers* may see, for `duplicates`."""
        now_ns = self._now_ns()
        return self.read(
            lambda connection: [
                snapshot_of(place, now_ns) for place in self._index.places(places_of(connection, readers))
            ]
        )

    def duplicates(self, places: Sequence[Snapshot], limit: int) -> list[tuple[MemoryItem, MemoryItem, float]]:
        """Return pairs that say nearly the same; see the port. For a thread of its own: it takes long."""
        try:
            if self._comparing is None:
                self._comparing = open_reader(self._file)
            return duplicates(self._comparing, places, limit)
        except sqlite3.Error as error:
            raise translated(error, self._file) from error

    def index_bytes(self) -> int:
        """Return how much memory the arrays of the index take."""
        return self._index.size_bytes

    def close(self) -> None:
        """Close all connections; the readers first, so that nothing keeps the write-ahead log."""
        with closing(self.writer), closing(self._connection):
            if self._comparing is not None:
                self._comparing.close()
