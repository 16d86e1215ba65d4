"""Metadata under our prefix is the gateway's word: a server's result speaks in its own name."""

from __future__ import annotations

from omni_mcp.contracts.json import JsonObject

OUR_PREFIX = "io.omni-mcp/"


def in_its_own_name(result: JsonObject) -> JsonObject:
    """Return *result* without metadata under our prefix, which clients take for the gateway's word."""
    meta = result.get("_meta")
    if not isinstance(meta, dict) or not any(key.startswith(OUR_PREFIX) for key in meta):
        return result
    return {**result, "_meta": {key: value for key, value in meta.items() if not key.startswith(OUR_PREFIX)}}
