"""A recall: the reader's places, the candidates, their ranking, and as many texts as there is room for."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

import numpy as np
from numpy import bool_, int64
from numpy.typing import NDArray

from omni_mcp.contracts.memory import QUERY_LIMIT_CHARS, Hit, Hits, MemoryItem, Recall
from omni_mcp.contracts.ports import Embedder
from omni_mcp.engines.memory.evidence import Ranked
from omni_mcp.engines.memory.gathering import Gathered, Gathering
from omni_mcp.engines.memory.index import Index
from omni_mcp.engines.memory.place_index import PlaceIndex
from omni_mcp.engines.memory.query import probe_of
from omni_mcp.engines.memory.ranking import expand, rank
from omni_mcp.engines.memory.reading import items_at, texts_at, words_at
from omni_mcp.engines.memory.rows import KINDS, name_hash, taint_bits
from omni_mcp.engines.memory.view import View, joined

HITS_LIMIT = 1000
_ITEMS_AT_ONCE = 50


def recall(
    connection: sqlite3.Connection, index: Index, places: Sequence[int], wanted: Recall, embedder: Embedder, now_ns: int
) -> Hits:
    """Return what fits best, best first; see the port.

    Args:
        places: the numbers of those that the reader may see.
    """
    text = wanted.query[:QUERY_LIMIT_CHARS].encode("utf-8", "replace").decode()
    limit = max(0, min(wanted.k, HITS_LIMIT))
    if not text.strip() or not limit or not places:
        return Hits()
    indexes = index.places(places)
    filters = [_filtered(connection, *pair, wanted, now_ns) for pair in zip(places, indexes, strict=True)]
    view = View(indexes, [seen for seen, _ in filters])
    gathering = Gathering(
        view, joined([hits for _, hits in filters]), limit,
        texts=lambda numbers: texts_at(connection, numbers), words=lambda numbers: words_at(connection, numbers),
    )  # fmt: skip
    probe = probe_of(text, embedder, now_ns / 1e9)
    found = gathering.gather(probe)
    if not len(found.numbers):
        return Hits(words_only=probe.words_only)
    ranked = rank(found.evidence)
    better = expand(found.evidence, ranked) if found.evidence.whole else None  # twice the time in a large place
    if better is not None:
        found = gathering.gather(better)
        ranked = rank(found.evidence)
    hits = _hits(connection, found, ranked, limit, wanted.budget_chars)
    return Hits(hits, words_only=probe.words_only)


def _filtered(
    connection: sqlite3.Connection, number: int, place: PlaceIndex, wanted: Recall, now_ns: int
) -> tuple[NDArray[bool_], NDArray[bool_]]:
    """Return which slots of a place exist for this query, and which of them may be hits."""
    count = place.count
    seen = place.existing(now_ns)
    if wanted.without_taint:
        seen = seen & ((place.taint[:count] & taint_bits(wanted.without_taint)) == 0)
    hits = seen
    if wanted.kinds or wanted.tags or wanted.subject is not None or wanted.session is not None:
        hits = seen.copy()
    if wanted.kinds:
        hits &= np.isin(place.kind[:count], [KINDS.index(kind) for kind in wanted.kinds])
    if wanted.subject is not None:
        hits &= place.subject[:count] == name_hash(wanted.subject)
    if wanted.session is not None:
        hits &= place.session[:count] == name_hash(wanted.session)
    for tag in set(wanted.tags):
        rows = connection.execute("SELECT n FROM tags WHERE place = ? AND tag = ?", (number, name_hash(tag)))
        hits &= np.isin(place.n[:count], np.array([n for (n,) in rows], dtype=int64))
    return seen, hits


def _hits(
    connection: sqlite3.Connection, found: Gathered, ranked: Ranked, limit: int, budget_chars: int | None
) -> list[Hit]:
    """Return the best hits in order, each whose text still fits."""
    able = np.flatnonzero(found.evidence.wanted & (ranked.scores > 0))
    keys = (-found.numbers[able], -found.evidence.at_s[able], -ranked.scores[able])
    order = able[np.lexsort(keys)]
    hits: list[Hit] = []
    left = budget_chars
    for position, item in _items(connection, found, order, at_once=min(limit, _ITEMS_AT_ONCE)):
        if left is not None and len(item.text) > left:
            continue
        left = None if left is None else left - len(item.text)
        parts = {name: float(values[position]) for name, values in ranked.parts.items()}
        hits.append(Hit(item=item, score=float(ranked.scores[position]), parts=parts))
        if len(hits) == limit or left == 0:
            break
    return hits


def _items(
    connection: sqlite3.Connection, found: Gathered, order: NDArray[int64], *, at_once: int
) -> Iterator[tuple[int, MemoryItem]]:
    """Yield the candidates in *order* with their items, read a few at a time; without those forgotten meanwhile."""
    for at in range(0, len(order), at_once):
        positions = [int(position) for position in order[at : at + at_once]]
        items = items_at(connection, [int(found.numbers[position]) for position in positions])
        for position in positions:
            if item := items.get(int(found.numbers[position])):
                yield position, item
