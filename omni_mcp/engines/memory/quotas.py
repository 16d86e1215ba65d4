"""Quotas: how much each place holds, and how much each principal wrote where it is not alone, counted as it changes.

A place of one principal's own has a bound. In places that several may write to, each has a bound of its own besides, so
that none takes the room of the others; the places of runs count there too, because there are any number of them.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from omni_mcp.contracts.errors import QuotaExceeded
from omni_mcp.contracts.memory import MemoryItem, MemoryScope
from omni_mcp.engines.memory.rows import Limits

OWN: MemoryScope = "agent"
_WHOSE: dict[MemoryScope, str] = {
    "agent": "your own memory", "user": "the memory of your user", "project": "the memory of the project",
    "run": "the memory of this run",
}  # fmt: skip


@dataclass(slots=True)
class Count:
    """What one place holds, or one principal wrote."""

    number: int
    items: int
    bytes: int

    def grow(self, items: int, size: int) -> None:
        """Count what came, or with negative numbers what went."""
        self.items += items
        self.bytes += size


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """What a new version takes the place of."""

    principal: int | None
    size: int


class Quotas:
    """Counts within one transaction at a time; belongs to the writer's thread."""

    def __init__(self, connection: sqlite3.Connection, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits
        self._places: dict[tuple[str, str, str], Count] = {}
        self._principals: dict[str, Count] = {}

    def begin(self) -> None:
        """Forget what another transaction had counted."""
        self._places.clear()
        self._principals.clear()

    def place_of(self, item: MemoryItem) -> int:
        """Return the number of the place of *item*."""
        return self._place(item).number

    def exchange(self, item: MemoryItem, size: int, replaced: Replaced | None) -> int | None:
        """Count *item*, of *size* bytes, in the place of what it replaces; returns the number of its writer.

        Raises:
            QuotaExceeded: it is more than may be; `data` names the quota.
        """
        items, grown = int(replaced is None), size - (replaced.size if replaced else 0)
        place = self._place(item)
        place.grow(items, grown)
        limits = self._limits
        _refuse_more(place, items, grown, limits.items, limits.bytes, f"{_WHOSE[item.scope]} is full", item)
        if item.scope == OWN or item.writer is None:
            if replaced is not None and replaced.principal is not None:
                self._leave(replaced)
            return None
        writer = self._principal(item.writer)
        if replaced is not None and replaced.principal != writer.number:
            if replaced.principal is not None:
                self._leave(replaced)
            items, grown = 1, size
        writer.grow(items, grown)
        what = "what you keep for others and for single runs is as much as one may"
        _refuse_more(writer, items, grown, limits.shared_items, limits.shared_bytes, what, item, quota="writer")
        return writer.number

    def save(self) -> None:
        """Write down what was counted."""
        for table, column, counts in (
            ("places", "place", self._places.values()),
            ("writers", "writer", self._principals.values()),
        ):
            rows = [(count.items, count.bytes, count.number) for count in counts]
            self._connection.executemany(f"UPDATE {table} SET items = ?, bytes = ? WHERE {column} = ?", rows)

    def _place(self, item: MemoryItem) -> Count:
        key = (item.scope, item.owner, item.project)
        if key not in self._places:
            sql = "INSERT OR IGNORE INTO places (scope, owner, project, items, bytes) VALUES (?, ?, ?, 0, 0)"
            self._connection.execute(sql, key)
            sql = "SELECT place, items, bytes FROM places WHERE scope = ? AND owner = ? AND project = ?"
            self._places[key] = Count(*self._connection.execute(sql, key).fetchone())
        return self._places[key]

    def _principal(self, name: str) -> Count:
        if name not in self._principals:
            sql = "INSERT OR IGNORE INTO writers (principal, items, bytes) VALUES (?, 0, 0)"
            self._connection.execute(sql, (name,))
            sql = "SELECT writer, items, bytes FROM writers WHERE principal = ?"
            self._principals[name] = Count(*self._connection.execute(sql, (name,)).fetchone())
        return self._principals[name]

    def _leave(self, replaced: Replaced) -> None:
        """Another writes on what this one wrote: it is no longer among what it keeps."""
        sql = "SELECT principal FROM writers WHERE writer = ?"
        (name,) = self._connection.execute(sql, (replaced.principal,)).fetchone()
        self._principal(name).grow(-1, -replaced.size)


def _refuse_more(
    count: Count, items: int, grown: int, items_limit: int, bytes_limit: int, what: str, item: MemoryItem, *,
    quota: str = "place",
) -> None:  # fmt: skip
    """Raise where there is more than may be; whoever makes it less is let through, also below a bound that fell."""
    if (items > 0 and count.items > items_limit) or (grown > 0 and count.bytes > bytes_limit):
        most = f"{items_limit} items and {bytes_limit} bytes"
        raise QuotaExceeded(
            f"{what} ({most}): forget something of it first",
            detail=f"{quota} quota: {item.scope} {item.owner}, written by {item.writer}: {most} at most",
            data={"quota": quota, "scope": item.scope, "items": items_limit, "bytes": bytes_limit},
        )
