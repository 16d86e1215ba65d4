"""Calls that sent a text to the memory and failed: nothing was kept of them, but their record holds the text.

An agent that names a wrong scope, waits for a person or calls too often sends the same text again. The later call makes
the item; when that is forgotten, the earlier ones go with it. Only what failed does: a call that did something stays
on record whatever it holds, or an agent could take it out by remembering the same words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from omni_mcp.contracts.events import RunEvent
from omni_mcp.contracts.memory import SERVER

TRIES_LIMIT = 1000  # events that hold the words
_SENT_AS = {"remember": "text", "share": "text", "revise": "text", "promote": "quote"}  # by tool: where a text stands
_LOOKED_AT_CHARS = 4000  # the log's index holds the beginning of a text
_WORDS = 6
_WORD = re.compile(r"\w+")


def words_for(text: str) -> str:
    """Return what to search the log for: the longest words of *text*; empty if it has none."""
    words = sorted(dict.fromkeys(_WORD.findall(text[:_LOOKED_AT_CHARS])), key=len, reverse=True)
    return " ".join(words[:_WORDS])


def calls_among(events: Sequence[RunEvent]) -> list[tuple[str, str]]:
    """Return (run, call) of each call that *events* ask for with a tool that writes."""
    asked = (event for event in events if event.kind == "tool_call" and event.call is not None)
    return list(dict.fromkeys((event.run, event.call or "") for event in asked if _name_of(event) in _SENT_AS))


def has_failed_with(call: Sequence[RunEvent], text: str) -> bool:
    """Whether the events of a *call* say that it sent exactly *text* to the memory and that nothing came of it."""
    payloads = {event.code or event.kind: event.payload or {} for event in call}
    arguments = payloads.get("tool_call", {}).get("arguments") or {}
    sent = [arguments.get(name) for name in set(_SENT_AS.values())]
    decided = payloads.get("policy_decided")  # none: refused before that, so that nothing ran
    to_memory = decided is None or decided.get("server") == SERVER
    failed = "tool_error" in payloads or bool(payloads.get("tool_result", {}).get("is_error"))
    return text in sent and to_memory and failed


def _name_of(asked: RunEvent) -> str:
    return str((asked.payload or {}).get("name", "")).removeprefix(f"{SERVER}__")
