"""The words of a text, of items and of queries alike: folded, without diacritics, stemmed, and kept as hashes.

An index of hashes holds no word: when an item is forgotten, there is none to look for. Two words share one of the
4,294,967,296 hashes too seldom to matter: in a vocabulary of 100,000 words, one query word in 43,000 does.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from hashlib import blake2b

from omni_mcp.engines.memory.stem import stem

WORDS_VERSION = 1  # raise it when the same text gives other words: stored items are then indexed anew
STEMMED_UP_TO_CHARS = 64
_CACHED = 16_384
_CACHED_UP_TO_CHARS = 64  # whoever writes longer ones could fill the memory of the process with them

_ASCII_WORD = re.compile(r"[a-z0-9]+(?:[+#]+(?![a-z0-9])|(?:[-./_@:&+*=][a-z0-9]+)+)?")
_PART = re.compile(r"[a-z0-9]+")
_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)  # Thai, Lao, Burmese, Khmer, Kana, Han


def words_of(text: str) -> list[str]:
    """Return the stems of *text* in order, each as often as it stands there.

    A word with signs inside or behind (`a-b`, `node.js`, `c++`) stands there once more as a whole. Scripts without
    spaces give their characters and pairs of them; a symbol such as an emoji is a word.
    """
    if text.isascii():
        return [word for found in _ASCII_WORD.findall(text.lower()) for word in _with_parts(found)]
    return _words_of_folded(_folded(text))


def hash_of(word: str) -> int:
    """Return the 32-bit hash under which a word, as `words_of` gives it, is indexed."""
    return _hash_of(word)


def counted(text: str) -> tuple[int, bytes]:
    """Return how many words *text* has, and for each different one its hash (4 bytes, little-endian) and count (1)."""
    counts = Counter(words_of(text))
    packed = {_hash_of(word): min(count, 255) for word, count in counts.items()}
    marks = b"".join(value.to_bytes(4, "little") + bytes((count,)) for value, count in packed.items())
    return sum(counts.values()), marks


def _with_parts(word: str) -> tuple[str, ...]:
    return _known_parts(word) if len(word) <= _CACHED_UP_TO_CHARS else _parts_of(word)


def _parts_of(word: str) -> tuple[str, ...]:
    parts = _PART.findall(word)
    stems = tuple(_stemmed(part) for part in parts)
    return stems if parts == [word] else (*stems, word)


_known_parts = lru_cache(maxsize=_CACHED)(_parts_of)


def _stemmed(word: str) -> str:
    return stem(word) if len(word) <= STEMMED_UP_TO_CHARS and word.isalpha() else word


def _hash_of(word: str) -> int:
    return _known_hash(word) if len(word) <= _CACHED_UP_TO_CHARS else _hash(word)


def _hash(word: str) -> int:
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "little")


_known_hash = lru_cache(maxsize=_CACHED)(_hash)


def _folded(text: str) -> str:
    """Return *text* in lower case and without marks on letters: `É` and `é` are `e`."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(letter for letter in apart if letter.isascii() or unicodedata.category(letter)[0] != "M")
    return unicodedata.normalize("NFC", plain)


def _words_of_folded(text: str) -> list[str]:
    words: list[str] = []
    for found in _ASCII_WORD.findall(text):
        if len(parts := _with_parts(found)) > 1:
            words.append(parts[-1])
    for found in _WORD.findall(text):
        words.extend(_pieces(found))
    words.extend(letter for letter in text if not letter.isascii() and unicodedata.category(letter) == "So")
    return words


def _pieces(word: str) -> list[str]:
    """Return the stem of a word; of what is written without spaces, each character and each pair."""
    if word.isascii():
        return [_stemmed(word)]
    if _UNSPACED.search(word) is None:
        return [word]
    pieces: list[str] = []
    at = 0
    for run in _UNSPACED.finditer(word):
        pieces += [_stemmed_if_ascii(word[at : run.start()])] if run.start() > at else []
        letters = run.group()
        pieces += [*letters, *(letters[i : i + 2] for i in range(len(letters) - 1))]
        at = run.end()
    return pieces + ([_stemmed_if_ascii(word[at:])] if at < len(word) else [])


def _stemmed_if_ascii(word: str) -> str:
    return _stemmed(word) if word.isascii() else word
