"""The memory by the API: each route calls the tool, or reads the resource, that an MCP client would."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from omni_mcp.contracts import api
from omni_mcp.contracts.errors import BadRequest
from omni_mcp.contracts.json import JsonObject
from omni_mcp.serving.api.asking import Asking, Handler
from omni_mcp.serving.api.calls import CallRoutes

LIST_LIMIT = 100  # what `memory__list` takes


class MemoryRoutes:
    """Answers the routes of the memory."""

    def __init__(self, calls: CallRoutes) -> None:
        self._calls = calls

    def handlers(self) -> Mapping[str, Handler]:
        """What serves each operation."""
        bodies = ("remember", "share", "recall", "promote")
        return {
            **{name: self._with_body(name) for name in bodies},
            "list_memory": self._list,
            "list_duplicates": self._duplicates,
            "get_memory": self._get,
            "revise": self._revise,
            "forget": self._forget,
        }

    def _with_body(self, tool: str) -> Handler:
        async def serve(asking: Asking) -> JsonObject:
            return await self._calls.structured(asking, f"memory__{tool}", asking.body.model_dump())

        return serve

    async def _list(self, asking: Asking) -> JsonObject:
        query: api.PageQuery = asking.query
        arguments: JsonObject = {"limit": min(query.limit, LIST_LIMIT)}
        if query.cursor is not None:
            arguments["before"] = query.cursor
        return await self._calls.structured(asking, "memory__list", arguments)

    async def _duplicates(self, asking: Asking) -> JsonObject:
        return await self._calls.structured(asking, "memory__duplicates", {})

    async def _get(self, asking: Asking) -> JsonObject:
        done = await self._calls.make(asking, api.NewCall(name=f"memory://{asking.place['item']}", kind="resource"))
        found: JsonObject = orjson.loads(done.result["contents"][0]["text"])
        return found

    async def _revise(self, asking: Asking) -> JsonObject:
        changes = asking.body.model_dump()
        if "id" in changes:
            raise BadRequest("the path names the item", data={"path": "$.id"})
        return await self._calls.structured(asking, "memory__revise", {"id": asking.place["item"], **changes})

    async def _forget(self, asking: Asking) -> JsonObject:
        return await self._calls.structured(asking, "memory__forget", {"id": asking.place["item"]})
