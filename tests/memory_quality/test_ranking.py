"""rank: from what is known about candidates to scores, and the words of a query."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from omni_mcp.engines.memory.embedder import StaticEmbedder
from omni_mcp.engines.memory.evidence import NOBODY, Evidence, Probe, Ranked, Word
from omni_mcp.engines.memory.query import HINT_WEIGHT, probe_of
from omni_mcp.engines.memory.ranking import rank

ODD_TEXTS = (
    "",
    "   ",
    "the of and",
    "c++",
    "a-b",
    '"',
    "NEAR(x y)",
    "'; DROP TABLE x",
    "🦉",
    "\0",
    "\ud800",
    "x" * 10_000,
)


def evidence_of(words: list[list[float]], *, hints: int = 0, **given: Any) -> Evidence:
    """Evidence with a row of *words* for each word, one session of turns in order, and long turns, unless given."""
    rows = np.array(words, dtype=np.float32)
    count = rows.shape[1]
    asked = [Word(word=f"w{number}") for number in range(len(words) - hints)]
    values: dict[str, Any] = {
        "probe": Probe(words=(), vector=None, text=""),
        "items": count,
        "words": rows,
        "word_list": (*asked, *(Word(word="h", weight=HINT_WEIGHT) for _ in range(hints))),
        "idf": np.ones(len(words), dtype=np.float32),
        "meaning": np.zeros(count, dtype=np.float32),
        "meaning_mean": 0.0,
        "whole": True,
        "lengths": np.full(count, 30, dtype=np.int32),
        "before": np.arange(count, dtype=np.int32) - 1,
        "after": np.array([*range(1, count), NOBODY], dtype=np.int32)[:count],
        "session": np.zeros(count, dtype=np.int32),
        "subject": np.full(count, NOBODY, dtype=np.int32),
        "named": (),
        "question": np.zeros(count, dtype=bool),
        "at_s": np.arange(count, dtype=np.float64),
        "importance": np.full(count, 0.5, dtype=np.float32),
        "wanted": np.ones(count, dtype=bool),
    }
    return Evidence(**(values | given))


def order_of(ranked: Ranked) -> list[int]:
    return [int(position) for position in np.argsort(-ranked.scores, kind="stable")]


def test_a_turn_beside_one_that_has_the_words_is_better_than_one_far_away() -> None:
    scores = rank(evidence_of([[3.0, 0, 0, 0, 0, 0, 0, 0]])).scores

    assert list(scores) == sorted(scores, reverse=True)
    assert scores[1] > 0
    assert scores[7] == 0


def test_nothing_passes_from_one_session_to_another() -> None:
    apart = np.array([NOBODY, NOBODY, 1], dtype=np.int32)
    ranked = rank(evidence_of([[3.0, 0, 0]], before=apart, after=np.array([NOBODY, 2, NOBODY], dtype=np.int32)))

    assert ranked.scores[0] > 0
    assert list(ranked.scores[1:]) == [0, 0]


def test_two_words_around_a_turn_count_more_than_the_same_word_twice() -> None:
    both = rank(evidence_of([[3.0, 0, 0], [0, 0, 3.0]])).scores[1]
    twice = rank(evidence_of([[3.0, 0, 3.0], [0, 0, 0]])).scores[1]

    assert both > twice


def test_an_answer_inherits_the_words_of_the_question_before_it() -> None:
    asked = np.array([False, True, False], dtype=bool)
    ranked = rank(evidence_of([[0, 3.0, 0]], question=asked))

    assert ranked.scores[2] > ranked.scores[0] > 0


def test_a_short_turn_loses_against_a_full_one_but_a_fact_without_a_session_does_not() -> None:
    lengths = np.array([2, 30], dtype=np.int32)
    apart = np.full(2, NOBODY, dtype=np.int32)
    turns = rank(evidence_of([[3.0, 3.0]], lengths=lengths, before=apart, after=apart))
    facts = rank(evidence_of([[3.0, 3.0]], lengths=lengths, before=apart, after=apart, session=apart))

    assert turns.scores[1] > turns.scores[0]
    assert facts.scores[1] == facts.scores[0]


def test_only_one_name_in_a_question_makes_its_turns_better() -> None:
    subject = np.array([0, 1], dtype=np.int32)
    one = rank(evidence_of([[1.0, 1.0]], subject=subject, named=((1, 1.0),)))
    two = rank(evidence_of([[1.0, 1.0]], subject=subject, named=((0, 1.0), (1, 1.0))))

    assert one.scores[1] > one.scores[0]
    assert two.scores[1] == two.scores[0]


def test_a_hint_lifts_what_fits_and_finds_nothing_alone() -> None:
    apart = np.full(3, NOBODY, dtype=np.int32)
    ranked = rank(evidence_of([[2.0, 2.0, 0], [0, 0.001, 0.001]], hints=1, before=apart, after=apart))

    assert ranked.scores[1] > ranked.scores[0] > 0
    assert ranked.scores[2] == 0


def test_parts_add_up_whatever_the_evidence() -> None:
    chance = np.random.default_rng(5)
    for words in (1, 3, 40):
        count = 50
        evidence = evidence_of(
            chance.random((words, count)).tolist(),
            meaning=chance.standard_normal(count).astype(np.float32),
            lengths=chance.integers(0, 40, count).astype(np.int32),
            question=chance.random(count) < 0.3,
            idf=chance.random(words).astype(np.float32),
        )
        ranked = rank(evidence)
        assert np.allclose(ranked.scores, sum(ranked.parts.values()), atol=1e-5)
        assert np.isfinite(ranked.scores).all()


@pytest.mark.parametrize("count", [0, 1])
def test_no_words_and_no_candidates_are_no_error(count: int) -> None:
    some = evidence_of([[0.0] * count])
    nothing = replace(some, words=some.words[:0], word_list=(), idf=some.idf[:0])

    assert not rank(some).scores.any()
    assert not rank(nothing).scores.any()


def test_the_same_evidence_gives_the_same_scores() -> None:
    evidence = evidence_of([[3.0, 0, 1.0, 2.0], [1.0, 1.0, 0, 0]])

    assert np.array_equal(rank(evidence).scores, rank(evidence).scores)
    assert order_of(rank(evidence)) == order_of(rank(evidence))


def test_a_question_looks_for_what_it_asks_about_and_not_for_how_it_asks() -> None:
    probe = probe_of("What did Ann say about the cellos?", StaticEmbedder())

    assert [word.word for word in probe.words] == ["ann", "sai", "cello"]


def test_a_question_for_a_time_hints_at_words_for_times_and_others_do_not() -> None:
    hinted = {word.word for word in probe_of("When did Ann move?", StaticEmbedder()).words if word.weight < 1}

    assert {"yesterdai", "week", "mai"} <= hinted
    assert all(word.weight == 1 for word in probe_of("Where did Ann move when young?", StaticEmbedder()).words)


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: ascii(text)[:20])
def test_any_text_is_a_query(text: str) -> None:
    probe = probe_of(text, StaticEmbedder())

    assert probe.text == text
    assert len({word.word for word in probe.words}) == len(probe.words)


def test_a_query_of_stop_words_alone_looks_for_those() -> None:
    assert [word.word for word in probe_of("To be or not to be", StaticEmbedder()).words] == ["to", "be", "or", "not"]
