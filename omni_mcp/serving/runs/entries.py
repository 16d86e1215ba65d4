"""The entries of the server `runs`: its tools, and the resources under `run://` and `artifact://`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Labels, Limits
from omni_mcp.contracts.tool import Entry, EntryKind

SERVER = "runs"
PAGE = 200
CALLS_TOLD = 50
TOOLS_TOLD = 200
LABELS = Labels(read_only=True, destructive=False, egress=False, reads_private=True, reads_untrusted=True)

_RUN = {"type": "string", "description": "Id of one of your runs, as `list` gives it.", "maxLength": 64}
_CALL = {"type": "string", "description": "Id of the call, as an error or an event gives it.", "maxLength": 64}


@dataclass(frozen=True, slots=True)
class _Tool:
    """One tool: what a model reads of it, and what it takes."""

    name: str
    description: str
    properties: JsonObject
    required: tuple[str, ...] = ()


TOOLS = (
    _Tool(
        "list",
        "List your runs, newest first: id, kind, when, how many events and calls.",
        {"limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}, "before": _RUN},
    ),
    _Tool(
        "read",
        "Read the events of one of your runs in order. Go on with `after` = the last seq you saw.",
        {
            "run": _RUN,
            "after": {"type": "integer", "minimum": 0, "default": 0},
            "limit": {"type": "integer", "minimum": 1, "maximum": PAGE, "default": 100},
        },
        ("run",),
    ),
    _Tool(
        "search",
        "Find events of your runs that contain every word of the query, newest first. Any text is a valid query.",
        {
            "query": {"type": "string", "maxLength": 10000},
            "run": _RUN,
            "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
        },
        ("query",),
    ),
    _Tool("explain", "Say how one of your calls ended, and why, and what to do next.", {"call": _CALL}, ("call",)),
    _Tool(
        "why_refused",
        "Say why a call of yours was refused, what that means and what to do next. Without `call`: the newest refusal.",
        {"call": _CALL},
    ),
    _Tool(
        "runtime_query",
        "Say where you stand: what is left of your budget (calls, events, bytes), which calls you made in this run and "
        "how they ended, and which tools you could be allowed now.",
        {
            "run": {**_RUN, "description": "One of your runs; by default the one that asks."},
            "calls": {"type": "integer", "minimum": 0, "maximum": CALLS_TOLD, "default": 20},
        },
    ),
    _Tool(
        "why",
        "Say where an artifact of yours came from: each path from it by the call that left it to what that call was "
        "asked with. `exact` is on record, `possible` was only seen before.",
        {
            "artifact": {
                "type": "string",
                "description": "Its sha256, or its URI artifact://SHA256.",
                "pattern": "^(artifact://)?[0-9a-f]{64}$",
            }
        },
        ("artifact",),
    ),
    _Tool(
        "influence",
        "Say what an event of yours went into: artifacts, memory items, later calls. `exact` is on record, `possible` "
        "was only asked after it.",
        {"run": _RUN, "seq": {"type": "integer", "minimum": 1, "description": "Number of the event in its run."}},
        ("run", "seq"),
    ),
)
_JSON = "application/json"
TEMPLATES: tuple[JsonObject, ...] = (
    {
        "uriTemplate": "run://{run}",
        "name": "run",
        "title": "One run",
        "description": "The first events of one of your runs, as JSON. `read` gives the rest.",
        "mimeType": _JSON,
    },
    {
        "uriTemplate": "run://{run}/{seq}",
        "name": "event",
        "title": "One event",
        "description": "One event of one of your runs, as JSON.",
        "mimeType": _JSON,
    },
    {
        "uriTemplate": "run://{run}/{seq}/influence",
        "name": "influence",
        "title": "What an event went into",
        "description": "What came of one event of your runs, as `influence` gives it.",
        "mimeType": _JSON,
    },
    {
        "uriTemplate": "artifact://{sha256}",
        "name": "artifact",
        "title": "One artifact",
        "description": "A file or large result that one of your calls left. Slices: `artifact_read`.",
    },
    {
        "uriTemplate": "artifact://{sha256}/why",
        "name": "why",
        "title": "Where an artifact came from",
        "description": "The paths that led to one of your artifacts, as `why` gives them.",
        "mimeType": _JSON,
    },
)
LATEST: JsonObject = {
    "uri": "run://latest",
    "name": "latest run",
    "title": "Your latest run",
    "description": "The first events of your newest run, as JSON.",
    "mimeType": _JSON,
}


class RunsSource:
    """The server's entries. They are part of the package, so they are accepted."""

    def load(self) -> Iterable[Entry]:
        for tool in TOOLS:
            yield _entry("tool", tool.name, _definition(tool))
        for template in TEMPLATES:
            yield _entry("resource_template", template["uriTemplate"], template)
        yield _entry("resource", LATEST["uri"], LATEST)


def _definition(tool: _Tool) -> JsonObject:
    return {
        "name": tool.name,
        "title": f"Runs: {tool.name}",
        "description": tool.description,
        "inputSchema": {
            "type": "object",
            "properties": tool.properties,
            "required": list(tool.required),
            "additionalProperties": False,
        },
        "annotations": {"readOnlyHint": True, "destructiveHint": False, "openWorldHint": False},
    }


def _entry(kind: EntryKind, name: str, definition: JsonObject) -> Entry:
    return Entry(
        kind=kind, server=SERVER, name=name, definition=definition, version="1.0.0", binding="inproc_safe",
        labels=LABELS, limits=Limits(timeout_s=10.0), side_effects="none",
    )  # fmt: skip
