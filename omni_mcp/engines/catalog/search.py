"""ToolIndex finds tools by words: of their names, titles, descriptions and parameters, the best match first.

Ranking is BM25 with weighted fields. Every number in it is taken over the tools that the asker may see, so what is
hidden changes nothing in an answer, not even an order. Source: Robertson and Zaragoza, "The Probabilistic Relevance
Framework: BM25 and Beyond", 2009, section 3.
"""

from __future__ import annotations

import heapq
import math
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import compress, pairwise

from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.contracts.tool import Entry

QUERY_WORDS = 16  # of a query; more are not looked at
BEGINNINGS = 64  # words that are tried for one that is asked for
TEXT_CHARACTERS = 4000  # of a description
PARAMETERS = 200

_NAME, _TITLE, _PARAMETER, _DESCRIPTION = 4.0, 2.0, 1.5, 1.0
_K1, _B = 1.2, 0.6
_EXACT = 1e6  # more than any sum of words
_BEGINS = 0.5  # what a word counts that only begins with the one asked for
_BEGINNING = 3  # letters that a word must have for that
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_A-Za-z]+")
_IDEOGRAPHS = "\u2e80"  # from here on, scripts without blanks between words


class ToolIndex:
    """The tools of one profile, by word. Never changed after it was made."""

    def __init__(self, named: Sequence[tuple[str, Entry]]) -> None:
        """Take (public name, entry) of each tool. About 0.05 ms a tool."""
        self.named = tuple(named)
        self._names = [{public.casefold(), entry.name.casefold()} for public, entry in self.named]
        self._lengths: list[float] = []
        self._postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, (public, entry) in enumerate(self.named):
            weights = _weights(public, entry)
            self._lengths.append(sum(weights.values()))
            for word, weight in weights.items():
                self._postings[word].append((number, weight))
        self._vocabulary = sorted(self._postings)

    def find(self, query: str, visible: Sequence[bool], limit: int) -> list[int]:
        """Return the places in `named` of what fits *query*, at most *limit*, best first; only of *visible* tools."""
        words = list(dict.fromkeys(words_of(query)))[:QUERY_WORDS]
        seen = sum(visible)
        if not words or not seen:
            return []
        average = sum(compress(self._lengths, visible)) / seen
        rooms = [_K1 * (1 - _B + _B * length / average) for length in self._lengths]
        scores = [0.0] * len(rooms)
        hits = [0] * len(rooms)
        for word in words:
            for number, score in self._scores_of(word, visible, seen, rooms).items():
                scores[number] += score
                hits[number] += 1
        found = [number for number, count in enumerate(hits) if count]
        asked = query.strip().casefold()
        for number in found:
            scores[number] *= 1 + hits[number] / len(words)
            if asked in self._names[number]:
                scores[number] += _EXACT
        return heapq.nlargest(limit, found, key=scores.__getitem__)  # equals stay in the order of their names

    def _scores_of(self, word: str, visible: Sequence[bool], seen: int, rooms: Sequence[float]) -> dict[int, float]:
        best: dict[int, float] = {}
        tried = 0
        for found in self._alike(word):
            shown = [posting for posting in self._postings[found] if visible[posting[0]]]
            if not shown:
                continue
            tried += 1
            if tried > BEGINNINGS:
                break
            rarity = math.log(1 + (seen - len(shown) + 0.5) / (len(shown) + 0.5))
            factor = rarity * (_K1 + 1) * (1.0 if found == word else _BEGINS)
            scored = {number: factor * weight / (weight + rooms[number]) for number, weight in shown}
            if best:
                scored.update((number, score) for number, score in best.items() if score > scored.get(number, 0.0))
            best = scored
        return best

    def _alike(self, word: str) -> Iterator[str]:
        """Yield the known words that are *word* or, if it is long enough, begin with it."""
        for place in range(bisect_left(self._vocabulary, word), len(self._vocabulary)):
            found = self._vocabulary[place]
            if found != word and (len(word) < _BEGINNING or not found.startswith(word)):
                return
            yield found


def words_of(text: str) -> Iterator[str]:
    """Yield the words of *text* in lower case and the singular: of names in any style, and pairs of ideographs."""
    for found in _WORD.findall(text):
        word = found.casefold()
        if word[0] >= _IDEOGRAPHS and len(word) > 1:
            yield from map("".join, pairwise(word))
        else:
            yield _singular(word)


def _singular(word: str) -> str:
    """Take a plural's ending off. It need not be right, only the same for what is asked and what is found."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


def _weights(public: str, entry: Entry) -> dict[str, float]:
    definition = entry.definition
    fields = (
        (_NAME, f"{public} {entry.name}" if entry.name not in public else public),
        (_TITLE, f"{_text(definition.get('title'))} {_text(_member(definition.get('annotations'), 'title'))}"),
        (_PARAMETER, " ".join(_parameters(definition))[:TEXT_CHARACTERS]),
        (_DESCRIPTION, _text(definition.get("description"))),
    )
    weights: dict[str, float] = defaultdict(float)
    for weight, text in fields:
        for word in words_of(text):
            weights[word] += weight
    return weights


def _parameters(definition: JsonObject) -> list[str]:
    properties = _member(definition.get("inputSchema"), "properties")
    return list(properties)[:PARAMETERS] if isinstance(properties, dict) else []


def _member(value: JsonValue, key: str) -> JsonValue:
    return value.get(key) if isinstance(value, dict) else None


def _text(value: JsonValue) -> str:
    return value[:TEXT_CHARACTERS] if isinstance(value, str) else ""
