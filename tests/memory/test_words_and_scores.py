"""Words are those of FTS5's porter, and scores those of BM25 as anybody would write it down."""

from __future__ import annotations

import math
import random
import sqlite3
from collections import Counter

import numpy as np
import pytest

from omni_mcp.engines.memory.bm25 import K1, B
from omni_mcp.engines.memory.connection import open_reader
from omni_mcp.engines.memory.embedder import TABLE_FILE, StaticEmbedder
from omni_mcp.engines.memory.evidence import Word
from omni_mcp.engines.memory.index import Index
from omni_mcp.engines.memory.occurrences import POSTINGS, ROWS, WORDS, look_up
from omni_mcp.engines.memory.stem import stem
from omni_mcp.engines.memory.view import View
from omni_mcp.engines.memory.words import hash_of, words_of
from tests.memory.conftest import Place, item

ENDINGS = ("", "s", "es", "ed", "ing", "er", "ly", "ness", "ational", "ization", "fulness", "able", "ement", "ies")


def test_stems_are_those_of_fts5() -> None:
    with np.load(TABLE_FILE, allow_pickle=False) as table:
        vocabulary = table["vocabulary"].tobytes().decode().split("\n")
    plain = [word for word in vocabulary if word.isascii() and word.isalpha() and word.islower()]
    words = sorted({*plain, *(word + ending for word in plain[::20] for ending in ENDINGS)})
    theirs = sqlite3.connect(":memory:")
    theirs.execute("CREATE VIRTUAL TABLE texts USING fts5(text, tokenize='porter unicode61')")
    theirs.executemany("INSERT INTO texts (rowid, text) VALUES (?, ?)", enumerate(words))
    theirs.execute("CREATE VIRTUAL TABLE terms USING fts5vocab(texts, instance)")
    stems = {words[number]: term for term, number in theirs.execute("SELECT term, doc FROM terms")}
    theirs.close()
    different = {word for word in words if stem(word) != stems[word]}
    assert len(words) > 15_000
    assert different <= {"eed", "ies"}  # FTS5 leaves no letter of the one, and takes one too many of the other


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's the CATS' house.", ["it", "s", "the", "cat", "hous"]),
        ("C++, c# and node.js!", ["c", "c++", "c", "c#", "and", "node", "js", "node.js"]),
        ("Crème brûlée", ["creme", "brule"]),
        ("東京", ["東", "京", "東京"]),
        ("ok 😀😀", ["ok", "😀", "😀"]),
        ("\ud800 \0", []),
        ("x" * 70 + "ing", ["x" * 70 + "ing"]),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_no_two_words_of_the_vocabulary_share_a_hash() -> None:
    with np.load(TABLE_FILE, allow_pickle=False) as table:
        vocabulary = table["vocabulary"].tobytes().decode().split("\n")
    assert len({hash_of(word) for word in vocabulary}) == len(set(vocabulary))


async def place_of(place: Place, texts: list[str]) -> View:
    """Return a view of one place with *texts*."""
    async with place.open() as store:
        await store.put_many([item(text) for text in texts])
    connection = open_reader(place.file)
    try:
        [index] = Index(connection, 1, 128).places([1])
    finally:
        connection.close()
    return View([index], [index.existing(0)])


def by_hand(texts: list[str], word: str) -> list[float]:
    """Return the BM25 of one word in each text."""
    counts = [Counter(words_of(text)) for text in texts]
    lengths = [sum(count.values()) for count in counts]
    having = sum(word in count for count in counts)
    idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
    mean = sum(lengths) / len(lengths)
    return [
        idf * count[word] * (K1 + 1) / (count[word] + K1 * (1 - B + B * length / mean))
        for count, length in zip(counts, lengths, strict=True)
    ]


async def test_the_words_part_is_bm25(place: Place) -> None:
    dice = random.Random(2)
    vocabulary = ["kettle", "shed", "copper", "violin", "harbour"]
    texts = [" ".join(dice.choices(vocabulary, weights=[9, 5, 3, 2, 1], k=dice.randint(1, 30))) for _ in range(300)]
    view = await place_of(place, texts)
    words = [Word(word=stem(word), weight=weight) for word, weight in zip(vocabulary, (1, 1, 2, 0.5, 1), strict=True)]
    found = look_up(view, [*words, Word(word="nowhere")])
    rows, listed, _ = found.rows(np.arange(300, dtype=np.int32), 300)
    assert [word.word for word in listed if word] == [word.word for word in words]
    for row, word in zip(rows, words, strict=True):
        assert np.allclose(row, [word.weight * score for score in by_hand(texts, word.word)], rtol=1e-4)
    best = found.best(view, view.seen, 10)
    assert set(rows.sum(axis=0)[best]) == set(np.sort(rows.sum(axis=0))[-10:])


async def test_the_nearest_by_meaning_are_found_by_the_signs_of_their_vectors(
    place: Place, one_embedder: StaticEmbedder
) -> None:
    dice = random.Random(3)
    with np.load(TABLE_FILE, allow_pickle=False) as table:
        words = [word for word in table["vocabulary"].tobytes().decode().split("\n") if word.isalpha()]
    view = await place_of(place, [" ".join(dice.choices(words[:4000], k=8)) for _ in range(4000)])
    slots = np.arange(4000)
    for query in ("the king of france", "a small boat at sea", "music and children"):
        [vector] = one_embedder.embed([query])
        exact = set(np.argsort(-view.cosines(slots, vector))[:20].tolist())
        found = set(view.nearest(vector, view.seen, 20, 400).tolist())
        assert len(exact & found) >= 17, query


async def test_of_too_many_words_the_rare_ones_are_looked_up(place: Place) -> None:
    rare = [f"rare{number}" for number in range(WORDS + 50)]
    texts = ["common words here " * 2] * 500 + [" ".join(rare)]
    view = await place_of(place, texts)
    found = look_up(view, [Word(word=word) for word in words_of("common words here " + " ".join(rare))])
    assert len(found.words) == WORDS and all(word.word.startswith("rare") for word in found.words)
    rows, listed, _ = found.rows(np.arange(501, dtype=np.int32), 501)
    assert len(listed) == ROWS + 1 and listed[-1] is None
    assert rows[:, 500].all() and not rows[:, :500].any()


async def test_frequent_words_are_left_out_once_there_are_enough(place: Place) -> None:
    words = [chr(0x3B1 + number) for number in range(20)]  # of one letter each: quick to make a vector of
    texts = [" ".join(words)] * (POSTINGS // 15) + ["needle"]
    view = await place_of(place, texts)
    found = look_up(view, [Word(word=word) for word in [*words, "needl"]])
    assert len(found.slot) <= POSTINGS
    assert found.words[-1].word == "needl" and 10 < len(found.words) < 20
