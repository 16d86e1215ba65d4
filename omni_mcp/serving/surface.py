"""Surface: what a client is given as its list of tools, all of them or a search, and that both lead to the same calls.

A surface is another list, not another road: it decides what is shown and nothing of what is allowed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.contracts.ports import Policy
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.cost import tool_tokens
from omni_mcp.protocol.methods import NAME_LIMIT
from omni_mcp.serving.calls import Asked
from omni_mcp.serving.search_server import CALL_TOOL, OWN

Mode = Literal["auto", "full", "search"]

OWN_CLIENT = "omni-mcp-tools"  # the command line, which prints what the whole list costs
COSTS_KEPT = 20_000
SLICE = 32  # definitions measured before other clients get a turn; 0.1 ms each

Named = Sequence[tuple[str, Entry]]


class SurfaceRule(Protocol):
    """What the operator wants of one profile: a mode, what `auto` lets a list cost, and modes by client name."""

    @property
    def mode(self) -> Mode: ...

    @property
    def token_budget(self) -> int: ...

    @property
    def clients(self) -> Mapping[str, Mode]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """What one client gets. `token_budget` is what a full list may cost where the mode is `auto`."""

    mode: Mode = "full"
    token_budget: int = 0

    @property
    def key(self) -> str:
        """Tells lists apart that differ by their surface."""
        return f"{self.mode}:{self.token_budget}" if self.mode == "auto" else self.mode


FULL = Surface()


def surface_for(rule: SurfaceRule, client: str) -> Surface:
    """Return what a client that calls itself *client* gets under *rule*; the name is a wish, not an identity."""
    mode = "full" if client == OWN_CLIENT else rule.clients.get(client, rule.mode)
    return Surface(mode=mode, token_budget=rule.token_budget)


class Surfaces:
    """Chooses surfaces, and turns calls of `call_tool` into calls of what they name.

    Args:
        rule_of: the rule of a profile; None serves every client the full list.
    """

    def __init__(self, policy: Policy, rule_of: Callable[[str], SurfaceRule] | None = None) -> None:
        self._policy = policy
        self._rule_of = rule_of
        self._costs: OrderedDict[tuple[str, str], int] = OrderedDict()

    def wanted(self, profile: str, client: str) -> Surface:
        """Return what a client of *profile* is to get."""
        return surface_for(self._rule_of(profile), client) if self._rule_of is not None else FULL

    async def shown(self, surface: Surface, principal: Principal, tools: Named) -> Named:
        """Return what is listed where *tools* are all that *principal* may see: they, or search and call.

        `auto` never leaves a principal without a way to its tools: who may not use both, gets the full list.
        """
        if surface.mode == "full" or (surface.mode == "auto" and await self._fits(tools, surface.token_budget)):
            return tools
        own = [pair for pair, may in zip(OWN.items(), self._visible(principal, list(OWN.values())), strict=True) if may]
        return own if surface.mode == "search" or len(own) == len(OWN) else tools

    def turned(self, asked: Asked) -> Asked:
        """Return *asked* as a call of the tool itself where it is a well-formed `call_tool`, else as it is.

        Whoever may not use `call_tool` is refused it by name, like any tool: its call stays what it is.
        """
        if asked.method != "tools/call" or asked.params.get("name") != CALL_TOOL:
            return asked
        inner = self.meant(asked.session.principal, CALL_TOOL, asked.params.get("arguments"))
        return asked if inner is None else replace(asked, params={**asked.params, **inner})

    def meant(self, principal: Principal, name: str, arguments: JsonValue) -> JsonObject | None:
        """Return `name` and `arguments` of the call that a call of `call_tool` means; None where it means itself."""
        inner = _inner(arguments) if name == CALL_TOOL else None
        return inner if inner is not None and self._visible(principal, [OWN[CALL_TOOL]])[0] else None

    def _visible(self, principal: Principal, entries: list[Entry]) -> list[bool]:
        return self._policy.visible(action="call_tool", principal=principal, entries=entries)

    async def _fits(self, tools: Named, budget: int) -> bool:
        total = 0
        for number, (name, entry) in enumerate(tools, 1):
            total += self._cost(name, entry)
            if total > budget:
                return False
            if number % SLICE == 0:
                await asyncio.sleep(0)
        return True

    def _cost(self, name: str, entry: Entry) -> int:
        key = (name, entry.digest)
        cost = self._costs.get(key)
        if cost is None:
            cost = self._costs[key] = tool_tokens(name, entry.definition)
            while len(self._costs) > COSTS_KEPT:
                self._costs.popitem(last=False)
        return cost


def _inner(arguments: JsonValue) -> JsonObject | None:
    """Return name and arguments of the call that is meant, or None where that is not said as it must be."""
    if not isinstance(arguments, dict) or not arguments.keys() <= {"name", "arguments"}:
        return None
    name, inner = arguments.get("name"), arguments.get("arguments", {})
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LIMIT or not isinstance(inner, dict):
        return None
    return {"name": name, "arguments": inner}
