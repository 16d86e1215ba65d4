"""WordPieces turns text into numbers of vocabulary entries, as the sentence model did whose vectors we keep.

Lower case, no accents, each mark and each ideograph on its own, then the longest piece first. Source: BERT's word
pieces (Wu et al., "Google's Neural Machine Translation System", 2016, section 4.1); text is cut by Unicode's word
characters here, so a rare symbol may come out differently, which changes nothing that is measured.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

UNKNOWN = 100
CACHED_WORDS = 50_000
_WORD_LIMIT_CHARS = 100  # a longer one is unknown, as in the source
_IDEOGRAPHS = "\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_TOKEN = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+|[^\w\s]|_")


class WordPieces:
    """A vocabulary, and how a text is cut into its entries. Safe for several threads."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        """Take the entries in the order of their numbers; those that continue a word begin with `##`."""
        self._numbers = {entry: number for number, entry in enumerate(vocabulary)}
        self._known: dict[str, tuple[int, ...]] = {}

    def numbers_of(self, text: str) -> list[int]:
        """Return the entries of *text* in order; what no entry begins is left out."""
        found: list[int] = []
        for word in _TOKEN.findall(_plain(text)):
            pieces = self._known.get(word)
            found += self._learn(word) if pieces is None else pieces
        return found

    def _learn(self, word: str) -> tuple[int, ...]:
        pieces = self._pieces_of(word)
        if len(word) > _WORD_LIMIT_CHARS:
            return pieces
        if len(self._known) >= CACHED_WORDS:
            self._known = {}
        self._known[word] = pieces
        return pieces

    def _pieces_of(self, word: str) -> tuple[int, ...]:
        if len(word) > _WORD_LIMIT_CHARS:
            return ()
        pieces: list[int] = []
        at = 0
        while at < len(word):
            for end in range(len(word), at, -1):
                number = self._numbers.get(word[at:end] if at == 0 else f"##{word[at:end]}")
                if number is not None:
                    break
            else:
                return ()
            pieces.append(number)
            at = end
        return tuple(pieces)


def _plain(text: str) -> str:
    """Return *text* in lower case and without accents."""
    text = text.lower()
    if text.isascii():
        return text
    return "".join(char for char in unicodedata.normalize("NFD", text) if unicodedata.category(char) != "Mn")
