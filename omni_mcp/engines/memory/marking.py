"""The marker turns texts into marks: the words and the vector by which a text is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import numpy as np
from numpy import float32
from numpy.typing import NDArray

from omni_mcp.contracts.memory import MemoryItem, NoVectors
from omni_mcp.contracts.ports import Embedder
from omni_mcp.engines.memory.embedder import StaticEmbedder
from omni_mcp.engines.memory.rows import Mark, Prepared, body_of
from omni_mcp.engines.memory.words import WORDS_VERSION, counted

TEXTS_AT_ONCE = 512
_LARGEST = 127


class Marker:
    """Makes marks with one embedder."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    @property
    def recipe(self) -> str:
        """What marks depend on besides the text: those of different recipes are never compared."""
        return f"{self._embedder.name} {self._embedder.dimensions} words {WORDS_VERSION}"

    @property
    def recipe_without_vectors(self) -> str:
        """What marks are made of while the embedder cannot be asked: they are made anew when it can."""
        return f"{self.recipe}, no vectors yet"

    @property
    def is_quick(self) -> bool:
        """Whether everything can be marked anew while a recall waits."""
        return isinstance(self._embedder, StaticEmbedder)

    @property
    def dimensions(self) -> int:
        return self._embedder.dimensions

    def prepared(self, items: Sequence[MemoryItem], on_progress: Callable[[int], None] | None = None) -> list[Prepared]:
        """Return what there is to store of *items*; *on_progress* hears how many are done.

        Raises:
            BadRequest: a time is out of range.
        """
        bodies = [body_of(item) for item in items]
        found: list[Prepared] = []
        for item, body, mark in zip(
            items, bodies, self.marks([(item.text, item.subject) for item in items]), strict=True
        ):
            found.append(Prepared(item=item, body=body, mark=mark))
            if on_progress and len(found) % TEXTS_AT_ONCE == 0:
                on_progress(len(found))
        return found

    def marks(self, items: Sequence[tuple[str, str | None]], *, with_vectors: bool = True) -> Iterator[Mark]:
        """Yield the mark of each (text, subject); without a vector if none is wanted or the embedder is away."""
        for at in range(0, len(items), TEXTS_AT_ONCE):
            part = items[at : at + TEXTS_AT_ONCE]
            vectors, has_vectors = self._vectors([text for text, _ in part] if with_vectors else None, len(part))
            largest = np.abs(vectors).max(axis=1, initial=0, keepdims=True)
            scaled = np.divide(vectors * _LARGEST, largest, out=np.zeros_like(vectors), where=largest > 0)
            for (text, subject), vector in zip(part, np.rint(scaled).astype(np.int8), strict=True):
                length, words = counted(text)
                _, subject_words = counted(subject or "")
                question = text.rstrip().endswith(("?", "\uff1f"))
                yield Mark(
                    length=length, question=question, vector=vector.tobytes(), words=words, subject_words=subject_words,
                    has_vector=has_vectors,
                )  # fmt: skip

    def _vectors(self, texts: Sequence[str] | None, count: int) -> tuple[NDArray[float32], bool]:
        with suppress(NoVectors):
            if texts is not None:
                return self._embedder.embed(texts), True
        return np.zeros((count, self._embedder.dimensions), dtype=float32), False
