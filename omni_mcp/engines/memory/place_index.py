"""The index of one place in memory: for each item a slot in arrays, and segments that say which slots have a word.

Slots are only ever added. A revised item gets a new slot and its old one is dead; with many dead ones the index is
loaded anew. No array holds a word or a name: those of items are hashes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy import bool_, float32, float64, int8, int32, int64, uint8, uint64
from numpy.typing import NDArray

from omni_mcp.engines.memory.postings import SEGMENT_SLOTS, Segment, appended, segment_of
from omni_mcp.engines.memory.subjects import Subjects

NEVER_NS = (1 << 63) - 1
ROW_COLUMNS = (
    "i.n, i.kind, i.taint, i.importance, i.session, i.subject, i.at_ns, i.expires_at_ns, m.length, m.question, "
    "m.vector, m.words, m.subject_words"
)
_ROWS_AT_ONCE = 1024
_SESSIONS_AT_ONCE = 64


class PlaceIndex:
    """What is known of the items of one place.

    Args:
        dimensions: of the vectors; a multiple of 8.
    """

    def __init__(self, dimensions: int) -> None:
        self.count = 0  # slots in use
        self.dead = 0
        self.segments: list[Segment] = []
        self.subjects = Subjects()
        self.vector_sum = np.zeros(dimensions, dtype=float64)  # of the live ones, each of length 1
        self._dimensions = dimensions
        self._any_expires = False
        self._sessions_changed: set[int] | None = set()  # None: too many to say
        self._allocate(0)

    @property
    def live(self) -> int:
        return self.count - self.dead

    @property
    def size_bytes(self) -> int:
        """How much memory the index takes, as far as its arrays are concerned."""
        arrays = sum(int(getattr(self, name).nbytes) for name in _ARRAYS)
        return arrays + sum(segment.size_bytes for segment in self.segments) + self.subjects.size_bytes

    def load(self, rows: sqlite3.Cursor, expected: int) -> None:
        """Take in all *rows* of ROW_COLUMNS; *expected* is about how many there are."""
        self._allocate(expected)
        words, sizes, first = bytearray(), list[NDArray[int64]](), 0
        while part := rows.fetchmany(_ROWS_AT_ONCE):
            joined, part_sizes = self._append(part)
            words += joined
            sizes.append(part_sizes)
            if self.count - first + _ROWS_AT_ONCE > SEGMENT_SLOTS:
                self.segments.append(segment_of(first, bytes(words), np.concatenate(sizes)))
                words, sizes, first = bytearray(), [], self.count
        if sizes:
            self.segments.append(segment_of(first, bytes(words), np.concatenate(sizes)))
        self._sessions_changed = None

    def apply(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Take in *rows* of ROW_COLUMNS that are new or changed."""
        self.remove([row[0] for row in rows])
        first = self.count
        words, sizes = self._append(rows)
        self.segments = appended(self.segments, segment_of(first, words, sizes))

    def remove(self, numbers: Sequence[int]) -> None:
        """Let go of the items with these row numbers, as far as they are here."""
        n = self.n[: self.count]
        known = [number for number in numbers if self.count and number <= self._newest]
        if not known:
            return
        slots = np.flatnonzero(np.isin(n, known) & self.alive[: self.count])
        self.alive[slots] = False
        self.dead += len(slots)
        self.vector_sum -= self.unit_vectors(slots).sum(axis=0, dtype=float64)
        self._note_sessions(self.session[slots])

    def neighbours(self) -> tuple[NDArray[int32], NDArray[int32]]:
        """Return for each slot those before and after it in its session, by time and row number; -1 where none is."""
        changed, self._sessions_changed = self._sessions_changed, set()
        if changed is None:
            self.before[: self.count] = self.after[: self.count] = -1
            slots = np.flatnonzero(self.alive[: self.count] & (self.session[: self.count] != 0))
            order = slots[np.lexsort((self.n[slots], self.at_ns[slots], self.session[slots]))]
            same = self.session[order[1:]] == self.session[order[:-1]]
            self.before[order[1:][same]], self.after[order[:-1][same]] = order[:-1][same], order[1:][same]
        else:
            for session in changed:
                slots = np.flatnonzero((self.session[: self.count] == session) & self.alive[: self.count])
                order = slots[np.lexsort((self.n[slots], self.at_ns[slots]))]
                self.before[order], self.after[order] = -1, -1
                self.before[order[1:]], self.after[order[:-1]] = order[:-1], order[1:]
        return self.before[: self.count], self.after[: self.count]

    def existing(self, now_ns: int) -> NDArray[bool_]:
        """Return which slots hold an item that has not expired; not to be changed."""
        alive: NDArray[bool_] = self.alive[: self.count]
        return alive & (self.expires_ns[: self.count] > now_ns) if self._any_expires else alive

    def cosines(self, slots: NDArray[int64], vector: NDArray[float32]) -> NDArray[float32]:
        """Return how near the items in *slots* are to a *vector* of length 1."""
        near: NDArray[float32] = np.vecdot(
            self.vectors[slots].astype(float32), vector
        )  # by the row: no threads for a few thousand
        near /= self._divisors(slots)[:, 0]
        return near

    def apart(self, vector: NDArray[float32]) -> NDArray[uint8]:
        """Return for each slot in how many dimensions the signs of its vector and of *vector* differ."""
        [wanted] = _signs(vector[None, :])
        apart = np.zeros(self.count, dtype=uint8)
        for column, bits in zip(self.signs[: self.count].T, wanted, strict=True):
            apart += np.bitwise_count(column ^ bits)
        return apart

    def unit_vectors(self, slots: NDArray[int64]) -> NDArray[float32]:
        """Return the vectors of *slots*, each of length 1."""
        vectors: NDArray[float32] = self.vectors[slots].astype(float32)
        vectors /= self._divisors(slots)
        return vectors

    def _append(self, rows: Sequence[tuple[Any, ...]]) -> tuple[bytes, NDArray[int64]]:
        """Give each row a slot; returns the words of all, and how many bytes are whose."""
        n, kind, taint, importance, session, subject, at, expires, length, question, vector, words, named = zip(
            *rows, strict=True
        )
        first, self.count = self.count, self.count + len(rows)
        if self.count > len(self.n):
            self._allocate(self.count + self.count // 4)
        here = slice(first, self.count)
        self.n[here], self.kind[here], self.taint[here], self.importance[here] = n, kind, taint, importance
        self.session[here] = [value or 0 for value in session]
        self.subject[here] = [value or 0 for value in subject]
        self.at_ns[here] = at
        self.expires_ns[here] = [NEVER_NS if value is None else value for value in expires]
        self.length[here], self.question[here] = length, question
        vectors = np.frombuffer(b"".join(vector), dtype=int8).reshape(len(rows), self._dimensions)
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=float32))
        self.vectors[here], self.norm[here], self.signs[here] = vectors, norms, _signs(vectors)
        self.alive[here] = True
        self._any_expires = self._any_expires or any(value is not None for value in expires)
        self.vector_sum += (vectors / self._divisors(here)).sum(axis=0, dtype=float64)
        self.before[here] = self.after[here] = -1
        self.subjects.add(zip(subject, named, strict=True))
        self._note_sessions(self.session[here])
        return b"".join(words), np.fromiter(map(len, words), dtype=int64, count=len(words))

    @property
    def _newest(self) -> int:
        return int(self.n[: self.count].max(initial=0))

    def _divisors(self, slots: NDArray[int64] | slice) -> NDArray[float32]:
        norms: NDArray[float32] = self.norm[slots]
        return np.maximum(norms, float32(1))[:, None]

    def _note_sessions(self, sessions: NDArray[int64]) -> None:
        if self._sessions_changed is not None:
            self._sessions_changed.update(value for value in np.unique(sessions).tolist() if value)
            if len(self._sessions_changed) > _SESSIONS_AT_ONCE:
                self._sessions_changed = None

    def _allocate(self, capacity: int) -> None:
        """Make room for *capacity* slots and keep what is there."""
        self.n = self._grown("n", capacity, int64)
        self.alive = self._grown("alive", capacity, bool_)
        self.kind = self._grown("kind", capacity, uint8)
        self.taint = self._grown("taint", capacity, uint8)
        self.importance = self._grown("importance", capacity, float32)
        self.session = self._grown("session", capacity, int64)
        self.subject = self._grown("subject", capacity, int64)
        self.at_ns = self._grown("at_ns", capacity, int64)
        self.expires_ns = self._grown("expires_ns", capacity, int64)
        self.length = self._grown("length", capacity, float32)
        self.question = self._grown("question", capacity, bool_)
        self.norm = self._grown("norm", capacity, float32)
        self.before = self._grown("before", capacity, int32)
        self.after = self._grown("after", capacity, int32)
        self.vectors = self._grown("vectors", capacity, int8, self._dimensions)
        self.signs = self._grown("signs", capacity, uint64, -(-self._dimensions // 64))

    def _grown(self, name: str, capacity: int, dtype: Any, *columns: int) -> NDArray[Any]:
        grown = np.zeros((capacity, *columns), dtype=dtype, order="F" if name == "signs" else "C")
        old = getattr(self, name, grown)
        grown[: len(old)] = old
        return grown


_ARRAYS = (
    "n", "alive", "kind", "taint", "importance", "session", "subject", "at_ns", "expires_ns", "length", "question",
    "norm", "before", "after", "vectors", "signs",
)  # fmt: skip


def _signs(vectors: NDArray[Any]) -> NDArray[uint64]:
    """Return one bit for each dimension, 64 in a word."""
    bits = np.packbits(vectors > 0, axis=1)
    padded = np.zeros((len(bits), -(-bits.shape[1] // 8) * 8), dtype=uint8)
    padded[:, : bits.shape[1]] = bits
    return padded.view(uint64)
