"""What the gateway says of itself in `initialize` and `server/discover`."""

from __future__ import annotations

from dataclasses import dataclass

from omni_mcp.contracts.json import JsonObject
from omni_mcp.protocol.eras import META_SERVER, MODERN_VERSIONS, at_least

DISCOVER_TTL_MS = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """Name, version and instructions of this server."""

    name: str
    version: str
    title: str = ""
    instructions: str = ""

    def wire(self) -> JsonObject:
        """The `serverInfo` object."""
        title = {"title": self.title} if self.title else {}
        return {"name": self.name, "version": self.version, **title}

    def stamp(self) -> JsonObject:
        """The `_meta` that every modern result carries."""
        return {META_SERVER: self.wire()}


def capabilities(version: str) -> JsonObject:
    """Return the capabilities in *version*. They are the same for every profile: what is empty today may fill up."""
    found: JsonObject = {
        "tools": {"listChanged": True},
        "resources": {"listChanged": True, "subscribe": True},
        "prompts": {"listChanged": True},
        "logging": {},
    }
    if at_least(version, "2025-03-26"):
        found["completions"] = {}
    return found


def initialize_result(info: ServerInfo, version: str) -> JsonObject:
    """Answer `initialize` in *version*."""
    more = {"instructions": info.instructions} if info.instructions else {}
    return {"protocolVersion": version, "capabilities": capabilities(version), "serverInfo": info.wire(), **more}


def discover_result(info: ServerInfo) -> JsonObject:
    """Answer `server/discover`."""
    more = {"instructions": info.instructions} if info.instructions else {}
    return {
        "resultType": "complete",
        "supportedVersions": list(MODERN_VERSIONS),
        "capabilities": capabilities(MODERN_VERSIONS[-1]),
        "ttlMs": DISCOVER_TTL_MS,
        "cacheScope": "private",
        "_meta": info.stamp(),
        **more,
    }
