"""Where something came from, and what it went into: derived from the events alone, each step with its events.

An edge is *exact* where the record says so: a call left an artifact, arguments name it, a memory item names its event.
It is *possible* where somebody has only had the occasion: an answer that its reader had seen before they asked for
something else. The two are never blurred: a path is exact only if all of it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from omni_mcp.contracts.events import RunEvent
from omni_mcp.contracts.json import JsonObject

Certainty = Literal["exact", "possible"]
StepKind = Literal["artifact", "call", "memory", "event", "run", "host", "message", "request"]

DEPTH = 12
PATHS = 200
NODES = 2000  # of one answer, so that a log in which everything names everything ends too
NEIGHBOURS = 50  # calls of the same run that may have had to do with one


class Place(NamedTuple):
    """An event of a run."""

    run: str
    seq: int

    @property
    def uri(self) -> str:
        return f"run://{self.run}/{self.seq}"


@dataclass(slots=True, kw_only=True)
class Node:
    """One step: what it is, how it follows from the step before, and the events that say so.

    `how` reads from the step before to this one. `note` says why nothing follows where something might: erased, told
    already elsewhere in the answer, too deep.
    """

    kind: StepKind
    id: str
    how: str
    certainty: Certainty = "exact"
    events: tuple[Place, ...] = ()
    facts: JsonObject = field(default_factory=dict)
    note: str = ""
    steps: list[Node] = field(default_factory=list)

    def as_json(self) -> JsonObject:
        """This step alone."""
        shown: JsonObject = {
            "kind": self.kind, "id": self.id, "how": self.how, "certainty": self.certainty,
            "events": [{"run": place.run, "seq": place.seq, "uri": place.uri} for place in self.events],
        }  # fmt: skip
        return shown | self.facts | ({"note": self.note} if self.note else {})


@dataclass(slots=True, kw_only=True)
class Story:
    """A root and everything that was found of it. `left_out` says that there is more than an answer holds."""

    root: Node
    left_out: bool = False

    def paths(self) -> Iterator[list[Node]]:
        """Yield each way from the root to an end, the first found first."""
        yield from _ways([self.root])

    def as_json(self, *, limit: int = PATHS) -> JsonObject:
        """Return the root and at most *limit* paths; a path begins with the root's neighbour."""
        shown: list[JsonObject] = []
        left_out = self.left_out
        for way in self.paths():
            if len(way) < 2:
                continue
            if len(shown) == limit:
                left_out = True
                break
            sure = all(node.certainty == "exact" for node in way)
            steps = [node.as_json() for node in way[1:]]
            shown.append({"certainty": "exact" if sure else "possible", "steps": steps})
        return {"of": self.root.as_json(), "paths": shown, "more": left_out}


def _ways(begun: list[Node], *, exact: bool = True) -> Iterator[list[Node]]:
    """Yield the ways that go on from *begun*; where all is exact so far and only possible steps follow, that too."""
    steps = begun[-1].steps
    if not steps or (exact and all(node.certainty == "possible" for node in steps)):
        yield begun
    for node in steps:
        yield from _ways([*begun, node], exact=exact and node.certainty == "exact")


def place_of(event: RunEvent) -> Place:
    """Return where *event* stands."""
    return Place(event.run, event.seq)
