"""Peer: what a server said of itself when the connection was made."""

from __future__ import annotations

from dataclasses import dataclass, field

from omni_mcp.contracts.call import Era
from omni_mcp.contracts.json import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One server, as agreed on. Its own words are for people; nothing is decided by them."""

    era: Era
    version: str
    capabilities: JsonObject = field(default_factory=dict)
    info: JsonObject = field(default_factory=dict)
    instructions: str = ""

    def has(self, capability: str, detail: str = "") -> bool:
        """Whether the server declared *capability*, with *detail* (such as `listChanged`) if that is named."""
        found = self.capabilities.get(capability)
        return isinstance(found, dict) and (not detail or found.get(detail) is True)
