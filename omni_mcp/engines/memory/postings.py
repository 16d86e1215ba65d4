"""Segments say which items have a word: each covers a stretch of slots, is made once and never changes.

A slot is the place of an item in the arrays of its index. New items get a small segment; eight of one size become one
of the next, so that adding stays cheap and a search looks at few of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import int64, uint8, uint16, uint32, uint64
from numpy.typing import NDArray

SEGMENT_SLOTS = 16_384  # at most 65,536: slots are counted from the segment's first in 16 bits
MERGED_AT = 8
PAIR = np.dtype([("word", "<u4"), ("count", "u1")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Postings of the slots from `first` to `first + slots - 1`, by word hash in ascending order."""

    first: int
    slots: int
    hashes: NDArray[uint32]
    starts: NDArray[uint32]  # one more than hashes
    places: NDArray[uint16]
    counts: NDArray[uint8]

    @property
    def size_bytes(self) -> int:
        return self.hashes.nbytes + self.starts.nbytes + self.places.nbytes + self.counts.nbytes

    def find(self, hashes: NDArray[uint32]) -> tuple[NDArray[int64], NDArray[int64]]:
        """Return where the postings of each word begin and end; the same where there are none."""
        if not len(self.hashes):
            nothing = np.zeros(len(hashes), dtype=int64)
            return nothing, nothing
        at = np.searchsorted(self.hashes, hashes)
        there = self.hashes[np.minimum(at, len(self.hashes) - 1)] == hashes
        return (
            np.where(there, self.starts[at], 0).astype(int64),
            np.where(there, self.starts[np.minimum(at + 1, len(self.hashes))], 0).astype(int64),
        )


def segment_of(first: int, words: bytes, sizes: NDArray[int64]) -> Segment:
    """Make the segment of the items from slot *first* on.

    Args:
        words: the counted words of all items, one after the other.
        sizes: how many bytes of it are each item's.
    """
    pairs = np.frombuffer(words, dtype=PAIR)
    places = np.repeat(np.arange(len(sizes), dtype=uint64), sizes // PAIR.itemsize)
    return _sorted(first, len(sizes), _packed(pairs["word"], places, pairs["count"]))


def merged(segments: Sequence[Segment]) -> Segment:
    """Make one segment of several that lie side by side."""
    first = segments[0].first
    packed = [
        _packed(
            np.repeat(segment.hashes, np.diff(segment.starts).astype(int64)),
            segment.places.astype(uint64) + uint64(segment.first - first),
            segment.counts,
        )
        for segment in segments
    ]
    return _sorted(first, sum(segment.slots for segment in segments), np.concatenate(packed))


def appended(segments: Sequence[Segment], fresh: Segment) -> list[Segment]:
    """Return *segments* and *fresh* behind them, small ones merged."""
    done = [*segments, fresh]
    while True:
        size = _level(done[-1].slots)
        tail = [segment for segment in done[-MERGED_AT:] if _level(segment.slots) <= size]
        if len(tail) < MERGED_AT or sum(segment.slots for segment in tail) > SEGMENT_SLOTS:
            return done
        done[-MERGED_AT:] = [merged(tail)]


def _level(slots: int) -> int:
    """Return how many times eight fits: segments of one level are merged with each other."""
    return (slots.bit_length() - 1) // 3


def _packed(hashes: NDArray[uint32], places: NDArray[uint64], counts: NDArray[uint8]) -> NDArray[uint64]:
    """Put hash, place and count into one number, so that sorting is one fast sort."""
    packed: NDArray[uint64] = hashes.astype(uint64) << uint64(24)
    packed |= places << uint64(8)
    packed |= counts
    return packed


def _sorted(first: int, slots: int, packed: NDArray[uint64]) -> Segment:
    packed.sort()
    hashes = (packed >> uint64(24)).astype(uint32)
    begins = np.flatnonzero(np.diff(hashes, prepend=hashes[:1] ^ uint32(1))) if len(hashes) else np.zeros(0, int64)
    return Segment(
        first=first, slots=slots, hashes=hashes[begins], starts=np.append(begins, len(hashes)).astype(uint32),
        places=((packed >> uint64(8)) & uint64(0xFFFF)).astype(uint16), counts=(packed & uint64(0xFF)).astype(uint8),
    )  # fmt: skip
