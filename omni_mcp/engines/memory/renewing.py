"""Renewing marks what another recipe marked, and what was kept while the embedder could not be asked.

The table of the package marks everything at once. Any other embedder takes longer than a recall may wait: what another
recipe marked is found by its words at once, and each recall brings the vectors of some more items.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from omni_mcp.engines.memory.marking import TEXTS_AT_ONCE, Marker
from omni_mcp.engines.memory.rows import Mark, text_and_subject

SLOW_VECTORS_AT_ONCE = 1024

Marked = tuple[int, int, bytes]  # row number, mark, body


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipes:
    """The numbers of what items are marked by: with vectors, and while there are none."""

    whole: int
    without_vectors: int

    def of(self, mark: Mark) -> int:
        """Return the recipe of a mark that was made now."""
        return self.whole if mark.has_vector else self.without_vectors


def renew(
    connection: sqlite3.Connection, marker: Marker, recipes: Recipes, places: Sequence[int],
    rewrite: Callable[[Sequence[Marked], Sequence[Mark]], None],
) -> None:  # fmt: skip
    """Mark anew what stands in *places*, as far as the embedder answers.

    Args:
        rewrite: puts marks in place of old ones, in one commit.
    """
    sql = (
        "SELECT i.n, i.mark, b.json FROM items i JOIN bodies b ON b.body = i.body "
        "WHERE i.place = ? AND i.recipe {} LIMIT ?"
    )
    known = (recipes.whole, recipes.without_vectors)
    left = None if marker.is_quick else SLOW_VECTORS_AT_ONCE
    for place in places:
        foreign = (place, *known, TEXTS_AT_ONCE)
        while rows := connection.execute(sql.format("NOT IN (?, ?)"), foreign).fetchall():
            rewrite(rows, _marks(marker, rows, with_vectors=marker.is_quick))
    for place in places:
        waiting = (place, recipes.without_vectors, TEXTS_AT_ONCE)
        while left != 0 and (rows := connection.execute(sql.format("= ?"), waiting).fetchall()):
            marks = _marks(marker, rows, with_vectors=True)
            if not all(mark.has_vector for mark in marks):
                return
            rewrite(rows, marks)
            left = None if left is None else max(0, left - len(rows))


def _marks(marker: Marker, rows: Sequence[Marked], *, with_vectors: bool) -> list[Mark]:
    return list(marker.marks([text_and_subject(body) for _, _, body in rows], with_vectors=with_vectors))
