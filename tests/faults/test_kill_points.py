"""kill -9 of the real gateway at seven points of a call; the log and the tool's own record are judged from outside.

Source: the architecture's promises 1 (write-ahead), 4 (exactly one outcome) and 11 (the chain verifies).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.faults.field import POINTS, ROADS, Field, Road, new_field
from tests.faults.judge import judge, read_stories
from tests.faults.recorder import PUBLIC_NAME, read_record
from tests.faults.talk import call_http


@dataclass(frozen=True, slots=True)
class Expected:
    """What may be so after a crash: effects, what the record calls the outcome, whether the client has an answer."""

    effects: int
    outcomes: tuple[str | None, ...]
    answered: bool = False


EXPECTED = {
    "before_intent": Expected(0, (None,)),
    "intent_unsynced": Expected(0, (None, "not dispatched", "maybe dispatched")),
    "intent_durable": Expected(0, ("maybe dispatched",)),
    "dispatched": Expected(1, ("maybe dispatched",)),
    "result_received": Expected(1, ("maybe dispatched",)),
    "result_durable": Expected(1, ("tool_result",)),
    "replied": Expected(1, ("tool_result",), answered=True),
}


@pytest.fixture
def field() -> Iterator[Field]:
    with new_field() as field:
        yield field


def outcome_of(field: Field, mark: str) -> str | None:
    story = next((story for story in read_stories(field.place).values() if story.mark == mark), None)
    if story is None:
        return None
    [event] = story.outcomes
    if event["kind"] == "tool_result":
        return "tool_result"
    assert event["payload"]["code"] == "outcome_unknown"
    return "maybe dispatched" if event["payload"]["dispatched"] else "not dispatched"


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_each_point_of_a_call_over_http_leaves_the_truth_on_record(field: Field, point: str) -> None:
    check_crash(field, point, "http")


@pytest.mark.slow
@pytest.mark.parametrize("road", [road for road in ROADS if road != "http"])
@pytest.mark.parametrize("point", ["intent_durable", "dispatched", "replied"])
def test_a_kill_leaves_the_truth_on_record_by_every_road(field: Field, point: str, road: Road) -> None:
    check_crash(field, point, road)


def check_crash(field: Field, point: str, road: Road) -> None:
    expected = EXPECTED[point]
    replies = field.crash(point, 1, road, ["only"])
    assert [reply.ok for reply in replies] == [expected.answered]

    with field.serving() as again:  # recovery has run before it serves
        assert judge(field.place, field.record, replies) == []
        assert len(read_record(field.record)) == expected.effects, "nothing is run again after a crash"
        assert outcome_of(field, "only") in expected.outcomes
        assert call_http(again, PUBLIC_NAME, "after").ok, "the next call is served"
        assert judge(field.place, field.record, replies) == []


def test_a_client_behind_the_shim_hears_that_the_outcome_is_unknown(field: Field) -> None:
    [reply] = field.crash("dispatched", 1, "stdio", ["only"])
    assert reply.code == "outcome_unknown"


def test_calls_beside_the_crashing_one_are_judged_alike(field: Field) -> None:
    replies = field.crash("result_received", 3, "http", [f"m{n}" for n in range(6)])
    with field.serving():
        assert judge(field.place, field.record, replies) == []


def test_the_judge_finds_an_effect_that_is_not_on_record_and_a_second_one(field: Field) -> None:
    """The judge can fail: what it must find is put there by hand."""
    with field.serving() as running:
        reply = call_http(running, PUBLIC_NAME, "one")
        [(call, mark)] = read_record(field.record)
        field.record.write_text(f"{call} {mark}\n{call} {mark}\nunknown-call two\n")
        found = judge(field.place, field.record, [reply])
    assert [text.split(":")[0] for text in found] == ["promise 1", "promise 4"]
