"""rank turns what is known about each candidate into one score, and says what the score is made of.

A candidate earns by the words of the question that it has (BM25), by the share of the question that these cover, and
by its meaning. In a conversation what a turn is about often stands in the turns around it; so a word that a neighbour
in the same session has counts for this turn as well, the less the further away it is, and once, wherever it stands.
Turns of few and common words seldom answer anything, so they earn less. Last, a turn of one whom the question names
earns a little more, and so does a turn that tells a time if the question asks for one, or is of a time that it names.
What each brings: decision 0012.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import bool_, float32, int32
from numpy.typing import NDArray

from omni_mcp.engines.memory.evidence import NOBODY, Evidence, Probe, Ranked
from omni_mcp.engines.memory.query import HINT_WEIGHT
from omni_mcp.engines.memory.query_times import told_in

WORDS = 0.5
COVERAGE = 0.5
MEANING = 0.5
ENTITY = 0.2  # to all whom the question names together; less, the more there is about them
TIME = 0.15  # of the rest, for words that tell a time if one is asked for
NAMED_TIME = 0.2  # of the rest, for what is of a time that the question names
SHORT = 0.3  # of its score a turn without words would lose
FULL_TURN = 4  # in words that nobody else has
FULL_TURN_WORDS = 20  # where words are not told apart
SPREAD_WORDS = 16  # of a query, the rarest: what neighbours are asked for

_Rows = NDArray[float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How much of a turn counts for its neighbour, for each one further, and how many there are to each side."""

    first: float
    further: float
    turns: int


WORDS_REACH = Reach(first=0.75, further=0.85, turns=5)
MEANING_REACH = Reach(first=0.75, further=0.85, turns=4)
ANSWER = 0.95  # of a question counts for the turn that follows it


def rank(evidence: Evidence) -> Ranked:
    """Return the score of each candidate and its parts, which add up to it."""
    hints = _hints(evidence)
    asked, idf = evidence.words[~hints], evidence.idf[~hints]
    words = WORDS * _to_one(asked)
    coverage = COVERAGE * _shares(asked, idf)
    meaning = MEANING * _spread(evidence.meaning)
    parts = {
        "words": words.sum(axis=0),
        "coverage": coverage.sum(axis=0),
        "meaning": meaning,
        "neighbour": _from_neighbours(evidence, _rarest(words + coverage, idf), WORDS_REACH)
        + _from_neighbours(evidence, meaning[None], MEANING_REACH),
    }
    parts["short"] = -_shortness(evidence) * _sum(parts)
    parts["time"] = _timeliness(evidence, hints) * _sum(parts)
    parts["entity"] = _entity(evidence)
    return Ranked(scores=_sum(parts), parts=parts)


def expand(evidence: Evidence, ranked: Ranked) -> Probe | None:
    """Return a second probe made of the best hits; None if one round is enough."""
    return None


def _sum(parts: dict[str, _Rows]) -> _Rows:
    total: _Rows = np.sum(list(parts.values()), axis=0, dtype=float32)
    return total


def _hints(evidence: Evidence) -> NDArray[bool_]:
    """Return which words only hint."""
    return np.array([word is not None and word.weight == HINT_WEIGHT for word in evidence.word_list], dtype=bool)


def _timeliness(evidence: Evidence, hints: NDArray[bool_]) -> _Rows:
    """Return which share of its score a candidate gets on top for telling a time that is asked for, or being of one."""
    told: _Rows = np.where((evidence.words[hints] > 0).any(axis=0), float32(TIME), float32(0))
    if evidence.probe.times:
        np.maximum(told, float32(NAMED_TIME) * told_in(evidence.probe.times, evidence.at_s), out=told)
    return told


def _shortness(evidence: Evidence) -> _Rows:
    """Return which share of its score a candidate loses: a turn of a session the more, the less it tells."""
    if evidence.rarity is None:
        filled = np.log1p(evidence.lengths) / np.log1p(FULL_TURN_WORDS)
    else:
        filled = evidence.rarity / FULL_TURN
    filled = np.minimum(filled, 1)
    return np.where(evidence.session == NOBODY, 0, SHORT * (1 - filled)).astype(float32)


def _to_one(words: _Rows) -> _Rows:
    """Return *words* so that the best candidate has 1 in all."""
    best = float32(words.sum(axis=0).max(initial=0))
    return words / best if best > 0 else np.zeros_like(words)


def _shares(words: _Rows, idf: _Rows) -> _Rows:
    """Return for each word and candidate which share of the question, by rarity, the word is where it stands."""
    total = float32(idf.sum())
    if total <= 0:
        return np.zeros_like(words)
    return np.where(words > 0, (idf / total).astype(float32)[:, None], float32(0))


def _spread(values: _Rows) -> _Rows:
    """Return *values* so that the best is 1 and the worst 0."""
    if not values.size:
        return values
    worst, best = values.min(), values.max()
    return (values - worst) / (best - worst) if best > worst else np.zeros_like(values)


def _rarest(rows: _Rows, idf: _Rows) -> _Rows:
    """Return the rows of the rarest words."""
    if len(rows) <= SPREAD_WORDS:
        return rows
    return rows[np.sort(np.argsort(-idf, kind="stable")[:SPREAD_WORDS])]


def _from_neighbours(evidence: Evidence, rows: _Rows, reach: Reach) -> _Rows:
    """Return what each candidate gets beyond its own *rows*: of each row, the most that a neighbour passes on."""
    most = rows
    for neighbour in (evidence.before, evidence.after):
        passed, share = rows, reach.first
        for _ in range(reach.turns):
            passed = float32(share) * _at(passed, neighbour)
            most = np.maximum(most, passed)
            share = reach.further
    if reach.turns:
        answered = float32(ANSWER) * _at(rows, np.where(_answers(evidence), evidence.before, int32(NOBODY)))
        most = np.maximum(most, answered)
    gained: _Rows = (most - rows).sum(axis=0)
    return gained


def _answers(evidence: Evidence) -> NDArray[bool_]:
    """Return which candidates follow a question and are none."""
    follows: NDArray[bool_] = np.append(evidence.question, False)[evidence.before]
    return follows & ~evidence.question


def _at(rows: _Rows, positions: NDArray[int32]) -> _Rows:
    """Return the columns of *rows* at *positions*, zeros where there is none."""
    padded = np.concatenate((rows, np.zeros((len(rows), 1), dtype=float32)), axis=1)
    taken: _Rows = padded[:, positions]
    return taken


def _entity(evidence: Evidence) -> _Rows:
    """Return a bonus for candidates about whom the question names, the smaller, the more it names and the more these
    are about."""
    bonus = np.zeros(len(evidence.subject), dtype=float32)
    for subject, _ in evidence.named:
        about = evidence.subject == subject
        bonus[about] = ENTITY / len(evidence.named) * (1 - about.mean())
    return bonus
