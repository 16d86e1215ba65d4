"""probe_of makes of any text what a recall looks for: its words that say something, and its vector.

A question for a time also looks for words that times are told with. They are hints: what has one is a little better
where it fits anyway, and nothing is found by them alone.
"""

from __future__ import annotations

import re

from numpy import float32
from numpy.typing import NDArray

from omni_mcp.contracts.memory import NoVectors
from omni_mcp.contracts.ports import Embedder
from omni_mcp.engines.memory.evidence import Probe, Word
from omni_mcp.engines.memory.query_times import times_in
from omni_mcp.engines.memory.query_words import STOP_WORDS, TIME_WORDS
from omni_mcp.engines.memory.words import words_of

HINT_WEIGHT = 1e-3  # of a word in a probe: it only hints

_STOPS = frozenset(words_of(" ".join(sorted(STOP_WORDS))))
_TIMES = tuple(dict.fromkeys(words_of(TIME_WORDS)))
_FOR_A_TIME = re.compile(
    r"\s*when\b|.*\b(?:how long|(?:what|which) (?:time|day|date|week|month|year|season))\b", re.IGNORECASE
)


def probe_of(text: str, embedder: Embedder, now_s: float = 0.0) -> Probe:
    """Return what to look for; a text of nothing but stop-words is looked for by those.

    Args:
        now_s: UTC seconds, from which words such as `yesterday` are counted.
    """
    words = list(dict.fromkeys(words_of(text)))
    telling = [word for word in words if word not in _STOPS] or words
    hints = [word for word in _TIMES if word not in telling] if _FOR_A_TIME.match(text) else []
    vector, words_only = _vector_of(text, embedder)
    return Probe(
        words=(*(Word(word=word) for word in telling), *(Word(word=word, weight=HINT_WEIGHT) for word in hints)),
        vector=vector,
        text=text,
        words_only=words_only,
        times=times_in(text, now_s),
    )


def _vector_of(text: str, embedder: Embedder) -> tuple[NDArray[float32] | None, str | None]:
    """Return the vector, if anything of the text is known, and why it could not be asked for."""
    try:
        vector = embedder.embed([text])[0]
    except NoVectors as away:
        return None, str(away)
    return vector if vector.any() else None, None
