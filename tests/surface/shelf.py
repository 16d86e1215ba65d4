"""A canary with many tools, and settings for the surface that a test is about."""

from __future__ import annotations

from typing import Any

from omni_mcp.config import ApprovalSettings, Settings
from omni_mcp.testing import Canary

SEARCH, CALL = "tools__search_tools", "tools__call_tool"
NOUNS = ("issue", "branch", "commit", "release", "label", "comment", "file", "folder", "user", "team")
VERBS = ("create", "list", "delete", "close", "merge", "rename", "watch", "archive", "copy", "show")


def settings(**surface: Any) -> Settings:
    """Settings whose `[surface]` is *surface*; nobody is kept waiting for a person."""
    return Settings.model_validate({"surface": surface, "approvals": ApprovalSettings(wait_s=0)})


def schema_of(*names: str) -> dict[str, Any]:
    """An input schema with one string for each name; nothing else fits."""
    properties = {name: {"type": "string"} for name in names}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def fill(canary: Canary, *, count: int = 100) -> None:
    """Offer *count* tools such as `create_issue` that say what they do."""
    for number in range(count):
        verb, noun, round_ = VERBS[number % 10], NOUNS[number // 10 % 10], number // 100
        name = f"{verb}_{noun}" + (f"_{round_}" if round_ else "")
        about = {"title": f"{verb} {noun}".title(), "description": f"{verb.title()} one {noun} of the repository."}
        canary.tool(name, schema=schema_of(f"{noun}_id"), definition=about)
