"""Events as their own caller sees them: rules, requests and details of a decision are for operators."""

from __future__ import annotations

import re
from collections.abc import Sequence

from omni_mcp.contracts.events import RunEvent
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.engines.runlog.shown import shown_payload

PAGE_BYTES = 512 * 1024  # an answer over the output limit would be kept as an artifact: a copy that outlives an erasure


def for_caller(event: RunEvent) -> JsonObject:
    """Return an event as its own caller sees it. A missing tool and a forbidden one leave the same view."""
    shown = event.model_dump(include={"run", "seq", "kind", "code", "call", "parent", "actor"})
    shown["at"] = iso_time(event.at_ns)
    shown["payload"] = None if event.payload is None else shown_payload(event.kind, event.code, event.payload)
    return shown


def fitting(values: Sequence[JsonObject]) -> tuple[list[JsonObject], bool]:
    """Return the values from the first on that fit into one answer, and whether some were left out."""
    kept: list[JsonObject] = []
    room = PAGE_BYTES
    for value in values:
        room -= len(canonical(value))
        if room < 0 and kept:
            return kept, True
        kept.append(value)
    return kept, False


def words_of(query: str) -> list[str]:
    """Return the words that must be in what a search shows."""
    return re.findall(r"\w+", query.casefold())


def holds(event: JsonObject, words: Sequence[str]) -> bool:
    """Whether what the caller may see holds the words: the index also holds what only operators see."""
    text = canonical(event).decode().casefold()
    return all(word in text for word in words)
