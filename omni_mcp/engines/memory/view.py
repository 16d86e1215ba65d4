"""A view looks at the reader's places as if their slots lay one after the other.

Only what is asked for is read: nothing is joined over all items but one bit each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy import bool_, float32, int32, int64
from numpy.typing import NDArray

from omni_mcp.engines.memory.place_index import PlaceIndex
from omni_mcp.engines.memory.postings import Segment

PASSED_OVER = 32  # neighbours in a row that do not exist for a query


class View:
    """Slots of several places; those that are given to its methods are in ascending order.

    Args:
        seen: for each place, which of its slots exist for this query.
    """

    def __init__(self, places: Sequence[PlaceIndex], seen: Sequence[NDArray[bool_]]) -> None:
        self.places = tuple(places)
        self.firsts = [0]
        for place in places:
            self.firsts.append(self.firsts[-1] + place.count)
        self.total = self.firsts[-1]
        self.seen = joined(seen)
        self.items = int(np.count_nonzero(self.seen))

    @property
    def mean_length(self) -> float:
        """Words in an item that exists, on average; at least 1."""
        words = sum(
            float(np.dot(place.length[: place.count], self.seen[first : first + place.count]))
            for place, first in zip(self.places, self.firsts, strict=False)
        )
        return max(1.0, words / max(1, self.items))

    def of(self, name: str, slots: NDArray[Any]) -> NDArray[Any]:
        """Return what the array *name* of the places holds for each of *slots*."""
        parts = [getattr(place, name)[here] for place, here, _ in self._parts(slots)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def cosines(self, slots: NDArray[Any], vector: NDArray[float32] | None) -> NDArray[float32]:
        """Return how near the items in *slots* are to *vector*."""
        if vector is None:
            return np.zeros(len(slots), dtype=float32)
        parts = [place.cosines(here, vector) for place, here, _ in self._parts(slots)]
        return np.concatenate(parts)

    def mean_cosine(self, vector: NDArray[float32] | None) -> float:
        """Return how near the items that exist are to *vector*, on average."""
        if vector is None or not self.items:
            return 0.0
        total = float(np.sum([place.vector_sum for place in self.places], axis=0) @ vector)
        if self.items < sum(place.live for place in self.places):
            alive = joined([place.alive[: place.count] for place in self.places])
            total -= float(self.cosines(np.flatnonzero(alive & ~self.seen), vector).sum())
        return total / self.items

    def nearest(self, vector: NDArray[float32], among: NDArray[bool_], limit: int, sifted: int) -> NDArray[int64]:
        """Return at most *limit* slots *among* those given that are nearest to *vector*.

        The signs of the vectors choose about *sifted* ones, which are then compared exactly.
        """
        apart = joined([place.apart(vector) for place in self.places])
        counts = np.cumsum(np.bincount(apart[among]))
        enough = int(np.searchsorted(counts, sifted))
        slots = np.flatnonzero((apart <= enough) & among)
        return np.sort(slots[highest(self.cosines(slots, vector), limit)])

    def neighbours(self, slots: NDArray[Any]) -> tuple[NDArray[int64], NDArray[int64]]:
        """Return the slots before and after each in its session; the total stands for none.

        What does not exist for this query is passed over, as if it had never been there.
        """
        found: tuple[list[NDArray[int64]], list[NDArray[int64]]] = ([], [])
        for place, here, first in self._parts(slots):
            seen = self.seen[first : first + place.count]
            for links, side in zip(place.neighbours(), found, strict=True):
                near = _next_seen(links, here, seen)
                side.append(np.where(near >= 0, near + first, self.total))
        return joined(found[0], int64), joined(found[1], int64)

    def segments(self) -> Iterator[tuple[Segment, int]]:
        """Yield each segment with the slot at which it begins in this view."""
        for place, first in zip(self.places, self.firsts, strict=False):
            for segment in place.segments:
                yield segment, segment.first + first

    def lengths(self, slots: NDArray[int32]) -> NDArray[float32]:
        """Return the number of words in each of *slots*, which may be in any order."""
        if len(self.places) == 1:
            lengths: NDArray[float32] = self.places[0].length[slots]
            return lengths
        return joined([place.length[: place.count] for place in self.places], float32)[slots]

    def _parts(self, slots: NDArray[Any]) -> Iterator[tuple[PlaceIndex, NDArray[Any], int]]:
        """Yield each place with its own numbers of the slots that lie in it, and its first slot here."""
        ends = np.searchsorted(slots, self.firsts)
        for place, first, begin, end in zip(self.places, self.firsts, ends[:-1], ends[1:], strict=False):
            yield place, slots[begin:end] - first, first


def _next_seen(links: NDArray[int32], slots: NDArray[Any], seen: NDArray[bool_]) -> NDArray[int64]:
    """Follow *links* from *slots* to the next slot that is seen; -1 where there is none, or none near."""
    near: NDArray[int64] = links[slots].astype(int64)
    for _ in range(PASSED_OVER):
        hidden = np.flatnonzero((near >= 0) & ~seen[near])
        if not len(hidden):
            return near
        near[hidden] = links[near[hidden]]
    near[(near >= 0) & ~seen[near]] = -1
    return near


def joined(parts: Sequence[NDArray[Any]], dtype: Any = None) -> NDArray[Any]:
    """Return *parts* as one array, which is the part itself if there is but one."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, dtype=dtype)


def highest(values: NDArray[Any], limit: int) -> NDArray[int64]:
    """Return where the highest *limit* values are, in no order."""
    if len(values) <= limit:
        return np.arange(len(values), dtype=int64)
    return np.argpartition(-values, limit - 1)[:limit].astype(int64)
