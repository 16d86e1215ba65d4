"""What each call of a run was made with: the versions of everything that decided how it came out."""

from __future__ import annotations

from collections.abc import Iterable

from omni_mcp.contracts.events import OUTCOME_KINDS, RunEvent
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject


def calls_of(events: Iterable[RunEvent]) -> list[JsonObject]:
    """Return one object for each call, in the order in which they were made; what nobody recorded is None.

    `model` is what the client reported of its model under `io.omni-mcp/model`, verbatim: provider, id, params, seed.
    `sealed` says whether a body is there to replay it from; `attempts` how often it was tried, or would have been.
    """
    found: dict[str, JsonObject] = {}
    for event in events:
        payload = event.payload or {}
        if event.call is None:
            continue
        if event.kind == "tool_call":
            found[event.call] = _asked(event, payload)
        elif event.call in found and event.code == "policy_decided":
            found[event.call] |= _decided(payload)
        elif event.call in found and event.code == "attempt_failed":
            found[event.call]["attempts"] += 1
        elif event.call in found and event.kind in OUTCOME_KINDS:
            found[event.call]["outcome"] = payload.get("code") or event.kind
            found[event.call]["isolation"] = payload.get("isolation")
    return list(found.values())


def _asked(event: RunEvent, payload: JsonObject) -> JsonObject:
    return {
        "call": event.call, "seq": event.seq, "at": iso_time(event.at_ns), "name": payload.get("name"),
        "model": payload.get("model"), "sealed": event.erased_by is None and any(bytes.fromhex(event.body_digest)),
        "definition": None, "executor": None, "sandbox_profile": None, "policy": None, "gateway": None,
        "attempts": 1, "outcome": None, "isolation": None,
    }  # fmt: skip


def _decided(payload: JsonObject) -> JsonObject:
    known = payload.get("definition_digest")
    profile = payload.get("sandbox_profile")
    return {
        "definition": {
            "server": payload.get("server"), "name": payload.get("tool"), "version": payload.get("tool_version"),
            "digest": known,
        } if known else None,
        "executor": {"binding": payload.get("executor"), "version": payload.get("gateway_version")} if known else None,
        "sandbox_profile": {"name": profile, "digest": payload.get("sandbox_profile_digest")} if profile else None,
        "policy": payload.get("policy_version"),
        "gateway": payload.get("gateway_version"),
    }  # fmt: skip
