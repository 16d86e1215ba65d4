"""The run log as an MCP server: the caller's own runs as tools and as `run://` resources, and its artifacts.

It runs in process because it is ours and touches nothing but the log. Its calls are ordinary calls of the chain,
recorded in the gateway's own run, so that reading a run adds nothing to it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Any

from omni_mcp.contracts.call import Answer, Call, Principal
from omni_mcp.contracts.errors import CATALOGUE, NotFound
from omni_mcp.contracts.events import RunEvent
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.manifest import Labels, Limits
from omni_mcp.contracts.ports import Artifacts, RunLog
from omni_mcp.contracts.tool import Entry

SERVER = "runs"
PAGE = 200
PAGE_BYTES = 512 * 1024  # an answer over the output limit would be kept as an artifact: a copy that outlives an erasure
LABELS = Labels(read_only=True, destructive=False, egress=False, reads_private=True, reads_untrusted=True)

_RUN = {"type": "string", "description": "Id of one of your runs, as `list` gives it.", "maxLength": 64}
_TOOLS: tuple[tuple[str, str, JsonObject], ...] = (
    (
        "list",
        "List your runs, newest first: id, kind, when, how many events and calls.",
        {"limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}, "before": _RUN},
    ),
    (
        "read",
        "Read the events of one of your runs in order. Go on with `after` = the last seq you saw.",
        {
            "run": _RUN,
            "after": {"type": "integer", "minimum": 0, "default": 0},
            "limit": {"type": "integer", "minimum": 1, "maximum": PAGE, "default": 100},
        },
    ),
    (
        "search",
        "Find events of your runs that contain every word of the query, newest first. Any text is a valid query.",
        {
            "query": {"type": "string", "maxLength": 10000},
            "run": _RUN,
            "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
        },
    ),
    (
        "explain",
        "Say how one of your calls ended, and why, and what to do next.",
        {
            "call": {
                "type": "string",
                "description": "Id of the call, as an error or an event gives it.",
                "maxLength": 64,
            }
        },
    ),
)
_REQUIRED = {"list": [], "read": ["run"], "search": ["query"], "explain": ["call"]}


class RunsSource:
    """The server's entries. They are part of the package, so they are accepted."""

    def load(self) -> Iterable[Entry]:
        for name, description, properties in _TOOLS:
            yield _entry(
                "tool",
                name,
                {
                    "name": name,
                    "title": f"Runs: {name}",
                    "description": description,
                    "inputSchema": {
                        "type": "object",
                        "properties": properties,
                        "required": _REQUIRED[name],
                        "additionalProperties": False,
                    },
                    "annotations": {"readOnlyHint": True, "destructiveHint": False, "openWorldHint": False},
                },
            )
        yield _entry(
            "resource_template",
            "run://{run}",
            {
                "uriTemplate": "run://{run}",
                "name": "run",
                "title": "One run",
                "description": "The first events of one of your runs, as JSON. `read` gives the rest.",
                "mimeType": "application/json",
            },
        )
        yield _entry(
            "resource_template",
            "artifact://{sha256}",
            {
                "uriTemplate": "artifact://{sha256}",
                "name": "artifact",
                "title": "One artifact",
                "description": "A file or large result that one of your calls left. Slices: `artifact_read`.",
            },
        )
        yield _entry(
            "resource",
            "run://latest",
            {
                "uri": "run://latest",
                "name": "latest run",
                "title": "Your latest run",
                "description": "The first events of your newest run, as JSON.",
                "mimeType": "application/json",
            },
        )


def _entry(kind: Any, name: str, definition: JsonObject) -> Entry:
    return Entry(
        kind=kind,
        server=SERVER,
        name=name,
        definition=definition,
        version="1.0.0",
        binding="inproc_safe",
        labels=LABELS,
        limits=Limits(timeout_s=10.0),
        side_effects="none",
    )


class RunsExecutor:
    """Answers the server's calls from the log, filtered to the caller's principal."""

    def __init__(self, log: RunLog, artifacts: Artifacts) -> None:
        self._log = log
        self._artifacts = artifacts

    async def execute(self, call: Call) -> Answer:
        owner = call.principal
        if call.kind == "resource" and call.name.startswith("artifact://"):
            return await self._artifact(call.name, owner)
        if call.kind == "resource":
            return await self._resource(call.name, owner)
        assert call.tool is not None
        arguments = call.arguments
        try:
            found = await self._tool(call.tool.name, arguments, owner)
        except NotFound as error:
            return Answer(body={"content": [{"type": "text", "text": error.message}], "isError": True}, is_error=True)
        return Answer(
            body={
                "content": [{"type": "text", "text": canonical(found).decode()}],
                "structuredContent": found,
                "isError": False,
            }
        )

    async def _tool(self, name: str, arguments: JsonObject, owner: Principal) -> JsonObject:
        if name == "list":
            runs = await self._log.runs(
                principal=owner.key, limit=arguments.get("limit", 20), before=arguments.get("before")
            )
            return {"runs": runs}
        if name == "read":
            return await self._read(arguments["run"], owner, arguments.get("after", 0), arguments.get("limit", 100))
        if name == "search":
            if run := arguments.get("run"):
                await self._own_run(run, owner)
            events = await self._log.search(
                arguments["query"], principal=owner.key, run=arguments.get("run"), limit=arguments.get("limit", 20)
            )
            shown, more = _fitting([for_caller(event) for event in events])
            words = _words(arguments["query"])
            return {"events": [event for event in shown if _holds(event, words)], "more": more}
        return await self._explain(arguments["call"], owner)

    async def _resource(self, uri: str, owner: Principal) -> Answer:
        run = uri.removeprefix("run://")
        if run == "latest":
            newest = await self._log.runs(principal=owner.key, limit=1)
            if not newest:
                raise NotFound("you have no run yet", data={"uri": uri})
            run = newest[0]["id"]
        try:
            page = await self._read(run, owner, 0, PAGE)
        except NotFound as error:
            raise NotFound("there is no such resource", data={"uri": uri}) from error
        text = canonical(page).decode()
        return Answer(body={"contents": [{"uri": uri, "mimeType": "application/json", "text": text}]})

    async def _artifact(self, uri: str, owner: Principal) -> Answer:
        """The bytes as they are: text where they are UTF-8 and say so, else base64. Nothing is interpreted here."""
        ref, data = await self._artifacts.get(uri.removeprefix("artifact://"), owner=owner.key)
        shown: JsonObject = {"uri": uri, "mimeType": ref.media_type}
        if len(data) > PAGE_BYTES:
            note = (
                f"{ref.size} bytes of {ref.media_type}: more than a resource may have. Read slices with artifact_read."
            )
            return Answer(body={"contents": [{"uri": uri, "mimeType": "text/plain", "text": note}]})
        if ref.media_type.startswith(("text/", "application/json")):
            shown["text"] = data.decode("utf-8", "replace")
        else:
            shown["blob"] = base64.b64encode(data).decode()
        return Answer(body={"contents": [shown]})

    async def _read(self, run: str, owner: Principal, after: int, limit: int) -> JsonObject:
        facts = await self._own_run(run, owner)
        events, more = _fitting([for_caller(event) async for event in self._log.read(run, after=after, limit=limit)])
        return {"run": facts, "events": events, "more": more}

    async def may_see(self, principal: Principal, entry: Entry, uri: str) -> bool:
        """Whether the principal may be told of changes of a resource; a run's are for its own principal only."""
        if entry.server != SERVER:
            return True
        if uri.startswith("artifact://"):
            return False  # artifacts never change
        run = uri.removeprefix("run://")
        if run == "latest":
            return True
        try:
            await self._own_run(run, principal)
        except NotFound:
            return False
        return True

    async def _own_run(self, run: str, owner: Principal) -> JsonObject:
        """Return the run's facts; another principal's run and a missing one give the same answer."""
        facts = await self._log.get_run(run)
        if facts.get("principal") != owner.key:
            raise NotFound(f"there is no run {run!r} of yours")
        return facts

    async def _explain(self, call_id: str, owner: Principal) -> JsonObject:
        events = await self._log.find_call(call_id)
        asked = next((event for event in events if event.kind == "tool_call"), None)
        if asked is None or asked.actor != owner.key:
            raise NotFound(f"there is no call {call_id!r} of yours")
        ended = next((event for event in reversed(events) if event.kind in ("tool_result", "tool_error")), None)
        story: JsonObject = {"call": call_id, "name": (asked.payload or {}).get("name"), "at": iso_time(asked.at_ns)}
        if ended is None:
            return {**story, "state": "open"}
        payload = ended.payload or {}
        if ended.kind == "tool_result":
            return {**story, "state": "answered", "is_error": payload.get("is_error", False)}
        code = str(payload.get("code", ""))
        entry = CATALOGUE.get(code)
        return {
            **story,
            "state": "not answered",
            "code": code,
            "message": payload.get("message"),
            "meaning": entry.meaning if entry else "",
            "next_step": entry.recovery if entry else "",
        }


def _fitting(events: list[JsonObject]) -> tuple[list[JsonObject], bool]:
    """Return the events from the first on that fit into one answer, and whether some were left out."""
    kept: list[JsonObject] = []
    room = PAGE_BYTES
    for event in events:
        room -= len(canonical(event))
        if room < 0 and kept:
            return kept, True
        kept.append(event)
    return kept, False


def _words(query: str) -> list[str]:
    return re.findall(r"\w+", query.casefold())


def _holds(event: JsonObject, words: list[str]) -> bool:
    """Whether what the caller may see holds the words: the index also holds what only operators see."""
    text = canonical(event).decode().casefold()
    return all(word in text for word in words)


def for_caller(event: RunEvent) -> JsonObject:
    """An event as its own caller sees it: rules, requests and details of a decision are for operators.

    A missing tool and a forbidden one leave the same view.
    """
    shown = event.model_dump(include={"run", "seq", "kind", "code", "call", "parent", "actor"})
    shown["at"] = iso_time(event.at_ns)
    payload = dict(event.payload) if event.payload is not None else None
    if payload is not None and event.kind == "tool_error":
        payload.pop("detail", None)
    if payload is not None and event.kind == "system_event" and event.code in ("policy_decided", "access_refused"):
        payload = {key: payload[key] for key in ("code", "verdict", "method", "target") if key in payload}
    shown["payload"] = payload
    return shown
