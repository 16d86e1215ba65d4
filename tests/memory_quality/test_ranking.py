"""rank: from what is known about candidates to scores, and the words of a query."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pytest

from omni_mcp.engines.memory.embedder import StaticEmbedder
from omni_mcp.engines.memory.evidence import NOBODY, Evidence, Probe, Ranked, Word
from omni_mcp.engines.memory.query import HINT_WEIGHT, probe_of
from omni_mcp.engines.memory.query_times import times_in
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
    "in " * 3_000,
    "1 January 0000, 99 May, 2099-99-99, 999 years ago",
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


def test_a_name_in_a_question_makes_its_turns_better_and_two_names_make_each_of_both_a_little_better() -> None:
    subject = np.array([0, 1, 2], dtype=np.int32)
    one = rank(evidence_of([[1.0, 1.0, 1.0]], subject=subject, named=((1, 1.0),)))
    two = rank(evidence_of([[1.0, 1.0, 1.0]], subject=subject, named=((0, 1.0), (1, 1.0))))

    assert one.scores[1] > one.scores[0] == one.scores[2]
    assert two.scores[0] == two.scores[1] > two.scores[2]
    assert two.parts["entity"][1] == one.parts["entity"][1] / 2


def test_a_name_that_most_items_are_about_says_little() -> None:
    few = rank(evidence_of([[1.0] * 4], subject=np.array([0, 1, 1, 1], dtype=np.int32), named=((0, 1.0),)))
    most = rank(evidence_of([[1.0] * 4], subject=np.array([0, 0, 0, 1], dtype=np.int32), named=((0, 1.0),)))
    all_ = rank(evidence_of([[1.0] * 4], subject=np.zeros(4, dtype=np.int32), named=((0, 1.0),)))

    assert few.parts["entity"][0] > most.parts["entity"][0] > 0
    assert not all_.parts["entity"].any()


def test_a_turn_of_rare_words_loses_less_than_a_longer_one_of_common_ones() -> None:
    lengths = np.array([5, 30], dtype=np.int32)
    rarity = np.array([4.0, 0.5], dtype=np.float32)
    counted = rank(evidence_of([[3.0, 3.0]], lengths=lengths, rarity=rarity)).parts["short"]
    not_counted = rank(evidence_of([[3.0, 3.0]], lengths=lengths)).parts["short"]

    assert counted[0] == 0 > counted[1]
    assert not_counted[0] < 0 == not_counted[1]


def test_what_is_of_the_time_that_a_question_names_is_better_and_what_was_told_soon_after_a_little() -> None:
    at_s = np.array([seconds(2026, 4, 20), seconds(2026, 5, 20), seconds(2026, 6, 3), seconds(2026, 6, 20)])
    apart = np.full(4, NOBODY, dtype=np.int32)
    probe = Probe(words=(), vector=None, text="", times=times_in("what broke in May 2026?", 0))
    scores = rank(evidence_of([[1.0] * 4], at_s=at_s, before=apart, after=apart, probe=probe)).scores

    assert scores[1] > scores[2] > scores[0] == scores[3]


TIMES: dict[str, list[tuple[int, ...]]] = {
    "in May 2026": [(2026, 5)],
    "in may": [(2025, 5), (2026, 5)],
    "on 8 May 2026": [(2026, 5, 8)],
    "on the 8th of May, 2026": [(2026, 5, 8)],
    "on May 8th": [(2025, 5, 8), (2026, 5, 8)],
    "on 2026-05-08": [(2026, 5, 8)],
    "during 2025": [(2025,)],
    "last summer": [(2025, 6), (2025, 7), (2025, 8), (2026, 6), (2026, 7), (2026, 8)],
    "in the winter of 2026": [(2026, 12), (2026, 1), (2026, 2)],
    "yesterday": [(2026, 5, 12)],
    "last month": [(2026, 4)],
    "this year": [(2026,)],
    "last week": [(2026, 5, day) for day in range(4, 11)],
    "two days ago": [(2026, 5, 11)],
    "before March 2026 or in April 2025": [(2026, 3), (2025, 4)],
}


@pytest.mark.parametrize("text", TIMES)
def test_times_in_a_question_hold_on_their_days_and_no_other(text: str) -> None:
    """Asked on Wednesday, 13 May 2026."""
    days = np.arange(date(2025, 1, 1).toordinal(), date(2027, 1, 1).toordinal()) - date(1970, 1, 1).toordinal()
    held = np.any([time.hold(days) for time in times_in(f"What did Ann say {text}?", seconds(2026, 5, 13))], axis=0)
    parts = [date.fromordinal(int(day) + date(1970, 1, 1).toordinal()).timetuple()[:3] for day in days[held]]
    expected = [day.timetuple()[:3] for day in all_days() if any(day.timetuple()[: len(w)] == w for w in TIMES[text])]

    assert parts == expected


@pytest.mark.parametrize(
    "text",
    [
        "May I ask?",
        "they march on",
        "an august man",
        "45 May 2026x",
        "in 1200",
        "2026-13-40",
        "c++ 11",
        "a fall",
        "\u0661 ago",
    ],
)
def test_what_is_no_time_holds_on_no_day(text: str) -> None:
    days = np.arange(0, 40_000)

    assert not any(time.hold(days).any() for time in times_in(text, 0))


def test_a_weekday_holds_on_that_day_of_each_week() -> None:
    [time] = times_in("What did Ann say on Thursday?", 0)

    assert list(np.flatnonzero(time.hold(np.arange(15)))) == [0, 7, 14]  # 1 January 1970 was a Thursday


def seconds(year: int, month: int, day: int) -> float:
    return datetime(year, month, day, 12, tzinfo=UTC).timestamp()


def all_days() -> list[date]:
    return [date.fromordinal(day) for day in range(date(2025, 1, 1).toordinal(), date(2027, 1, 1).toordinal())]


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
