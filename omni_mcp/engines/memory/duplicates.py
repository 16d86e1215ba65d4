"""Which items say nearly the same: by their words and by their meaning, half each.

Comparing takes long where there is much, so it works on copies, beside the searches of everybody else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import bool_, float32, int8, int64, uint8, uint64
from numpy.typing import NDArray

from omni_mcp.contracts.memory import MemoryItem
from omni_mcp.engines.memory.place_index import PlaceIndex
from omni_mcp.engines.memory.postings import PAIR
from omni_mcp.engines.memory.reading import items_at, words_at
from omni_mcp.engines.memory.view import highest

ALIKE = 0.8
_LEAST = 2 * ALIKE - 1  # by meaning, if all words were the same
EXACT = 4096  # items of a place that are compared each with each
_ROWS_AT_ONCE = 512
_BAND_BYTES = 2
_BUCKET = 32  # items with the same band; more of them are compared with their next ones only
_PAIRS_KEPT = 4000  # nearest by meaning; only of those are the words looked at
_LIKELY_PAIRS = 1_000_000  # compared in a large place


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is compared of one place: row numbers, vectors, their lengths, and the signs of their dimensions."""

    n: NDArray[int64]
    vectors: NDArray[int8]
    norm: NDArray[float32]
    signs: NDArray[uint64]

    def unit_vectors(self, rows: NDArray[int64] | slice) -> NDArray[float32]:
        """Return the vectors of *rows*, each of length 1."""
        vectors: NDArray[float32] = self.vectors[rows].astype(float32)
        vectors /= np.maximum(self.norm[rows], float32(1))[:, None]
        return vectors


def snapshot_of(place: PlaceIndex, now_ns: int) -> Snapshot:
    """Copy what exists in a place now."""
    slots = np.flatnonzero(place.existing(now_ns))
    return Snapshot(n=place.n[slots], vectors=place.vectors[slots], norm=place.norm[slots], signs=place.signs[slots])


def duplicates(
    connection: sqlite3.Connection, places: Sequence[Snapshot], limit: int
) -> list[tuple[MemoryItem, MemoryItem, float]]:
    """Return pairs within a place, the older item first, most alike first."""
    found = [pair for place in places for pair in _alike(connection, place)]
    found.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
    found = found[: max(0, limit)]
    items = items_at(connection, sorted({n for one, other, _ in found for n in (one, other)}))
    return [(items[one], items[other], score) for one, other, score in found if one in items and other in items]


def _alike(connection: sqlite3.Connection, place: Snapshot) -> list[tuple[int, int, float]]:
    """Return (older, newer, score) by row numbers."""
    one, other, near = _all_pairs(place) if len(place.n) <= EXACT else _likely_pairs(place)
    best = np.argsort(-near, kind="stable")[:_PAIRS_KEPT]
    one, other, near = one[best], other[best], near[best]
    words = _words(connection, place.n[np.union1d(one, other)].tolist())
    pairs = []
    for first, second, meaning in zip(place.n[one].tolist(), place.n[other].tolist(), near.tolist(), strict=True):
        score = round((meaning + _overlap(words.get(first), words.get(second))) / 2, 4)
        if score >= ALIKE:
            pairs.append((min(first, second), max(first, second), score))
    return pairs


def _all_pairs(place: Snapshot) -> tuple[NDArray[int64], NDArray[int64], NDArray[float32]]:
    vectors = place.unit_vectors(slice(None))
    ones, others, nears = [np.zeros(0, int64)], [np.zeros(0, int64)], [np.zeros(0, float32)]
    for at in range(0, len(vectors), _ROWS_AT_ONCE):
        near = vectors[at : at + _ROWS_AT_ONCE] @ vectors[at:].T
        rows, columns = np.nonzero(near >= _LEAST)
        ahead = columns > rows
        rows, columns = rows[ahead], columns[ahead]
        best = highest(near[rows, columns], _PAIRS_KEPT)
        rows, columns = rows[best], columns[best]
        ones.append(rows + at)
        others.append(columns + at)
        nears.append(near[rows, columns])
    return np.concatenate(ones), np.concatenate(others), np.concatenate(nears)


def _likely_pairs(place: Snapshot) -> tuple[NDArray[int64], NDArray[int64], NDArray[float32]]:
    """Compare only items that share two bytes of the signs of their vectors in the same position."""
    signs = np.ascontiguousarray(place.signs).view(uint8)
    pairs = [np.zeros((0, 2), dtype=int64)]
    left = _LIKELY_PAIRS
    for at in range(0, signs.shape[1] - _BAND_BYTES + 1, _BAND_BYTES):
        band = signs[:, at].astype(int64) << 8 | signs[:, at + 1]
        order = np.argsort(band, kind="stable")
        for step in range(1, _BUCKET):
            same = band[order[step:]] == band[order[:-step]]
            if not same.any() or left <= 0:
                break
            both = np.sort(np.stack([order[:-step][same], order[step:][same]], axis=1), axis=1)
            pairs.append(both[_near_enough(place, both)])
            left -= len(pairs[-1])
    numbers = np.concatenate(pairs)
    distinct = np.stack(np.divmod(np.unique(numbers[:, 0] * len(signs) + numbers[:, 1]), len(signs)), axis=1)
    return distinct[:, 0], distinct[:, 1], _nearness(place, distinct)


def _near_enough(place: Snapshot, pairs: NDArray[int64]) -> NDArray[bool_]:
    apart = np.bitwise_count(place.signs[pairs[:, 0]] ^ place.signs[pairs[:, 1]]).sum(axis=1)
    near: NDArray[bool_] = apart <= place.vectors.shape[1] // 4
    return near


def _nearness(place: Snapshot, pairs: NDArray[int64]) -> NDArray[float32]:
    near = np.zeros(len(pairs), dtype=float32)
    for at in range(0, len(pairs), 8 * _ROWS_AT_ONCE):
        part = pairs[at : at + 8 * _ROWS_AT_ONCE]
        one, other = place.unit_vectors(part[:, 0]), place.unit_vectors(part[:, 1])
        near[at : at + len(part)] = np.einsum("ij,ij->i", one, other)
    return near


def _words(connection: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, frozenset[int]]:
    found = {}
    for at in range(0, len(numbers), 1000):
        for n, packed in words_at(connection, numbers[at : at + 1000]).items():
            found[n] = frozenset(np.frombuffer(packed, dtype=PAIR)["word"].tolist())
    return found


def _overlap(one: frozenset[int] | None, other: frozenset[int] | None) -> float:
    """Return which share of the words of both is common to them."""
    if not one or not other:
        return 0.0
    return len(one & other) / len(one | other)
