"""kill -9 of the real gateway at seven points of a call; the log and the tool's own record are judged from outside.

Source: the architecture's promises 1 (write-ahead), 4 (exactly one outcome) and 11 (the chain verifies).
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.faults.field import POINTS, ROADS, Road, new_field
from tests.faults.judge import Story, judge
from tests.faults.recorder import PUBLIC_NAME, read_record
from tests.faults.talk import Reply, call_http


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


CRASHES: list[tuple[str, Road]] = [(point, "http") for point in POINTS] + [
    ("dispatched", road) for road in ROADS if road != "http"
]
FEW: list[tuple[str, Road]] = [("intent_durable", "http"), ("dispatched", "http"), ("result_durable", "http")]
ALL = pytest.param(CRASHES, id="every point", marks=pytest.mark.long)
BESIDE = [f"beside-{number}" for number in range(6)]


@dataclass(slots=True)
class Aftermath:
    """What one home looks like after all crashes, one after the other, and one call more."""

    crashes: list[tuple[str, Road]]
    replies: dict[str, Reply]
    stories: dict[str, Story]
    effects: list[str]
    broken: list[str]


def mark_of(point: str, road: Road) -> str:
    return f"{point}-{road}"


@pytest.fixture(scope="module", params=[pytest.param(FEW, id="three points"), ALL])
def aftermath(request: pytest.FixtureRequest) -> Aftermath:
    """Each start after a crash is the recovery from it: starting once more for each would double the time."""
    replies: list[Reply] = []
    with new_field() as field:
        for point, road in request.param:
            replies += field.crash(point, 1, road, [mark_of(point, road)])
        if request.param == CRASHES:
            replies += field.crash("result_received", 3, "http", BESIDE)
        with field.serving() as running:
            replies.append(call_http(running, PUBLIC_NAME, "after"))
            broken, stories = judge(field.place, field.record, replies)
        effects = [mark for _, mark in read_record(field.record)]
    return Aftermath(request.param, {reply.mark: reply for reply in replies}, stories, effects, broken)


def outcome_of(story: Story | None) -> str | None:
    if story is None:
        return None
    [event] = story.outcomes
    if event["kind"] == "tool_result":
        return "tool_result"
    assert event["payload"]["code"] == "outcome_unknown"
    return "maybe dispatched" if event["payload"]["dispatched"] else "not dispatched"


def test_a_kill_at_each_point_of_a_call_leaves_the_truth_on_record(aftermath: Aftermath) -> None:
    for point, road in aftermath.crashes:
        expected, mark = EXPECTED[point], mark_of(point, road)
        assert aftermath.replies[mark].ok is expected.answered, mark
        assert aftermath.effects.count(mark) == expected.effects, f"{mark}: nothing is run a second time"
        assert outcome_of(aftermath.stories.get(mark)) in expected.outcomes, mark


def test_no_promise_is_broken_by_any_of_the_crashes(aftermath: Aftermath) -> None:
    assert aftermath.broken == []


def test_the_next_call_is_served_and_follows_every_recovered_outcome(aftermath: Aftermath) -> None:
    assert aftermath.replies["after"].ok
    after = aftermath.stories["after"].gid
    for mark, story in aftermath.stories.items():
        if mark != "after":
            assert story.outcomes[0]["gid"] < after, mark


@pytest.mark.parametrize("aftermath", [ALL], indirect=True)
def test_a_client_behind_the_shim_hears_that_the_outcome_is_unknown(aftermath: Aftermath) -> None:
    assert aftermath.replies[mark_of("dispatched", "stdio")].code == "outcome_unknown"


@pytest.mark.parametrize("aftermath", [ALL], indirect=True)
def test_calls_beside_the_crashing_one_have_one_outcome_each(aftermath: Aftermath) -> None:
    asked = [mark for mark in BESIDE if mark in aftermath.stories]
    assert len(asked) >= 3, "the third result was received, so three were asked"
    assert all(len(aftermath.stories[mark].outcomes) == 1 for mark in asked)


def test_the_judge_finds_an_effect_that_is_not_on_record_and_a_second_one() -> None:
    """The judge can fail: what it must find is put there by hand."""
    with new_field() as field, field.serving() as running:
        reply = call_http(running, PUBLIC_NAME, "one")
        [(call, mark)] = read_record(field.record)
        field.record.write_text(f"{call} {mark}\n{call} {mark}\nunknown-call two\n")
        found, _ = judge(field.place, field.record, [reply])
    assert [text.split(":")[0] for text in found] == ["promise 1", "promise 4"]
