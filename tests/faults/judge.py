"""What must be true of log and tool after any crash, decided from outside: promises 1, 4 and 11.

1. Write-ahead: whatever took effect has its call and its permission on record.
4. Exactly one outcome for each call; nothing ran twice; an outcome says only what was so.
11. The chain verifies.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.clients.running import Place
from tests.faults.recorder import PUBLIC_NAME, read_record
from tests.faults.talk import Reply

OUTCOMES = ("tool_result", "tool_error")


@dataclass(slots=True)
class Story:
    """What the log says of one call."""

    call: str
    mark: str
    gid: int = 0  # place of its first event in the whole log
    allowed: bool = False
    outcomes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def dispatched(self) -> bool:
        """Whether the outcome says that the tool ran, or may have."""
        [outcome] = self.outcomes
        return outcome["kind"] == "tool_result" or bool(outcome["payload"]["dispatched"])


def read_stories(place: Place) -> dict[str, Story]:
    """Read every call of the recorder from the log, by the commands that people use."""
    stories: dict[str, Story] = {}
    for run in place.run_json("runs", "list"):
        if run["kind"] == "gateway":
            continue  # the gateway's own life holds no call of the recorder
        for event in place.run_json("runs", "show", run["id"])["events"]:
            _note(stories, event)
    return stories


def _note(stories: dict[str, Story], event: dict[str, Any]) -> None:
    call, payload = str(event.get("call")), event["payload"]
    if event["kind"] == "tool_call" and payload["name"] == PUBLIC_NAME:
        stories[call] = Story(call, payload["arguments"]["mark"], event["gid"])
    elif call in stories:
        story = stories[call]
        if event["kind"] in OUTCOMES:
            story.outcomes.append(event)
        elif event.get("code") == "policy_decided" and payload["verdict"] == "allow":
            story.allowed = True


def judge(place: Place, record: Path, replies: Iterable[Reply]) -> tuple[list[str], dict[str, Story]]:
    """Return each broken promise, and the stories by mark that they were judged by.

    A gateway must have started again since the crash, so that recovery has run.
    """
    stories, effects = read_stories(place), read_record(record)
    broken = [
        *_write_ahead(stories, effects),
        *_one_outcome(stories, effects),
        *_replies_are_on_record(stories, effects, list(replies)),
        *_verified(place),
    ]
    return broken, {story.mark: story for story in stories.values()}


def _write_ahead(stories: dict[str, Story], effects: Sequence[tuple[str, str]]) -> Iterable[str]:
    for call, mark in effects:
        story = stories.get(call)
        if story is None:
            yield f"promise 1: {mark} took effect and its call {call} is not on record"
        elif not story.allowed:
            yield f"promise 1: {mark} took effect and no permission of {call} is on record"


def _one_outcome(stories: dict[str, Story], effects: Sequence[tuple[str, str]]) -> Iterable[str]:
    times = Counter(call for call, _ in effects)
    for call, count in times.items():
        if count != 1:
            yield f"promise 4: call {call} took effect {count} times"
    for story in stories.values():
        if len(story.outcomes) != 1:
            yield f"promise 4: call {story.call} ({story.mark}) has {len(story.outcomes)} outcomes"
            continue
        [outcome] = story.outcomes
        if outcome["kind"] == "tool_result" and not times[story.call]:
            yield f"promise 4: call {story.call} ({story.mark}) has a result and took no effect"
        if times[story.call] and not story.dispatched:
            yield f"promise 4: call {story.call} ({story.mark}) took effect and its outcome says that it did not run"


def _replies_are_on_record(
    stories: dict[str, Story], effects: Sequence[tuple[str, str]], replies: Sequence[Reply]
) -> Iterable[str]:
    """What a client was told is what is on record; an outcome is durable before the client sees it."""
    by_mark = {story.mark: story for story in stories.values()}
    marks = {mark for _, mark in effects}
    for reply in replies:
        story = by_mark.get(reply.mark)
        if reply.ok and (story is None or [event["kind"] for event in story.outcomes] != ["tool_result"]):
            yield f"promise 4: the client has the answer to {reply.mark} and the record has no result"
        if reply.code == "log_unavailable" and reply.mark in marks:
            yield f"promise 2: {reply.mark} was refused for want of a log and took effect"


def _verified(place: Place) -> Iterable[str]:
    end = place.end_of("audit", "verify", "--json")
    try:
        found = json.loads(end.stdout)
    except ValueError:
        yield f"promise 11: audit verify ended with {end.returncode} and printed no JSON: {end.stderr[-2000:]}"
        return
    if end.returncode != 0 or found["ok"] is not True:
        yield f"promise 11: audit verify ended with {end.returncode}: {found}"
