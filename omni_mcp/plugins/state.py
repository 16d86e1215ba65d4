"""Plugins: which are installed, which are on, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.plugins import EXECUTORS_GROUP, GROUPS, TOOLS_GROUP, PluginState
from omni_mcp.plugins.executors import PluginExecutors
from omni_mcp.plugins.found import Found
from omni_mcp.plugins.tools import PluginTools


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugins:
    """All plugins of one gateway, or of a command that looks at them. `executors` is None where none were opened."""

    found: Sequence[Found]
    enabled_tools: Sequence[str]
    enabled_executors: Sequence[str]
    tools: PluginTools
    executors: PluginExecutors | None = None

    def facts(self) -> list[JsonObject]:
        """Return a row for each plugin that is installed or enabled, by group and name."""
        enabled = {TOOLS_GROUP: self.enabled_tools, EXECUTORS_GROUP: self.enabled_executors}
        problems = {
            TOOLS_GROUP: self.tools.problems,
            EXECUTORS_GROUP: self.executors.problems if self.executors is not None else {},
        }
        rows: list[JsonObject] = []
        for group in GROUPS:
            installed = {found.name: found for found in self.found if found.group == group}
            for name in sorted({*installed, *enabled[group]}):
                errors = [str(problem) for problem in problems[group].get(name, ())]
                one = installed.get(name)
                rows.append(
                    {
                        "group": group, "name": name, "package": one.package if one else None,
                        "version": one.version if one else None,
                        "state": _state(name in enabled[group], one is not None, bool(errors)), "errors": errors,
                        "tools": self._tools_of(name) if group == TOOLS_GROUP else [],
                    }
                )  # fmt: skip
        return rows

    def _tools_of(self, name: str) -> list[str]:
        return [item["name"] for item in self.tools.items(name)] if name in self.tools.names else []


def _state(enabled: bool, installed: bool, broken: bool) -> PluginState:
    if not enabled:
        return "off"
    if not installed:
        return "missing"
    return "failed" if broken else "on"


def merged(rows: Iterable[JsonObject], live: Iterable[Mapping[str, object]]) -> list[JsonObject]:
    """Return *rows* with what a running gateway says of the same plugins, which tried to open them."""
    told = {(row.get("group"), row.get("name")): row for row in live}
    return [
        {**row, **{key: told[place][key] for key in ("state", "errors") if key in told[place]}}
        if row["state"] != "off" and (place := (row["group"], row["name"])) in told
        else row
        for row in rows
    ]
