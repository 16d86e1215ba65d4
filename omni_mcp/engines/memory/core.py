"""The core of the memory, loaded on first use: a writer, readers and an index, each used by one thread at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from omni_mcp.contracts.memory import Hits, MemoryItem, Readers, Recall
from omni_mcp.contracts.ports import Embedder
from omni_mcp.engines.memory.connection import open_reader, translated
from omni_mcp.engines.memory.duplicates import Snapshot, duplicates, snapshot_of
from omni_mcp.engines.memory.embedder import StaticEmbedder
from omni_mcp.engines.memory.index import KEPT_BYTES, Index
from omni_mcp.engines.memory.marking import Marker
from omni_mcp.engines.memory.reading import larger_than, places_of
from omni_mcp.engines.memory.rows import Limits
from omni_mcp.engines.memory.searching import recall
from omni_mcp.engines.memory.writing import Writer

T = TypeVar("T")
LARGE_KEPT_BYTES = 128 * 1024 * 1024  # two places of 100,000 items beside the one that is searched


@dataclass(frozen=True, slots=True)
class Lane:
    """What one thread searches with."""

    connection: sqlite3.Connection
    index: Index


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
        self._quick_items = limits.quick_items
        self._dimensions = marker.dimensions
        self._quick = self._lane(self._connection)
        self._large: Lane | None = None

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what *work* reads.

        Raises:
            MemoryUnavailable: the file cannot be read.
        """
        try:
            return work(self._connection)
        except sqlite3.Error as error:
            raise translated(error, self._file) from error

    def look(self, readers: Readers) -> tuple[list[int], bool]:
        """Return the places that are to be marked anew before they are searched, and whether a large one is among all
        of them: then who asks is served by the thread for those."""

        def looked(connection: sqlite3.Connection) -> tuple[list[int], bool]:
            places = places_of(connection, readers)
            large = larger_than(connection, places, self._quick_items)
            self._quick.index.let_go(large)
            return self._quick.index.stale(places), bool(large)

        return self.read(looked)

    def recall(self, wanted: Recall, *, large: bool = False) -> Hits:
        """Return what fits best; see the port.

        Args:
            large: for the thread for large places; without it, for the one that reads.
        """

        def found(lane: Lane) -> Hits:
            places = places_of(lane.connection, wanted.readers)
            return recall(lane.connection, lane.index, places, wanted, self._embedder, self._now_ns())

        return self._in_lane(found, large=large)

    def to_compare(self, readers: Readers, *, large: bool = False) -> list[Snapshot]:
        """Return copies of what *readers* may see, for `duplicates`."""
        now_ns = self._now_ns()

        def copied(lane: Lane) -> list[Snapshot]:
            return [snapshot_of(place, now_ns) for place in lane.index.places(places_of(lane.connection, readers))]

        return self._in_lane(copied, large=large)

    def _in_lane(self, work: Callable[[Lane], T], *, large: bool) -> T:
        try:
            if not large:
                return work(self._quick)
            if self._large is None:
                self._large = self._lane(open_reader(self._file), kept_bytes=LARGE_KEPT_BYTES)
            return work(self._large)
        except sqlite3.Error as error:
            raise translated(error, self._file) from error

    def _lane(self, connection: sqlite3.Connection, *, kept_bytes: int = KEPT_BYTES) -> Lane:
        recipes = self.writer.recipes
        return Lane(
            connection,
            Index(connection, recipes.whole, self._dimensions, recipes.without_vectors, kept_bytes=kept_bytes),
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
        return self._quick.index.size_bytes + (self._large.index.size_bytes if self._large is not None else 0)

    def close(self) -> None:
        """Close all connections; the readers first, so that nothing keeps the write-ahead log."""
        with closing(self.writer), closing(self._connection):
            if self._comparing is not None:
                self._comparing.close()
            if self._large is not None:
                self._large.connection.close()
