"""The static table and the vectors that it gives."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from omni_mcp.engines.memory.embedder import DIMENSIONS, TABLE_FILE, StaticEmbedder, read_table
from omni_mcp.engines.memory.wordpiece import WordPieces

TABLE_SHA256 = "36c7201cbf1f97734647575cb786c5b6aff168b023b953b764f15bb9aff67e9c"
VOCABULARY = 30_522
ODD_TEXTS = (
    "",
    " ",
    "\0",
    "\ud800",
    "🦉",
    "漢字かな",
    "a" * 100_000,
    "x " * 50_000,
    "'; DROP TABLE items; --",
    "\u0301",
)


@pytest.fixture(scope="module")
def embedder() -> StaticEmbedder:
    return StaticEmbedder()


def test_the_table_is_the_one_that_the_script_made() -> None:
    """Another table needs another name of the embedder, and this digest."""
    assert hashlib.sha256(TABLE_FILE.read_bytes()).hexdigest() == TABLE_SHA256


def test_the_table_has_a_vector_for_each_entry_and_a_notice_beside_it() -> None:
    table = read_table(TABLE_FILE)

    assert table.vectors.shape == (VOCABULARY, DIMENSIONS)
    assert table.vectors.dtype == np.int8
    assert table.scale.shape == (VOCABULARY, 1)
    assert TABLE_FILE.stat().st_size < 4_000_000
    assert "Apache License, Version 2.0" in (TABLE_FILE.parent / "NOTICE").read_text()


def test_texts_about_the_same_are_nearer_than_others(embedder: StaticEmbedder) -> None:
    dog, puppy, tax = embedder.embed(["We adopted a dog.", "My puppy is asleep.", "The tax office sent a letter."])

    assert dog @ puppy > dog @ tax + 0.2
    assert dog @ puppy > puppy @ tax + 0.2


def test_words_that_say_nothing_move_a_vector_little(embedder: StaticEmbedder) -> None:
    plain, wordy = embedder.embed(["cello lessons", "and so it was that I had the cello lessons"])

    assert plain @ wordy > 0.8


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: ascii(text)[:20])
def test_any_text_has_a_vector_of_length_one_or_none(embedder: StaticEmbedder, text: str) -> None:
    [vector] = embedder.embed([text])

    assert vector.shape == (DIMENSIONS,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) or not vector.any()


def test_a_text_has_the_same_vector_alone_and_among_others(embedder: StaticEmbedder) -> None:
    among = embedder.embed(["", "a cello", *(["noise"] * 3000), "a cello"])

    assert not among[0].any()
    assert np.array_equal(embedder.embed(["a cello"])[0], among[1])
    assert np.allclose(among[1], among[-1], atol=1e-6)


def test_no_texts_give_no_rows(embedder: StaticEmbedder) -> None:
    assert embedder.embed([]).shape == (0, DIMENSIONS)


def test_the_table_is_not_read_before_the_first_text(tmp_path: Path) -> None:
    late = StaticEmbedder(tmp_path / "missing.npz")

    assert (late.dimensions, late.name) == (DIMENSIONS, StaticEmbedder().name)
    with pytest.raises(FileNotFoundError):
        late.embed(["now"])


def test_words_are_cut_into_the_longest_pieces_that_there_are() -> None:
    pieces = WordPieces(["un", "##believ", "##able", "unbel", "!", "cafe"])

    assert pieces.numbers_of("Unbelievable!") == [4]
    assert pieces.numbers_of("CAFÉ !") == [5, 4]
    assert WordPieces(["un", "##believ", "##able"]).numbers_of("unbelievable") == [0, 1, 2]
