"""What an event refers to by its content: the artifacts that a call left."""

from __future__ import annotations

from omni_mcp.contracts.events import RunEvent
from omni_mcp.contracts.json import JsonValue


def references_of(event: RunEvent) -> tuple[str, ...]:
    """Return the sha256 of each artifact that *event* says was left, in order; nothing once it is erased."""
    payload = event.payload
    if payload is None:
        return ()
    if event.kind == "artifact_ref":
        found: list[JsonValue] = [payload]
    elif event.kind == "tool_result":
        more = payload.get("artifacts")  # in a pack that somebody made it may be anything
        found = [payload.get("artifact"), *(more if isinstance(more, list | tuple) else ())]
    else:
        return ()
    named = [one.get("sha256") for one in found if isinstance(one, dict)]
    return tuple(dict.fromkeys(one for one in named if isinstance(one, str)))
