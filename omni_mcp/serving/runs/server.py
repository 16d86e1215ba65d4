"""The run log as an MCP server: the caller's own runs as tools and as `run://` resources, and its artifacts.

It runs in process because it is ours and touches nothing but the log. Its calls are ordinary calls of the chain,
recorded in the gateway's own run, so that reading a run adds nothing to it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable

from omni_mcp.contracts.call import Answer, Call, Principal
from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.ports import Artifacts, RunLog
from omni_mcp.contracts.tool import Entry
from omni_mcp.serving.runs.entries import PAGE, SERVER
from omni_mcp.serving.runs.standing import Standing, refusal_of
from omni_mcp.serving.runs.view import PAGE_BYTES, fitting, for_caller, holds, words_of

_EVENT = re.compile(r"run://([^/]+)/([1-9][0-9]{0,11})(/influence)?")
_WHY = re.compile(r"artifact://([0-9a-f]{64})/why")

Tool = Callable[[Call], Awaitable[JsonObject]]


class RunsExecutor:
    """Answers the server's calls from the log, filtered to the caller's principal."""

    def __init__(self, log: RunLog, artifacts: Artifacts, standing: Standing) -> None:
        self._log = log
        self._artifacts = artifacts
        self._standing = standing
        self._tools: dict[str, Tool] = {
            "list": self._list, "read": self._read, "search": self._search, "explain": self._explain,
            "why_refused": self._why_refused, "runtime_query": self._runtime_query, "why": self._why,
            "influence": self._influence,
        }  # fmt: skip

    async def execute(self, call: Call) -> Answer:
        """As the port `Executor`."""
        if call.kind == "resource":
            return await self._resource(call.name, call.principal)
        assert call.tool is not None
        try:
            found = await self._tools[call.tool.name](call)
        except NotFound as error:
            return Answer(body={"content": [{"type": "text", "text": error.message}], "isError": True}, is_error=True)
        return Answer(
            body={
                "content": [{"type": "text", "text": canonical(found).decode()}],
                "structuredContent": found,
                "isError": False,
            }
        )

    async def may_see(self, principal: Principal, entry: Entry, uri: str) -> bool:
        """Whether the principal may be told of changes of a resource; a run's are for its own principal only."""
        if entry.server != SERVER:
            return True
        if uri.startswith("artifact://") or _EVENT.fullmatch(uri):
            return False  # artifacts and events never change
        run = uri.removeprefix("run://")
        if run == "latest":
            return True
        try:
            await self._own_run(run, principal)
        except NotFound:
            return False
        return True

    async def _list(self, call: Call) -> JsonObject:
        limit, before = call.arguments.get("limit", 20), call.arguments.get("before")
        if before is not None:
            await self._own_run(before, call.principal)  # whether another's run exists shows in no page
        return {"runs": await self._log.runs(principal=call.principal.key, limit=limit, before=before)}

    async def _read(self, call: Call) -> JsonObject:
        arguments = call.arguments
        return await self._page(
            arguments["run"], call.principal, arguments.get("after", 0), arguments.get("limit", 100)
        )

    async def _search(self, call: Call) -> JsonObject:
        arguments = call.arguments
        if run := arguments.get("run"):
            await self._own_run(run, call.principal)
        events = await self._log.search(
            arguments["query"], principal=call.principal.key, run=run, limit=arguments.get("limit", 20)
        )
        shown, more = fitting([for_caller(event) for event in events])
        words = words_of(arguments["query"])
        return {"events": [event for event in shown if holds(event, words)], "more": more}

    async def _explain(self, call: Call) -> JsonObject:
        wanted = call.arguments["call"]
        await self._own_call(wanted, call.principal)
        return await refusal_of(self._log, wanted)

    async def _why_refused(self, call: Call) -> JsonObject:
        wanted = call.arguments.get("call") or await self._log.newest_refusal(principal=call.principal.key)
        if wanted is None:
            raise NotFound("no call of yours was refused in your newest runs")
        await self._own_call(wanted, call.principal)
        return await refusal_of(self._log, wanted)

    async def _runtime_query(self, call: Call) -> JsonObject:
        run = await self._own_run(call.arguments.get("run") or call.asked_in or call.run, call.principal)
        return await self._standing.query(call, run, calls=call.arguments.get("calls", 20))

    async def _why(self, call: Call) -> JsonObject:
        sha256 = call.arguments["artifact"].removeprefix("artifact://")
        return await self._log.why(sha256, principal=call.principal.key)

    async def _influence(self, call: Call) -> JsonObject:
        return await self._log.influence(call.arguments["run"], call.arguments["seq"], principal=call.principal.key)

    async def _resource(self, uri: str, owner: Principal) -> Answer:
        try:
            if found := _WHY.fullmatch(uri):
                return _json(uri, await self._log.why(found[1], principal=owner.key))
            if uri.startswith("artifact://"):
                return await self._artifact(uri, owner)
            if found := _EVENT.fullmatch(uri):
                return _json(uri, await self._event(found[1], int(found[2]), owner, influence=bool(found[3])))
            return _json(uri, await self._page(await self._named(uri, owner), owner, 0, PAGE))
        except NotFound as error:
            raise NotFound("there is no such resource", data={"uri": uri}) from error

    async def _named(self, uri: str, owner: Principal) -> str:
        run = uri.removeprefix("run://")
        if run != "latest":
            return run
        newest = await self._log.runs(principal=owner.key, limit=1)
        if not newest:
            raise NotFound("you have no run yet")
        return str(newest[0]["id"])

    async def _event(self, run: str, seq: int, owner: Principal, *, influence: bool) -> JsonObject:
        if influence:
            return await self._log.influence(run, seq, principal=owner.key)
        await self._own_run(run, owner)
        async for event in self._log.read(run, after=seq - 1, limit=1):
            if event.seq == seq:
                return for_caller(event)
        raise NotFound("there is no such event")

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

    async def _page(self, run: str, owner: Principal, after: int, limit: int) -> JsonObject:
        facts = await self._own_run(run, owner)
        events, more = fitting([for_caller(event) async for event in self._log.read(run, after=after, limit=limit)])
        return {"run": facts, "events": events, "more": more}

    async def _own_run(self, run: str, owner: Principal) -> JsonObject:
        """Return the run's facts; another principal's run and a missing one give the same answer."""
        try:
            facts = await self._log.get_run(run)
        except NotFound:
            facts = {}
        if facts.get("principal") != owner.key:
            raise NotFound(f"there is no run {run!r} of yours")
        return facts

    async def _own_call(self, call: str, owner: Principal) -> None:
        events = await self._log.find_call(call)
        asked = next((event for event in events if event.kind == "tool_call"), None)
        if asked is None or asked.actor != owner.key:
            raise NotFound(f"there is no call {call!r} of yours")


def _json(uri: str, value: JsonObject) -> Answer:
    return Answer(body={"contents": [{"uri": uri, "mimeType": "application/json", "text": canonical(value).decode()}]})
