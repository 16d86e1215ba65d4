"""What the ranking is told about the candidates of one query, and what it gives back.

Arrays over candidates have one value for each; the position of a value is the number of its candidate. The candidates
of a small place are all that the reader may see; of a large one, what is best by words, what is best by meaning, and
the neighbours of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from numpy import bool_, float32, float64, int32
from numpy.typing import NDArray

from omni_mcp.engines.memory.query_times import Times

NOBODY = -1  # in place of a neighbour, a session or a subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A word to look for, as `words_of` gives it, or by its hash alone where the word is not known."""

    word: str = ""
    weight: float = 1.0
    hash: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a query looks for. `vector` is None where nothing of its meaning is known; `words_only` says why the
    embedder could not be asked. `times` are those that the text names."""

    words: tuple[Word, ...]
    vector: NDArray[float32] | None
    text: str
    words_only: str | None = None
    times: tuple[Times, ...] = ()


def _no_texts(positions: Sequence[int]) -> list[str]:
    return ["" for _ in positions]


def _no_words(positions: Sequence[int]) -> list[list[tuple[int, int]]]:
    return [[] for _ in positions]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known about each of the m candidates.

    `words` has a row for each word that was looked up: its part of BM25, with its idf and weight. The rows add up to
    BM25; the last one stands for all words beyond 64 and has None in `word_list`, if there are so many. `meaning` is
    the cosine with the probe's vector, `meaning_mean` its mean over all that the reader may see. `before` and `after`
    are the neighbours in the session, by time and then by order of writing. `named` lists the subjects that the query
    names, each with the share of its words that stand in the query. `rarity` says how much a text tells: as much as so
    many words that no other item has; None where there are too many items to count. `wanted` is False for what may only
    support others. `texts` and `words_at` read from the disk: for a few candidates.
    """

    probe: Probe
    items: int
    words: NDArray[float32]
    word_list: tuple[Word | None, ...]
    idf: NDArray[float32]
    meaning: NDArray[float32]
    meaning_mean: float
    whole: bool
    lengths: NDArray[int32]
    before: NDArray[int32]
    after: NDArray[int32]
    session: NDArray[int32]
    subject: NDArray[int32]
    named: tuple[tuple[int, float], ...]
    question: NDArray[bool_]
    at_s: NDArray[float64]
    importance: NDArray[float32]
    wanted: NDArray[bool_]
    rarity: NDArray[float32] | None = None
    texts: Callable[[Sequence[int]], list[str]] = _no_texts
    words_at: Callable[[Sequence[int]], list[list[tuple[int, int]]]] = _no_words


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """The score of each candidate, and the parts that add up to it. A score of 0 or less is no hit."""

    scores: NDArray[float32]
    parts: dict[str, NDArray[float32]]
