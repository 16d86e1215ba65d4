"""`search_tools` and `call_tool`: two tools of the gateway's own that stand in for a long list.

`search_tools` is an ordinary call: the policy decides it, it is on record, and it finds only what its caller could be
allowed. `call_tool` never runs. The edge turns a well-formed call of it into a call of the tool that it names, before
anything is recorded or decided; what is left is a malformed one, and it is refused on record like any other.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence

from omni_mcp.contracts.call import Answer, Call, Principal
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.manifest import Labels, Limits
from omni_mcp.contracts.ports import Catalog, Policy
from omni_mcp.contracts.tool import CallKind, Entry
from omni_mcp.engines.catalog.names import public_name
from omni_mcp.engines.catalog.search import ToolIndex
from omni_mcp.protocol.methods import NAME_LIMIT

SERVER = "tools"
SEARCH_TOOLS = public_name(SERVER, "search_tools")
CALL_TOOL = public_name(SERVER, "call_tool")

FOUND_LIMIT = 20
FOUND_BYTES = 128 * 1024  # of definitions in one answer; what does not fit is named without its schema
INDEXES_KEPT = 16  # profiles of projects
SLICE = 16  # tools asked of the policy at once
TURN_S = 0.005  # then other clients get theirs
SHOWN = ("title", "description", "inputSchema", "annotations")
HARMLESS = Labels(read_only=True, destructive=False, egress=False, reads_private=False, reads_untrusted=False)

_SEARCH: JsonObject = {
    "name": "search_tools",
    "title": "Search tools",
    "description": "Find tools by words for what they do, such as `create issue` or `read file`. Returns the "
    f"definitions of those that fit best. Call one of them with `{CALL_TOOL}`.",
    "inputSchema": {
        "type": "object",
        "properties": {
            "query": {"type": "string", "minLength": 1, "maxLength": 500},
            "limit": {"type": "integer", "minimum": 1, "maximum": FOUND_LIMIT, "default": 5},
        },
        "required": ["query"],
        "additionalProperties": False,
    },
    "annotations": {"readOnlyHint": True, "destructiveHint": False, "openWorldHint": False},
}
_CALL: JsonObject = {
    "name": "call_tool",
    "title": "Call a tool",
    "description": f"Call a tool that `{SEARCH_TOOLS}` found: its `name`, and `arguments` that fit its inputSchema.",
    "inputSchema": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": NAME_LIMIT},
            "arguments": {"type": "object", "default": {}},
        },
        "required": ["name"],
        "additionalProperties": False,
    },
    "annotations": {"readOnlyHint": False, "destructiveHint": True, "openWorldHint": True},
}


def _entry(definition: JsonObject) -> Entry:
    """Neither tool does anything by itself, whatever the hints say of what is called through one."""
    return Entry(
        kind="tool", server=SERVER, name=definition["name"], definition=definition, version="1.0.0",
        binding="inproc_safe", labels=HARMLESS, limits=Limits(timeout_s=10.0, concurrency=64), side_effects="none",
    )  # fmt: skip


OWN: dict[str, Entry] = {SEARCH_TOOLS: _entry(_SEARCH), CALL_TOOL: _entry(_CALL)}


class SearchableCatalog:
    """Port `Catalog`: another one, and the two tools in every profile. They can be named everywhere, and are listed
    where a surface lists them; an entry of another server that has the name of one of them in a profile with identity
    names cannot be named there."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    @property
    def version(self) -> str:
        """As the other's: the two tools only change with the package."""
        return self._catalog.version

    def find(self, profile: str, kind: CallKind, name: str, *, project: str = "") -> Entry | None:
        """As the port."""
        own = OWN.get(name) if kind == "tool" else None
        return own or self._catalog.find(profile, kind, name, project=project)

    def entries(self, profile: str, kind: str, *, project: str = "") -> list[tuple[str, Entry]]:
        """As the port, without the two tools."""
        found = self._catalog.entries(profile, kind, project=project)
        return [pair for pair in found if pair[0] not in OWN] if kind == "tool" else found

    def get(self, kind: str, server: str, name: str) -> Entry | None:
        """As the port."""
        own = OWN.get(public_name(server, name)) if kind == "tool" and server == SERVER else None
        return own or self._catalog.get(kind, server, name)


class SearchExecutor:
    """Answers `search_tools` from what the caller's profile lists, as far as the policy lets the caller see it."""

    def __init__(self, catalog: Catalog, policy: Policy) -> None:
        self._catalog = catalog
        self._policy = policy
        self._indexes: OrderedDict[tuple[str, str], tuple[str, ToolIndex]] = OrderedDict()
        self._building = asyncio.Lock()

    async def execute(self, call: Call) -> Answer:
        """As the port `Executor`."""
        assert call.tool is not None
        if call.tool.name != "search_tools":
            return _said(f"{CALL_TOOL} calls the tools that {SEARCH_TOOLS} finds; it cannot call itself")
        index = await self._index(call.profile, call.principal.project)
        visible = await self._visible(call.principal, index)
        limit = call.arguments.get("limit", 5)
        places = await asyncio.to_thread(index.find, call.arguments["query"], visible, limit + 1)
        found: JsonObject = {"tools": _within(_shown(index, places[:limit])), "more": len(places) > limit}
        if not places:
            found["servers"] = _servers(index, visible)
        text = {"type": "text", "text": canonical(found).decode()}
        return Answer(body={"content": [text], "structuredContent": found, "isError": False})

    async def _index(self, profile: str, project: str) -> ToolIndex:
        key = profile, project
        async with self._building:
            version = self._catalog.version
            made = self._indexes.get(key)
            if made is None or made[0] != version:
                named = self._catalog.entries(profile, "tool", project=project)
                made = self._indexes[key] = version, await asyncio.to_thread(ToolIndex, named)
            self._indexes.move_to_end(key)
            while len(self._indexes) > INDEXES_KEPT:
                self._indexes.popitem(last=False)
            return made[1]

    async def _visible(self, principal: Principal, index: ToolIndex) -> list[bool]:
        visible: list[bool] = []
        entries = [entry for _, entry in index.named]
        turn = time.perf_counter()
        for start in range(0, len(entries), SLICE):
            part = entries[start : start + SLICE]
            visible += self._policy.visible(action="call_tool", principal=principal, entries=part)
            if time.perf_counter() - turn > TURN_S:  # what the policy knows already takes no time worth a turn
                await asyncio.sleep(0)
                turn = time.perf_counter()
        return visible


def _shown(index: ToolIndex, places: Sequence[int]) -> list[JsonObject]:
    found = []
    for place in places:
        public, entry = index.named[place]
        found.append({"name": public} | {key: entry.definition[key] for key in SHOWN if key in entry.definition})
    return found


def _within(tools: list[JsonObject]) -> list[JsonObject]:
    """Return the tools with their whole definitions as far as there is room, the others by name: to be asked for."""
    room = FOUND_BYTES
    fitting: list[JsonObject] = []
    for tool in tools:
        size = len(canonical(tool))
        room -= size
        fitting.append(tool if room >= 0 or not fitting else {"name": tool["name"], "left_out": f"{size} bytes"})
    return fitting


def _servers(index: ToolIndex, visible: Sequence[bool]) -> JsonObject:
    """How many tools of each server the caller could have found."""
    count: dict[str, int] = {}
    for (_, entry), shown in zip(index.named, visible, strict=True):
        if shown:
            count[entry.server] = count.get(entry.server, 0) + 1
    return count


def _said(text: str) -> Answer:
    return Answer(body={"content": [{"type": "text", "text": text}], "isError": True}, is_error=True)
