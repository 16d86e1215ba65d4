"""The events of one call without their places in their runs, so that calls of two runs can be compared one by one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from omni_mcp.contracts.json import JsonObject, JsonValue

PLACES = frozenset({"seq", "parent"})
NOT_STEPS = frozenset({"egress_connection", "attempt_failed"})  # how an answer was come by is not what it says
NOT_COUNTED: Mapping[str, tuple[str, ...]] = {"policy_decided": ("request",)}
_ID = re.compile(r"id:\d+")


def bare_steps(events: Iterable[JsonObject], volatile: Mapping[str, Sequence[str]]) -> list[JsonObject]:
    """Return comparable events of one call, without the *volatile* fields and with ids numbered from the first on.

    Args:
        events: as `comparable` gives them.
        volatile: fields of the payload, with dots between their parts, by kind or code of the event.
    """
    ids: dict[str, str] = {}
    found: list[JsonObject] = []
    for event in events:
        if event["code"] in NOT_STEPS:
            continue
        bare = {name: value for name, value in event.items() if name not in PLACES}
        for path in volatile.get(event["code"] or event["kind"], ()):
            bare["payload"] = _without(bare["payload"], path.split("."))
        found.append({name: _numbered(_unnamed(value), ids) for name, value in sorted(bare.items())})
    return found


def golden_calls(events: Iterable[JsonObject]) -> list[list[JsonObject]]:
    """Return the events of a golden run call by call, in the order in which the calls were made."""
    calls: dict[str, list[JsonObject]] = {}
    for event in events:
        if (call := event.get("call")) is not None and (call in calls or event["kind"] == "tool_call"):
            calls.setdefault(call, []).append(event)
    return list(calls.values())


def _without(value: JsonValue, path: Sequence[str]) -> JsonValue:
    if not isinstance(value, dict) or path[0] not in value:
        return value
    if len(path) == 1:
        return {name: inner for name, inner in value.items() if name != path[0]}
    return {**value, path[0]: _without(value[path[0]], path[1:])}


def _unnamed(payload: JsonValue) -> JsonValue:
    """Questions of a round in order, without their names: a server that began anew counts them anew."""
    if not isinstance(payload, dict) or payload.get("code") not in ("round_asked", "round_answered"):
        return payload
    return {
        name: list(value.values()) if name in ("requests", "responses") and isinstance(value, dict) else value
        for name, value in payload.items()
    }


def _numbered(value: JsonValue, ids: dict[str, str]) -> JsonValue:
    if isinstance(value, str):
        return _ID.sub(lambda found: ids.setdefault(found[0], f"id:{len(ids) + 1}"), value)
    if isinstance(value, dict):
        return {name: _numbered(inner, ids) for name, inner in sorted(value.items())}
    if isinstance(value, list):
        return [_numbered(inner, ids) for inner in value]
    return value
