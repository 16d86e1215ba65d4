"""Generated conversations of two people over many months, and questions about them with the turns that answer.

The same seed gives the same conversations. What makes them hard is on purpose: a question rarely uses the word of the
turn that answers it, details are told a turn or two later and mostly with pronouns, both people live through the same
kinds of things, and things come up again without the detail.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import yaml

Category = Literal["single", "temporal", "multi-hop", "open", "adversarial"]
CATEGORIES: tuple[Category, ...] = ("single", "temporal", "multi-hop", "open", "adversarial")

HAPPENINGS = 0.8  # a session, for each of the two
TALKS = 4  # scenes of small talk a session, less one for each happening
WORDINGS_FILE = Path(__file__).parent / "conversations.yaml"
COMES_UP_AGAIN = 0.15  # in each later session
SAME_WORD = 0.8  # of the questions, which use the word that the turn has
SAID_AGAIN = 0.65  # of the details, which name the thing once more
MENTIONED = 0.5  # of the news, which name the kind of thing
STARTED = datetime(2024, 1, 8, 18, 30, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one of them said."""

    key: str
    text: str
    subject: str
    session: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, and the keys of the turns that answer it."""

    text: str
    evidence: tuple[str, ...]
    category: Category


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """All turns in order, and the questions about them."""

    name: str
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Topic:
    """One kind of happening; see the file."""

    noun: str
    all_of: str
    would: str
    tells: list[str]
    asks: list[str]
    details: list[str]
    later: list[str]
    what: list[str]
    when: list[str]
    things: list[list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wordings:
    """All that can be said and asked."""

    topics: list[_Topic]
    talk: list[str]
    reactions: list[str]
    times: list[str]
    names: list[str]
    mentions: list[str]
    openings: list[str]


@dataclass(slots=True, kw_only=True)
class _Happening:
    """Something that happens to one of them; where it was told is filled in while the turns are written."""

    topic: _Topic
    thing: list[str]
    person: str
    other: str
    told: str = ""
    detailed: str = ""


@dataclass(slots=True)
class _Writing:
    """The turns so far."""

    name: str
    turns: list[Turn] = field(default_factory=list)
    session: int = 0
    at: datetime = STARTED

    def begin_session(self, at: datetime) -> None:
        self.session += 1
        self.at = at

    def say(self, person: str, text: str) -> str:
        """Add a turn; returns its key."""
        key = f"{self.name}:{self.session}:{len(self.turns)}"
        self.turns.append(
            Turn(key=key, text=f"{person}: {text}", subject=person, session=f"session {self.session}",
                 at=self.at.isoformat())
        )  # fmt: skip
        self.at += timedelta(seconds=50)
        return key


def conversations(seed: int, *, count: int = 10, sessions: int = 28) -> list[Conversation]:
    """Return *count* conversations of about 22 turns a session, and questions about them."""
    content: dict[str, Any] = yaml.safe_load(WORDINGS_FILE.read_text(encoding="utf-8"))
    wordings = _Wordings(**{**content, "topics": [_Topic(**topic) for topic in content["topics"]]})
    return [_Writer(wordings, seed * 1000 + number).write(f"c{number}", sessions) for number in range(count)]


_Line = tuple[str, str, _Happening | None, str]  # who, what, about what, and which turn of it


class _Writer:
    """Writes one conversation."""

    def __init__(self, wordings: _Wordings, seed: int) -> None:
        self._w = wordings
        self._chance = random.Random(seed)

    def write(self, name: str, sessions: int) -> Conversation:
        pair = self._chance.sample(self._w.names, 2)
        happenings = self._happenings(pair, sessions)
        plan: list[list[_Happening]] = [[] for _ in range(sessions)]
        for happening in happenings:
            plan[self._chance.randrange(sessions)].append(happening)
        writing = _Writing(name)
        before: list[_Happening] = []
        for number, today in enumerate(plan):
            writing.begin_session(STARTED + timedelta(days=11 * number + self._chance.randrange(6)))
            scenes = [self._scene(happening) for happening in today]
            scenes += [self._again(happening) for happening in before if self._chance.random() < COMES_UP_AGAIN]
            scenes += [self._talk(pair) for _ in range(max(1, TALKS - len(today)))]
            self._chance.shuffle(scenes)
            for scene in scenes:
                _play(writing, scene)
            before = (before + today)[-8:]
        questions = tuple(self._questions(happenings, pair))
        return Conversation(name=name, turns=tuple(writing.turns), questions=questions)

    def _happenings(self, pair: Sequence[str], sessions: int) -> list[_Happening]:
        """Return what happens to both; the same thing never happens twice."""
        found: list[_Happening] = []
        left = [(topic, self._chance.sample(topic.things, len(topic.things))) for topic in self._w.topics]
        for person, other in (pair, pair[::-1]):
            for _ in range(round(HAPPENINGS * sessions)):
                topic, things = self._chance.choice([each for each in left if each[1]])
                found.append(_Happening(topic=topic, thing=things.pop(), person=person, other=other))
        return found

    def _scene(self, happening: _Happening) -> list[_Line]:
        """Return how a happening is told: the news, a question, the detail, and what the other one says to it."""
        chance, topic, (thing, _, detail) = self._chance, happening.topic, happening.thing
        me, you = happening.person, happening.other
        news = _said(chance.choice(topic.tells), v=thing, when=chance.choice(self._w.times))
        if chance.random() < MENTIONED:
            news += " " + chance.choice(self._w.mentions).format(noun=topic.noun)
        told = _said(chance.choice(topic.details), d=detail)
        if chance.random() < SAID_AGAIN:
            told = _said(chance.choice(self._w.openings), v=_bare(thing)) + " " + told
        lines: list[_Line] = [(me, news, happening, "told")]
        if chance.random() < 0.3:
            lines.append(self._reaction(you, me))
        lines += [(you, chance.choice(topic.asks), None, ""), (me, told, happening, "detailed")]
        lines.append(self._reaction(you, me))
        if chance.random() < 0.5:
            lines.append((me, chance.choice(self._w.talk), None, ""))
        return lines

    def _again(self, happening: _Happening) -> list[_Line]:
        """Return how a happening comes up once more, without its detail."""
        said = _said(self._chance.choice(happening.topic.later), v=_bare(happening.thing[0]))
        return [(happening.person, said, None, ""), self._reaction(happening.other, happening.person)]

    def _reaction(self, person: str, to: str) -> _Line:
        return person, self._chance.choice(self._w.reactions).format(n=to), None, ""

    def _talk(self, pair: Sequence[str]) -> list[_Line]:
        """Return four turns about nothing in particular."""
        first = self._chance.randrange(2)
        said = self._chance.sample(self._w.talk, 4)
        return [(pair[(first + turn) % 2], text, None, "") for turn, text in enumerate(said)]

    def _questions(self, happenings: Sequence[_Happening], pair: Sequence[str]) -> Iterator[Question]:
        for each in happenings:
            thing = _bare(each.thing[0]) if self._chance.random() < SAME_WORD else each.thing[1]
            what, when = (self._chance.choice(each.topic.what), self._chance.choice(each.topic.when))
            asked, wrong = what.format(p=each.person, a=thing), what.format(p=each.other, a=thing)
            yield Question(text=asked, evidence=(each.detailed,), category="single")
            yield Question(text=when.format(p=each.person, a=thing), evidence=(each.told,), category="temporal")
            if self._chance.random() < 0.5:
                yield Question(text=wrong, evidence=(each.detailed,), category="adversarial")
        for person in pair:
            for topic in self._w.topics:
                told = tuple(each.told for each in happenings if each.person == person and each.topic is topic)
                if len(told) > 1:
                    yield Question(text=topic.all_of.format(p=person), evidence=told, category="multi-hop")
                if told:
                    yield Question(text=topic.would.format(p=person), evidence=told, category="open")


def _play(writing: _Writing, scene: Sequence[_Line]) -> None:
    for person, text, happening, part in scene:
        key = writing.say(person, text)
        if happening is not None:
            setattr(happening, part, key)


def _bare(thing: str) -> str:
    """Return *thing* without the word it begins with, if that is `a`, `my` or `the`."""
    first, _, rest = thing.partition(" ")
    return rest if first in ("a", "my", "the") else thing


def _said(text: str, **words: str) -> str:
    """Fill in *words* and begin with a capital letter."""
    filled = text.format(**words)
    return filled[:1].upper() + filled[1:]
