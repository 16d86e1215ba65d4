"""Which subjects there are in a place, and which of them a query names."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy import int32, int64, uint32
from numpy.typing import NDArray

from omni_mcp.engines.memory.postings import PAIR


class Subjects:
    """Subjects by their hashes, each with the hashes of its words."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._fresh: list[tuple[int, bytes]] = []
        self._hashes = np.zeros(0, dtype=int64)
        self._sizes = np.zeros(0, dtype=int32)
        self._words = np.zeros(0, dtype=uint32)  # ascending
        self._owners = np.zeros(0, dtype=int32)  # whose word it is

    @property
    def size_bytes(self) -> int:
        arrays = (self._hashes, self._sizes, self._words, self._owners)
        return sum(array.nbytes for array in arrays) + 100 * len(self._known)

    def add(self, subjects: Iterable[tuple[int | None, bytes]]) -> None:
        """Take in (hash, counted words) of subjects, known or new."""
        for subject, words in subjects:
            if subject and subject not in self._known:
                self._known.add(subject)
                self._fresh.append((subject, words))

    def named(self, words: NDArray[uint32], limit: int) -> list[tuple[int, float]]:
        """Return (hash, share of its words that are among *words*) of the subjects named best, at most *limit*."""
        self._take_in()
        begins = np.searchsorted(self._words, words, side="left")
        ends = np.searchsorted(self._words, words, side="right")
        found = [self._owners[begin:end] for begin, end in zip(begins, ends, strict=True) if end > begin]
        if not found:
            return []
        subjects, counts = np.unique(np.concatenate(found), return_counts=True)
        shares = counts / self._sizes[subjects]
        best = np.lexsort((subjects, -shares))[:limit]
        return [(int(self._hashes[subjects[at]]), float(shares[at])) for at in best]

    def _take_in(self) -> None:
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, []
        words = [np.frombuffer(packed, dtype=PAIR)["word"] for _, packed in fresh]
        sizes = np.array([len(found) for found in words], dtype=int32)
        owners = np.repeat(np.arange(len(self._sizes), len(self._sizes) + len(sizes), dtype=int32), sizes)
        all_words = np.concatenate([self._words, *words])
        order = np.argsort(all_words, kind="stable")
        self._words, self._owners = all_words[order], np.concatenate([self._owners, owners])[order]
        self._hashes = np.concatenate([self._hashes, np.array([subject for subject, _ in fresh], dtype=int64)])
        self._sizes = np.concatenate([self._sizes, np.maximum(sizes, 1)])
