"""What an event went into: the artifacts and memory items of its call, who named those, and what was asked after."""

from __future__ import annotations

from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.events import RunEvent
from omni_mcp.engines.runlog.provenance import NEIGHBOURS, Certainty, Node, Place, Story, place_of
from omni_mcp.engines.runlog.provenance_reader import Sight, asked_of, outcome_of
from omni_mcp.engines.runlog.provenance_walk import ERASED, Walk, facts_of, places_of
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.runlog.references import references_of

_SEEN = ("tool_result", "user_message", "assistant_message")  # what an asker can have read


def influence(log: LogReader, place: Place, *, principal: str | None = None) -> Story:
    """Return what came of one event, as far as *principal* may see it.

    Raises:
        NotFound: there is no such event, or it is in another's run: the same answer.
    """
    sight = Sight(log, principal)
    event = sight.event(*place)
    if event is None:
        raise NotFound("there is no such event on record")
    search = _Search(sight)
    root = search.root(event)
    search.finish()
    return Story(root=root, left_out=search.left_out)


class _Search(Walk):
    """One search forwards."""

    def root(self, event: RunEvent) -> Node:
        place = place_of(event)
        node = Node(kind="event", id=place.uri, how="", events=(place,), facts={"what": event.code or event.kind})
        if event.payload is None:
            node.note = ERASED
        if event.call is not None:
            self.may_follow(Node(kind="call", id=event.call, how=""), 0)
            ended = outcome_of(self.sight.call(event.call))
            if ended is not None and ended.seq > event.seq:
                self.add(node, Node(kind="event", id=place_of(ended).uri, how="ended by", events=(place_of(ended),)))
            self._of_call(node, event.call, 0)
        if event.kind == "run_created":
            for child in self.sight.children(event.run):
                self.add(node, Node(kind="run", id=child, how="began", events=(Place(child, 1),)))
        if event.code == "memory_written" and (item := (event.payload or {}).get("item")):
            self.add(node, self.item(item, 1))
        if event.kind in _SEEN:
            self.later(lambda: self._asked_after(node, event, 0))
        elif event.call is not None and (ended := outcome_of(self.sight.call(event.call))) is not None:
            self.later(lambda: self._asked_after(node, ended, 0))
        return node

    def call(self, call: str, how: str, certainty: Certainty, depth: int) -> Node | None:
        events = self.sight.call(call)
        asked, ended = asked_of(events), outcome_of(events)
        if asked is None:
            return None
        places = places_of([asked, *([ended] if ended else [])])
        node = Node(kind="call", id=call, how=how, certainty=certainty, events=places, facts=facts_of(events))
        if asked.payload is None:
            node.note = ERASED
        if self.may_follow(node, depth):
            self._of_call(node, call, depth)
            if certainty == "exact" and ended is not None:
                self.later(lambda: self._asked_after(node, ended, depth))
        return node

    def artifact(self, sha256: str, depth: int) -> Node:
        node = Node(kind="artifact", id=sha256, how="left", events=places_of(self.sight.makers(sha256)))
        if self.may_follow(node, depth):
            for asked in self.sight.askers(sha256):
                if asked.call is not None:
                    self.add(node, self.call(asked.call, "named in the arguments of", "exact", depth + 1))
            for writing in self.sight.written_from(sha256, "artifact"):
                if item := (writing.payload or {}).get("item"):
                    self.add(node, self.item(item, depth + 1))
        return node

    def item(self, item: str, depth: int) -> Node:
        node = Node(kind="memory", id=item, how="remembered as", events=places_of(self.sight.writings(item)))
        if self.may_follow(node, depth):
            for asked in self.sight.askers(item):
                if asked.call is not None:
                    self.add(node, self.call(asked.call, "named in the arguments of", "exact", depth + 1))
            for answer in self.sight.answers_with(item):
                if answer.call is not None:
                    self.add(node, self.call(answer.call, "carried by the answer of", "exact", depth + 1))
        return node

    def _of_call(self, node: Node, call: str, depth: int) -> None:
        """Add what a call left: artifacts, and memory items that name it as their source."""
        events = self.sight.call(call)
        left = {sha256: None for event in events for sha256 in references_of(event)}
        for sha256 in left:
            self.add(node, self.artifact(sha256, depth + 1))
        written = [event for event in events if event.code == "memory_written"]
        made = [found for event in events for found in self.sight.promoted_from(place_of(event))]
        items = [*written, *self.sight.written_from(call, "call"), *made]
        for item in dict.fromkeys((event.payload or {}).get("item") for event in items):
            if item is not None:
                self.add(node, self.item(item, depth + 1))

    def _asked_after(self, node: Node, seen: RunEvent, depth: int) -> None:
        """Add the calls of the same run that were asked when *seen* had been seen."""
        for asked in self.near(self.sight.later(seen.run, seen.seq, ("tool_call",), NEIGHBOURS + 1)):
            if asked.call is not None:
                self.add(node, self.call(asked.call, "seen before the call", "possible", depth + 1))
