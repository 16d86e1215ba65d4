"""Which items say nearly the same: by their words and by their meaning, half each."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import numpy as np
from numpy import bool_, float32, int64, uint8
from numpy.typing import NDArray

from omni_mcp.contracts.memory import MemoryItem
from omni_mcp.engines.memory.place_index import PlaceIndex
from omni_mcp.engines.memory.postings import PAIR
from omni_mcp.engines.memory.reading import items_at, words_at

ALIKE = 0.8
_LEAST = 2 * ALIKE - 1  # by meaning, if all words were the same
EXACT = 4096  # items of a place that are compared each with each
_ROWS_AT_ONCE = 512
_BAND_BYTES = 2
_BUCKET = 32  # items with the same band; more of them are compared with their next ones only
_PAIRS_KEPT = 4000  # nearest by meaning; only of those are the words looked at


def duplicates(
    connection: sqlite3.Connection, places: Sequence[PlaceIndex], now_ns: int, limit: int
) -> list[tuple[MemoryItem, MemoryItem, float]]:
    """Return pairs within a place, the older item first, most alike first."""
    found = [pair for place in places for pair in _alike(connection, place, now_ns)]
    found.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
    found = found[: max(0, limit)]
    items = items_at(connection, sorted({n for one, other, _ in found for n in (one, other)}))
    return [(items[one], items[other], score) for one, other, score in found if one in items and other in items]


def _alike(connection: sqlite3.Connection, place: PlaceIndex, now_ns: int) -> list[tuple[int, int, float]]:
    """Return (older, newer, score) by row numbers."""
    seen = place.alive[: place.count] & (place.expires_ns[: place.count] > now_ns)
    slots = np.flatnonzero(seen)
    one, other, near = _all_pairs(place, slots) if len(slots) <= EXACT else _likely_pairs(place, slots)
    best = np.argsort(-near, kind="stable")[:_PAIRS_KEPT]
    one, other, near = one[best], other[best], near[best]
    words = _words(connection, place.n[np.union1d(one, other)].tolist())
    pairs = []
    for first, second, meaning in zip(place.n[one].tolist(), place.n[other].tolist(), near.tolist(), strict=True):
        score = round((meaning + _overlap(words.get(first), words.get(second))) / 2, 4)
        if score >= ALIKE:
            pairs.append((min(first, second), max(first, second), score))
    return pairs


def _all_pairs(place: PlaceIndex, slots: NDArray[int64]) -> tuple[NDArray[int64], NDArray[int64], NDArray[float32]]:
    vectors = place.unit_vectors(slots)
    ones, others, nears = [np.zeros(0, int64)], [np.zeros(0, int64)], [np.zeros(0, float32)]
    for at in range(0, len(slots), _ROWS_AT_ONCE):
        near = vectors[at : at + _ROWS_AT_ONCE] @ vectors[at:].T
        rows, columns = np.nonzero(near >= _LEAST)
        ahead = columns > rows
        rows, columns = rows[ahead], columns[ahead]
        ones.append(slots[rows + at])
        others.append(slots[columns + at])
        nears.append(near[rows, columns])
    return np.concatenate(ones), np.concatenate(others), np.concatenate(nears)


def _likely_pairs(place: PlaceIndex, slots: NDArray[int64]) -> tuple[NDArray[int64], NDArray[int64], NDArray[float32]]:
    """Compare only items that share two bytes of the signs of their vectors in the same position."""
    signs = np.ascontiguousarray(place.signs[slots]).view(uint8)
    pairs = [np.zeros((0, 2), dtype=int64)]
    for at in range(0, signs.shape[1] - _BAND_BYTES + 1, _BAND_BYTES):
        band = signs[:, at].astype(int64) << 8 | signs[:, at + 1]
        order = np.argsort(band, kind="stable")
        for step in range(1, _BUCKET):
            same = band[order[step:]] == band[order[:-step]]
            if not same.any():
                break
            both = np.sort(np.stack([order[:-step][same], order[step:][same]], axis=1), axis=1)
            pairs.append(both[_near_enough(place, slots, both)])
    distinct = np.unique(np.concatenate(pairs), axis=0)
    near = _nearness(place, slots, distinct)
    return slots[distinct[:, 0]], slots[distinct[:, 1]], near


def _near_enough(place: PlaceIndex, slots: NDArray[int64], pairs: NDArray[int64]) -> NDArray[bool_]:
    apart = np.bitwise_count(place.signs[slots[pairs[:, 0]]] ^ place.signs[slots[pairs[:, 1]]]).sum(axis=1)
    near: NDArray[bool_] = apart <= place.vectors.shape[1] // 4
    return near


def _nearness(place: PlaceIndex, slots: NDArray[int64], pairs: NDArray[int64]) -> NDArray[float32]:
    near = np.zeros(len(pairs), dtype=float32)
    for at in range(0, len(pairs), 8 * _ROWS_AT_ONCE):
        part = pairs[at : at + 8 * _ROWS_AT_ONCE]
        one, other = place.unit_vectors(slots[part[:, 0]]), place.unit_vectors(slots[part[:, 1]])
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
