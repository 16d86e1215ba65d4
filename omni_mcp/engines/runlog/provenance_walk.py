"""A walk through the record: it follows each thing once, and tells where it stopped."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from omni_mcp.contracts.events import RunEvent
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.runlog.provenance import DEPTH, NEIGHBOURS, NODES, Node, Place, place_of
from omni_mcp.engines.runlog.provenance_reader import Sight, asked_of, outcome_of

ERASED = "its text was erased"
TOLD = "told above"
UNKNOWN = "calls name it, and no event on record says who left it"
TOO_DEEP = "not followed further"
LOOKS_FOR_S = 2.0  # one question holds one of two readers, and in a large log each step may take 20 ms


class Walk:
    """What both directions share: each thing is followed once, not too deep, and an answer ends."""

    def __init__(self, sight: Sight) -> None:
        self.sight = sight
        self._cut = False
        self._ends_s = time.monotonic() + LOOKS_FOR_S
        self._followed: set[str] = set()
        self._nodes = 0
        self._possible: deque[Callable[[], None]] = deque()

    @property
    def left_out(self) -> bool:
        """Whether there may be more than was found."""
        return self._cut or self.sight.cut

    def may_follow(self, node: Node, depth: int) -> bool:
        """Whether to go on behind *node*; if not, its note says why."""
        key = f"{node.kind} {node.id}"
        if key in self._followed:
            node.note = node.note or TOLD
            return False
        if depth >= DEPTH or time.monotonic() > self._ends_s:
            self._cut, node.note = True, node.note or TOO_DEEP
            return False
        self._followed.add(key)
        return True

    def later(self, work: Callable[[], None]) -> None:
        """Do *work*, which finds what is only possible, when everything that is exact was followed."""
        self._possible.append(work)

    def finish(self) -> None:
        """Do what was put off, and what that puts off."""
        while self._possible:
            self._possible.popleft()()

    def add(self, node: Node, step: Node | None) -> None:
        """Add *step* behind *node*, if there is one and there is room."""
        if step is None:
            return
        self._nodes += 1
        if self._nodes > NODES:
            self._cut = True
            return
        node.steps.append(step)

    def near(self, found: list[RunEvent]) -> list[RunEvent]:
        """Return as many neighbours as are named."""
        if len(found) > NEIGHBOURS:
            self._cut = True
        return found[:NEIGHBOURS]


def places_of(events: Sequence[RunEvent]) -> tuple[Place, ...]:
    """Return where *events* stand."""
    return tuple(place_of(event) for event in events)


def facts_of(events: Sequence[RunEvent]) -> JsonObject:
    """Return what a call asked for and how it ended, as its caller knows it."""
    asked, ended = asked_of(events), outcome_of(events)
    name = (asked.payload or {}).get("name") if asked else None
    if ended is None:
        return {"name": name, "outcome": "open"}
    told = ended.payload or {}
    answer = "erased" if ended.payload is None else "error" if told.get("is_error") else "answered"
    return {"name": name, "outcome": answer if ended.kind == "tool_result" else told.get("code", "erased")}
