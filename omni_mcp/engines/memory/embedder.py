"""StaticEmbedder turns texts into vectors: the mean of the vectors of a text's word pieces, which a table holds.

The table is a few megabytes of the package, made by `tests/bench/static_table.py` from the weights that
`data/NOTICE` names. It is read at the first text, not before: a gateway whose memory nobody uses does not pay for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy import float16, float32, int8
from numpy.typing import NDArray

from omni_mcp.engines.memory.wordpiece import WordPieces

TABLE_FILE = Path(__file__).parent / "data" / "static_table.npz"
NAME = "static-minilm-l6-128.2"
DIMENSIONS = 128
TEXT_LIMIT_PIECES = 512
TEXT_LIMIT_CHARS = 8192  # more hold no more pieces that count
_TEXTS_AT_ONCE = 2048


class StaticEmbedder:
    """Vectors from a table (port `Embedder`). Safe for several threads."""

    def __init__(self, file: Path = TABLE_FILE) -> None:
        self._file = file
        self._reading = Lock()
        self._table: Table | None = None

    @property
    def name(self) -> str:
        return NAME

    @property
    def dimensions(self) -> int:
        return DIMENSIONS

    def embed(self, texts: Sequence[str]) -> NDArray[float32]:
        """Return one row of length 1 for each text, all zeros where no piece of it is known.

        About 0.05 ms for a question; of a long text the first 512 pieces count.
        """
        table = self._read()
        rows = np.zeros((len(texts), DIMENSIONS), dtype=float32)
        for begin in range(0, len(texts), _TEXTS_AT_ONCE):
            portion = texts[begin : begin + _TEXTS_AT_ONCE]
            rows[begin : begin + len(portion)] = table.sums_of(portion)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        np.divide(rows, lengths, out=rows, where=lengths > 0)
        return rows

    def _read(self) -> Table:
        with self._reading:
            if self._table is None:
                self._table = read_table(self._file)
            return self._table


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A vocabulary, and for each of its entries a vector: int8 times the scale of its row."""

    pieces: WordPieces
    vectors: NDArray[int8]
    scale: NDArray[float16]

    def sums_of(self, texts: Sequence[str]) -> NDArray[float32]:
        """Return the sum of the vectors of each text's pieces."""
        sums = np.zeros((len(texts), self.vectors.shape[1]), dtype=float32)
        numbers = [self.pieces.numbers_of(text[:TEXT_LIMIT_CHARS])[:TEXT_LIMIT_PIECES] for text in texts]
        places = [place for place, found in enumerate(numbers) if found]
        if places:
            counts = [len(numbers[place]) for place in places]
            starts = np.concatenate(([0], np.cumsum(counts[:-1]))).astype(np.intp)
            flat = np.concatenate([numbers[place] for place in places])
            vectors = self.vectors[flat].astype(float32) * self.scale[flat].astype(float32)
            sums[places] = np.add.reduceat(vectors, starts, axis=0)
        return sums


def read_table(file: Path) -> Table:
    """Return the table that `tests/bench/static_table.py` wrote."""
    with np.load(file, allow_pickle=False) as table:
        vocabulary = table["vocabulary"].tobytes().decode().split("\n")
        return Table(pieces=WordPieces(vocabulary), vectors=table["vectors"], scale=table["scale"])
