"""Gathering finds the candidates of a query in the reader's places, and what speaks for each.

What has expired, or has a taint that the reader does not want, is not there at all: it counts in no statistic and
supports no neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import bool_, int32, int64, uint32
from numpy.typing import NDArray

from omni_mcp.engines.memory.evidence import NOBODY, Evidence, Probe
from omni_mcp.engines.memory.occurrences import Occurrences, look_up
from omni_mcp.engines.memory.postings import PAIR
from omni_mcp.engines.memory.rarity import rarities
from omni_mcp.engines.memory.view import View
from omni_mcp.engines.memory.words import hash_of, words_of

WHOLE = 4096  # so many items are ranked as a whole
COUNTED = 8192  # so many items are counted word by word; of more, how long they are must do
BEST = 200  # candidates by words, and as many by meaning; more if more hits are wanted
SIFTED = 2000  # by the signs of their vectors, before they are compared exactly
NEIGHBOURS = 2  # on each side
NAMED = 64  # subjects


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """The evidence, and the row number of each candidate's item."""

    evidence: Evidence
    numbers: NDArray[int64]


class Gathering:
    """The reader's places for the time of one query.

    Args:
        hits: which slots may be hits, of those that exist.
        limit: how many hits are wanted.
        texts: texts by row number, read from the disk.
        words: counted words by row number, likewise.
    """

    def __init__(
        self, view: View, hits: NDArray[bool_], limit: int, *,
        texts: Callable[[Sequence[int]], dict[int, str]], words: Callable[[Sequence[int]], dict[int, bytes]],
    ) -> None:  # fmt: skip
        self._view = view
        self._hits = hits
        self._best = max(BEST, 2 * limit)
        self._texts = texts
        self._words = words

    def gather(self, probe: Probe) -> Gathered:
        """Return the candidates for *probe* and what speaks for each."""
        view = self._view
        found = look_up(view, probe.words)
        slots = self._candidates(probe, found)
        position = np.full(view.total + 1, NOBODY, dtype=int32)  # the last one for a neighbour that is none
        position[slots] = np.arange(len(slots), dtype=int32)
        rows, words, weights = found.rows(position, len(slots))
        meaning = view.cosines(slots, probe.vector)
        whole = len(slots) == view.items
        before, after = view.neighbours(slots)
        numbers, subject = view.of("n", slots), view.of("subject", slots)
        evidence = Evidence(
            probe=probe, items=view.items, words=rows, word_list=words, idf=weights, meaning=meaning,
            meaning_mean=float(meaning.mean()) if whole and len(slots) else view.mean_cosine(probe.vector),
            whole=whole, lengths=view.of("length", slots).astype(int32), before=position[before],
            after=position[after], session=_numbered(view.of("session", slots)), subject=_numbered(subject),
            named=self._named(probe, subject), question=view.of("question", slots),
            at_s=view.of("at_ns", slots) / 1e9, importance=view.of("importance", slots), wanted=self._hits[slots],
            rarity=rarities(view)[slots] if view.items <= COUNTED else None,
            texts=lambda positions: _in_order(self._texts, numbers, positions, ""),
            words_at=lambda positions: [
                np.frombuffer(packed, dtype=PAIR).tolist()
                for packed in _in_order(self._words, numbers, positions, b"")
            ],
        )  # fmt: skip
        return Gathered(evidence=evidence, numbers=numbers)

    def _candidates(self, probe: Probe, found: Occurrences) -> NDArray[int64]:
        """Return the slots to be ranked, in ascending order."""
        view = self._view
        if view.items <= WHOLE:
            return np.flatnonzero(view.seen)
        if np.count_nonzero(self._hits) <= WHOLE:
            taken = self._hits.copy()
        else:
            taken = np.zeros(view.total, dtype=bool_)
            taken[found.best(view, self._hits, self._best)] = True
            if probe.vector is not None:
                sifted = max(SIFTED, 4 * self._best)
                taken[view.nearest(probe.vector, self._hits, self._best, sifted)] = True
        slots = np.flatnonzero(taken)
        for _ in range(NEIGHBOURS):
            for around in view.neighbours(slots):
                taken[around[around < view.total]] = True
            slots = np.flatnonzero(taken)
        return slots

    def _named(self, probe: Probe, subjects: NDArray[int64]) -> tuple[tuple[int, float], ...]:
        """Return the subjects of candidates that the query names, by the number that they have in the evidence."""
        hashes = np.array(sorted({hash_of(word) for word in words_of(probe.text)}), dtype=uint32)
        shares: dict[int, float] = {}
        for place in self._view.places:
            shares.update(place.subjects.named(hashes, NAMED))
        if not shares:
            return ()
        numbers = {int(subject): number for number, subject in enumerate(_known(subjects))}
        return tuple(sorted((numbers[subject], share) for subject, share in shares.items() if subject in numbers))


def _known(hashes: NDArray[int64]) -> NDArray[int64]:
    distinct: NDArray[int64] = np.unique(hashes)
    known: NDArray[int64] = distinct[distinct != 0]
    return known


def _numbered(hashes: NDArray[int64]) -> NDArray[int32]:
    """Return a small number for each hash, -1 for none."""
    known = _known(hashes)
    return np.where(hashes == 0, NOBODY, np.searchsorted(known, hashes)).astype(int32)


def _in_order(
    read: Callable[[Sequence[int]], dict[int, Any]], numbers: NDArray[int64], positions: Sequence[int], missing: Any
) -> list[Any]:
    wanted = [int(numbers[position]) for position in positions]
    found = read(wanted)
    return [found.get(number, missing) for number in wanted]
