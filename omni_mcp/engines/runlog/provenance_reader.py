"""What provenance asks the log: who left an artifact, who names something, what else happened in a run.

With a principal, runs of others are not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.events import OUTCOME_KINDS, Kind, RunEvent
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.engines.runlog.provenance import Place
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.runlog.references import references_of

MENTIONS = 1000  # events that name something, newest first
NAMES = 32  # things that the arguments of one call name
_SHA256 = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_ID = re.compile(r"(?<![0-9a-f-])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-f-])")


class Sight:
    """One look at the log, for one question."""

    def __init__(self, log: LogReader, principal: str | None) -> None:
        self._log = log
        self._principal = principal
        self._owners: dict[str, bool] = {}
        self._mentions: dict[str, list[RunEvent]] = {}
        self.cut = False  # something is mentioned so often that not every event was looked at

    def sees(self, run: str) -> bool:
        """Whether there is such a run, and the one who asks may see it."""
        if run not in self._owners:
            try:
                owner = self._log.get_run(run)["principal"]
            except NotFound:
                self._owners[run] = False
            else:
                self._owners[run] = self._principal is None or owner == self._principal
        return self._owners[run]

    def event(self, run: str, seq: int) -> RunEvent | None:
        """Return one event."""
        found = self._log.events(run, after=seq - 1, limit=1) if seq > 0 and self.sees(run) else []
        return found[0] if found and found[0].seq == seq else None

    def call(self, call: str) -> list[RunEvent]:
        """Return the events of a call in order, or nothing."""
        found = self._log.find_call(call)
        return found if found and self.sees(found[0].run) else []

    def mentions(self, word: str) -> list[RunEvent]:
        """Return the events whose texts hold *word*, or all words of it, oldest first."""
        if word not in self._mentions:
            found = self._log.search(word, principal=self._principal, limit=MENTIONS)
            self._mentions[word] = found[::-1]
            self.cut = self.cut or len(found) == MENTIONS
        return self._mentions[word]

    def makers(self, sha256: str) -> list[RunEvent]:
        """Return the events that say that an artifact was left."""
        return [event for event in self.mentions(sha256) if sha256 in references_of(event)]

    def erasures(self, sha256: str) -> list[RunEvent]:
        """Return the events that say that an artifact was erased."""
        return [event for event in self.mentions(sha256) if event.code == "erased"]

    def writings(self, item: str) -> list[RunEvent]:
        """Return the events that say that a memory item was written."""
        found = [event for event in self.mentions(item) if event.code == "memory_written"]
        return [event for event in found if (event.payload or {}).get("item") == item]

    def written_from(self, word: str, field: str) -> list[RunEvent]:
        """Return the events of memory items whose source has *word* in *field* (`call` or `artifact`)."""
        found = [event for event in self.mentions(word) if event.code == "memory_written"]
        return [event for event in found if ((event.payload or {}).get("source") or {}).get(field) == word]

    def promoted_from(self, place: Place) -> list[RunEvent]:
        """Return the events of memory items that were made of an event."""
        found = [event for event in self.mentions(f"{place.run} promoted") if event.code == "memory_written"]
        wanted = place.run, place.seq
        return [event for event in found if _promoted(event) == wanted]

    def askers(self, word: str) -> list[RunEvent]:
        """Return the `tool_call` events whose name or arguments name *word*."""
        return [
            event
            for event in self.mentions(word)
            if event.kind == "tool_call" and event.payload is not None and word in _asked_text(event.payload)
        ]

    def answers_with(self, item: str) -> list[RunEvent]:
        """Return the outcomes of calls of the memory that carry an item."""
        found = [event for event in self.mentions(item) if event.kind == "tool_result" and event.call]
        return [event for event in found if server_of(self.call(event.call or "")) == "memory"]

    def children(self, run: str) -> list[str]:
        """Return the runs that a run began, oldest first."""
        return [child for child in self._log.child_runs(run) if self.sees(child)]

    def earlier(self, run: str, seq: int, kinds: Sequence[Kind], limit: int) -> list[RunEvent]:
        """Return events of *kinds* before *seq*, the newest first."""
        return self._log.events_of_kind(run, kinds, before=seq, newest_first=True, limit=limit)

    def later(self, run: str, seq: int, kinds: Sequence[Kind], limit: int) -> list[RunEvent]:
        """Return events of *kinds* behind *seq*, the oldest first."""
        return self._log.events_of_kind(run, kinds, after=seq, limit=limit)


def _promoted(event: RunEvent) -> tuple[str | None, int | None]:
    source = (event.payload or {}).get("source") or {}
    return source.get("from_run"), source.get("from_seq")


def server_of(events: Sequence[RunEvent]) -> str | None:
    """Return the server that a call was decided for."""
    for event in events:
        if event.code == "policy_decided" and event.payload is not None:
            found = event.payload.get("server")
            return found if isinstance(found, str) else None
    return None


def asked_of(events: Sequence[RunEvent]) -> RunEvent | None:
    """Return the `tool_call` of a call's events."""
    return next((event for event in events if event.kind == "tool_call"), None)


def outcome_of(events: Sequence[RunEvent]) -> RunEvent | None:
    """Return how a call ended; None while it is open."""
    return next((event for event in reversed(events) if event.kind in OUTCOME_KINDS), None)


def hashes_in(value: JsonValue) -> list[str]:
    """Return what looks like the sha256 of an artifact in a JSON value."""
    return _found(_SHA256, value)


def ids_in(value: JsonValue) -> list[str]:
    """Return what looks like an id of the gateway in a JSON value."""
    return _found(_ID, value)


def _found(pattern: re.Pattern[str], value: JsonValue) -> list[str]:
    found: dict[str, None] = {}
    for text in _texts(value):
        for match in pattern.findall(text):
            found[match] = None
            if len(found) == NAMES:
                return list(found)
    return list(found)


def _texts(value: JsonValue) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _asked_text(payload: JsonObject) -> str:
    return "\n".join(_texts([payload.get("name"), payload.get("arguments")]))
