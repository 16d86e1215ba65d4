"""Where the words of a query stand: every occurrence that counts, and what it adds to BM25."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import float32, float64, int32, int64, uint32
from numpy.typing import NDArray

from omni_mcp.engines.memory.bm25 import idf, saturated
from omni_mcp.engines.memory.evidence import Word
from omni_mcp.engines.memory.view import View
from omni_mcp.engines.memory.words import hash_of

POSTINGS = 100_000  # looked at for one query, the rarest words first
WORDS = 256  # looked up for one query, the rarest first
ROWS = 64  # words with a row of their own in the evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrences:
    """One value for each occurrence: the word, by its place in `words`; the slot; its part of BM25."""

    word: NDArray[int32]
    slot: NDArray[int32]
    score: NDArray[float32]
    words: tuple[Word, ...]
    idf: NDArray[float32]

    def best(self, view: View, among: NDArray[np.bool_], limit: int) -> NDArray[int64]:
        """Return at most *limit* slots *among* those given with the highest BM25, in ascending order."""
        scores = np.bincount(self.slot, weights=self.score, minlength=view.total)
        scores[~among] = 0
        having = np.flatnonzero(scores > 0)
        if len(having) <= limit:
            return having
        return np.sort(having[np.argpartition(-scores[having], limit - 1)[:limit]])

    def rows(
        self, position: NDArray[int32], candidates: int
    ) -> tuple[NDArray[float32], tuple[Word | None, ...], NDArray[float32]]:
        """Return a row over the candidates for each word, the words, and their idf.

        Of more than 64 words, those that weigh most have a row; the last row is for the others together.

        Args:
            position: of each slot among the candidates; -1 for the other slots.
        """
        words: tuple[Word | None, ...] = self.words
        weights, row_of = self.idf, np.arange(len(words))
        if len(words) > ROWS:
            heavy = np.sort(np.argsort(-weights, kind="stable")[:ROWS])
            row_of = np.full(len(words), ROWS)
            row_of[heavy] = np.arange(ROWS)
            words, weights = (*(words[at] for at in heavy), None), np.append(weights[heavy], float32(0))
        at = position[self.slot]
        inside = at >= 0
        cells = row_of[self.word[inside]] * candidates + at[inside]
        sums = np.bincount(cells, weights=self.score[inside], minlength=len(words) * candidates)
        return sums.reshape(len(words), candidates).astype(float32), words, weights


def look_up(view: View, wanted: Sequence[Word]) -> Occurrences:
    """Find every occurrence of the words, rarest words first, until there are enough."""
    words = _distinct(wanted)
    hashes = np.fromiter(words, dtype=uint32, count=len(words))
    segments = [(segment, first, *segment.find(hashes)) for segment, first in view.segments()]
    frequent = np.zeros(len(words), dtype=int64)
    for _, _, begins, ends in segments:
        frequent += ends - begins
    taken = _rarest(frequent)
    slots, counts, rows = [np.zeros(0, int32)], [np.zeros(0, float32)], [np.zeros(0, int32)]
    for segment, first, begins, ends in segments:
        sizes = ends[taken] - begins[taken]
        at = np.arange(sizes.sum()) + np.repeat(begins[taken] - np.cumsum(sizes) + sizes, sizes)
        slots.append(segment.places[at].astype(int32) + int32(first))
        counts.append(segment.counts[at].astype(float32))
        rows.append(np.repeat(np.arange(len(taken), dtype=int32), sizes))
    slot, count, row = np.concatenate(slots), np.concatenate(counts), np.concatenate(rows)
    if view.items < view.total:
        there = view.seen[slot]
        slot, count, row = slot[there], count[there], row[there]
    weights = idf(view.items, np.bincount(row, minlength=len(taken)).astype(float64)).astype(float32)
    chosen = tuple(words[int(hashes[at])] for at in taken)
    factor = weights * np.array([word.weight for word in chosen], dtype=float32)
    score = saturated(count, view.lengths(slot), view.mean_length) * factor[row]
    return Occurrences(word=row, slot=slot, score=score, words=chosen, idf=weights)


def _rarest(frequent: NDArray[int64]) -> NDArray[int64]:
    """Return which words are looked at, in the order of the query: at least one that occurs, if any does."""
    order = np.argsort(frequent, kind="stable")
    order = order[frequent[order] > 0][:WORDS]
    few = order[np.cumsum(frequent[order]) <= POSTINGS]
    return np.sort(few if len(few) else order[:1])


def _distinct(words: Sequence[Word]) -> dict[int, Word]:
    """Return the words by hash; one that comes twice has the sum of its weights."""
    found: dict[int, Word] = {}
    for word in words:
        hash_ = hash_of(word.word) if word.hash is None else word.hash
        weight = word.weight + (found[hash_].weight if hash_ in found else 0)
        found[hash_] = Word(word=word.word, weight=weight, hash=hash_)
    return found
