"""Why there is an artifact: the calls that left it, what they were asked with, and what was seen before them."""

from __future__ import annotations

from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.events import Kind, RunEvent
from omni_mcp.engines.runlog.provenance import NEIGHBOURS, Certainty, Node, Place, Story, place_of
from omni_mcp.engines.runlog.provenance_reader import (
    Sight,
    asked_of,
    hashes_in,
    ids_in,
    outcome_of,
    server_of,
)
from omni_mcp.engines.runlog.provenance_walk import ERASED, UNKNOWN, Walk, facts_of, places_of
from omni_mcp.engines.runlog.reader import LogReader


def why(log: LogReader, sha256: str, *, principal: str | None = None) -> Story:
    """Return what led to an artifact, as far as *principal* may see it.

    Raises:
        NotFound: nothing on record has left it, or another's run has: the same answer.
    """
    search = _Search(Sight(log, principal))
    root = search.artifact(sha256, "", "exact", 0)
    if root is None and search.sight.askers(sha256):
        root = Node(kind="artifact", id=sha256, how="", note=UNKNOWN)
    if root is None:
        raise NotFound("there is no such artifact on record")
    search.finish()
    return Story(root=root, left_out=search.left_out)


class _Search(Walk):
    """One search backwards."""

    def artifact(self, sha256: str, how: str, certainty: Certainty, depth: int) -> Node | None:
        makers, erasures = self.sight.makers(sha256), self.sight.erasures(sha256)
        if not makers and not erasures:
            return None
        node = Node(kind="artifact", id=sha256, how=how, certainty=certainty, events=places_of(makers))
        if not self.may_follow(node, depth):
            return node
        for maker in makers:
            if maker.call is not None:
                self.add(node, self.call(maker.call, "left by", "exact", depth + 1))
        for erasure in erasures:
            place = place_of(erasure)
            self.add(node, Node(kind="event", id=place.uri, how="erased by", events=(place,), note=ERASED))
        return node

    def call(self, call: str, how: str, certainty: Certainty, depth: int, *, neighbours: bool = True) -> Node | None:
        """Return a call and where what it was asked with came from; *neighbours* also what was seen before it."""
        events = self.sight.call(call)
        asked, ended = asked_of(events), outcome_of(events)
        if asked is None:
            return None
        node = Node(
            kind="call", id=call, how=how, certainty=certainty, events=places_of([asked, *([ended] if ended else [])]),
            facts=facts_of(events),
        )  # fmt: skip
        if asked.payload is None:
            node.note = ERASED
        if not self.may_follow(node, depth):
            return node
        node.steps.append(
            Node(kind="request", id=place_of(asked).uri, how="asked by", events=(place_of(asked),),
                 facts={"principal": asked.actor})
        )  # fmt: skip
        self._named(node, asked, depth)
        self._reached(node, events)
        if ended is not None and ended.payload is not None and server_of(events) == "memory":
            own = {(event.payload or {}).get("item") for event in events if event.code == "memory_written"}
            for item in [item for item in ids_in(ended.payload.get("result")) if item not in own]:
                self.add(node, self.item(item, "its answer carries", depth + 1))
        if neighbours:
            self.later(lambda: self._seen_before(node, asked, depth))
        return node

    def item(self, item: str, how: str, depth: int) -> Node | None:
        writings = self.sight.writings(item)
        if not writings:
            return None
        node = Node(kind="memory", id=item, how=how, events=places_of(writings))
        if not self.may_follow(node, depth):
            return node
        for writing in writings:
            if writing.call is not None:
                self.add(node, self.call(writing.call, "written by", "exact", depth + 1))
            source = (writing.payload or {}).get("source") or {}
            if source.get("from_run") and source.get("from_seq"):
                self.add(node, self._event(Place(source["from_run"], source["from_seq"]), depth))
            if sha256 := source.get("artifact"):
                self.add(node, self.artifact(sha256, "made of", "exact", depth + 1))
        return node

    def _event(self, place: Place, depth: int) -> Node | None:
        """Return what an item was promoted from: the call of the event, or the event itself where it is of none."""
        found = self.sight.event(*place)
        if found is None:
            return None
        if found.call is not None:
            return self.call(found.call, "made of the answer of", "exact", depth + 1)
        note = ERASED if found.payload is None else ""
        return Node(kind="event", id=place.uri, how="made of", events=(place,), note=note, facts={"what": _what(found)})

    def _named(self, node: Node, asked: RunEvent, depth: int) -> None:
        """Add what the call's name and arguments name: artifacts, memory items, runs."""
        if asked.payload is None:
            return
        told = [asked.payload.get("name"), asked.payload.get("arguments")]
        for sha256 in hashes_in(told):
            self.add(node, self.artifact(sha256, "its arguments name", "exact", depth + 1))
        for name in ids_in(told):
            found = self.item(name, "its arguments name", depth + 1)
            if found is None and name != asked.run and self.sight.sees(name):
                found = Node(kind="run", id=name, how="its arguments name", events=(Place(name, 1),))
            self.add(node, found)

    def _reached(self, node: Node, events: list[RunEvent]) -> None:
        """Add the hosts that the call was connected to."""
        for event in events:
            told = event.payload or {}
            if event.code == "egress_connection" and told.get("verdict") == "open":
                host = f"{told['host']}:{told['port']}"
                self.add(node, Node(kind="host", id=host, how="fetched from", events=(place_of(event),)))

    def _seen_before(self, node: Node, asked: RunEvent, depth: int) -> None:
        """Add what the asker had seen in this run: answers, and what a person had said."""
        kinds: tuple[Kind, ...] = ("tool_result", "user_message")
        for event in self.near(self.sight.earlier(asked.run, asked.seq, kinds, NEIGHBOURS + 1)):
            if event.kind == "user_message":
                self.add(node, _message(event))
            elif event.call is not None:
                self.add(
                    node, self.call(event.call, "asked after the answer of", "possible", depth + 1, neighbours=False)
                )


def _message(event: RunEvent) -> Node:
    note = ERASED if event.payload is None else ""
    place = place_of(event)
    return Node(kind="message", id=place.uri, how="asked after", certainty="possible", events=(place,), note=note)


def _what(event: RunEvent) -> str:
    return event.code or event.kind
