"""The index in memory: one part for each place that was searched, kept in step with the file whoever writes to it."""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from omni_mcp.engines.memory.place_index import ROW_COLUMNS, PlaceIndex
from omni_mcp.engines.memory.trimming import give_back

KEPT_BYTES = 64 * 1024 * 1024
CHANGES_AT_ONCE = 20_000  # more are read faster by loading anew
DEAD_SLOTS = 1024
LARGE_LOAD = 10_000  # items
_TABLES = "items i JOIN marks m ON m.mark = i.mark"


class Index:
    """Places by number, loaded when they are first asked for.

    Args:
        connection: reads only, and has no transaction open.
        recipe: the number of how items must be marked; those marked otherwise are not found.
        without_vectors: the number of how those are marked that wait for their vectors, and are found by words.
        kept_bytes: of all places together, apart from those that a search is about: a large one takes nobody's room.
    """

    def __init__(
        self, connection: sqlite3.Connection, recipe: int, dimensions: int, without_vectors: int = 0, *,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:  # fmt: skip
        self._kept_bytes = kept_bytes
        self._connection = connection
        self._recipe = recipe
        self._without_vectors = without_vectors
        self._dimensions = dimensions
        self._places: OrderedDict[int, PlaceIndex] = OrderedDict()
        self._version = -1
        self._change = 0

    @property
    def size_bytes(self) -> int:
        return sum(place.size_bytes for place in list(self._places.values()))

    def stale(self, places: Sequence[int]) -> list[int]:
        """Return those of *places* with items of another recipe: they are marked anew before they are searched."""
        sql = (
            "SELECT EXISTS (SELECT 1 FROM items WHERE place = ?1 AND recipe < ?2) "
            "OR EXISTS (SELECT 1 FROM items WHERE place = ?1 AND recipe > ?2)"
        )
        return [place for place in places if self._connection.execute(sql, (place, self._recipe)).fetchone()[0]]

    def places(self, numbers: Sequence[int]) -> list[PlaceIndex]:
        """Return the places with these numbers as they are now."""
        with self._snapshot():
            self._follow()
            missing = [number for number in numbers if number not in self._places]
            self._places.update((number, self._load(number)) for number in missing)
        for number in numbers:
            self._places.move_to_end(number)
        if missing:
            self._drop_oldest(numbers)
        return [self._places[number] for number in numbers]

    def _follow(self) -> None:
        """Take in what was committed since the last time, here or by another process."""
        version = self._connection.execute("PRAGMA data_version").fetchone()[0]
        if version == self._version:
            return
        change, complete_from = self._connection.execute("SELECT change, forgot_until FROM state").fetchone()
        if self._change < complete_from or change - self._change > CHANGES_AT_ONCE:
            self._places.clear()
        else:
            self._take_in()
        self._change, self._version = change, version

    def _take_in(self) -> None:
        gone: dict[int, list[int]] = {}
        for place, n in self._connection.execute("SELECT place, n FROM gone WHERE change > ?", (self._change,)):
            gone.setdefault(place, []).append(n)
        for place, numbers in gone.items():
            if place in self._places:
                self._places[place].remove(numbers)
        fresh: dict[int, list[tuple[object, ...]]] = {}
        sql = (
            f"SELECT i.place, {ROW_COLUMNS} FROM {_TABLES} WHERE i.change > ? AND i.recipe IN (?, ?) ORDER BY i.change"
        )
        for place, *row in self._connection.execute(sql, (self._change, self._recipe, self._without_vectors)):
            if place in self._places:
                fresh.setdefault(place, []).append(tuple(row))
        for place, rows in fresh.items():
            self._places[place].apply(rows)
        for number, index in list(self._places.items()):
            if index.dead > max(DEAD_SLOTS, index.count // 4):
                del self._places[number]

    def _load(self, number: int) -> PlaceIndex:
        expected = self._connection.execute("SELECT items FROM places WHERE place = ?", (number,)).fetchone()[0]
        index = PlaceIndex(self._dimensions)
        sql = f"SELECT {ROW_COLUMNS} FROM {_TABLES} WHERE i.place = ? AND +i.recipe IN (?, ?) ORDER BY i.n"
        index.load(self._connection.execute(sql, (number, self._recipe, self._without_vectors)), expected)
        if expected > LARGE_LOAD:
            give_back()  # at 100,000 items it is a fifth of what the process has grown by
        return index

    def let_go(self, numbers: Sequence[int]) -> None:
        """Forget places that are searched elsewhere now."""
        for number in numbers:
            self._places.pop(number, None)

    def _drop_oldest(self, wanted: Sequence[int]) -> None:
        """Forget those that were not asked for longest, as far as the others take too much.

        One that takes half of the room goes before any that takes less: else it pushes all of them out.
        """
        sizes = {number: place.size_bytes for number, place in self._places.items() if number not in wanted}
        total = sum(sizes.values())
        for number, size in sorted(sizes.items(), key=lambda pair: pair[1] <= self._kept_bytes // 2):
            if total <= self._kept_bytes:
                return
            del self._places[number]
            total -= size

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("COMMIT")
