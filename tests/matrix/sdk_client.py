"""The Python SDK's client as a `Caller`, in the mode that it is told: `auto`, `legacy` or a pinned version."""

from __future__ import annotations

import asyncio
import warnings
from contextlib import suppress
from functools import partial
from typing import Any

import httpx2
import mcp_types as types
from mcp.client.client import Client as SdkOwn
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel

from tests.matrix.caller import LIMIT_S, Caller, Json, Refused
from tests.matrix.client import MODERN

LISTS = {
    "tools/list": "list_tools", "resources/list": "list_resources", "prompts/list": "list_prompts",
}  # fmt: skip


class SdkClient(Caller):
    """Owned by one task, because what the SDK opens has to be closed where it was opened."""

    def __init__(self, url: str, headers: dict[str, str], mode: str) -> None:
        super().__init__()
        self._url = url
        self._headers = headers
        self._mode = mode
        self._leaving = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """As the port."""
        ready: asyncio.Future[SdkOwn] = asyncio.get_running_loop().create_future()
        self._owner = asyncio.create_task(self._own(ready))
        self._owner.add_done_callback(partial(_not_opened, ready))
        async with asyncio.timeout(LIMIT_S):
            self._client = await ready
        self.modern = self._client.protocol_version == MODERN
        if not self.modern:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                await self._client.set_logging_level("debug")

    async def _own(self, ready: asyncio.Future[SdkOwn]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sampling, roots and logging are deprecated, and wanted here
            http = httpx2.AsyncClient(headers=self._headers, timeout=60, trust_env=False)
            client = SdkOwn(
                streamable_http_client(self._url, http_client=http),
                mode=self._mode,
                cache=None,
                elicitation_callback=self._elicited,
                sampling_callback=self._sampled,
                list_roots_callback=self._rooted,
                log_level="debug",
                message_handler=self._told,
            )
            async with http, client as opened:
                ready.set_result(opened)
                await self._leaving.wait()

    async def close(self) -> None:
        """As the port."""
        await self.unsubscribe("")
        self._leaving.set()
        await asyncio.wait({self._owner}, timeout=LIMIT_S)

    async def _elicited(self, context: Any, params: Any) -> Any:
        return types.ElicitResult.model_validate(self.answer_to("elicitation/create", plain(params)))

    async def _sampled(self, context: Any, params: Any) -> Any:
        return types.CreateMessageResult.model_validate(self.answer_to("sampling/createMessage", plain(params)))

    async def _rooted(self, context: Any) -> Any:
        return types.ListRootsResult.model_validate(self.answer_to("roots/list", {}))

    async def _told(self, message: Any) -> None:
        if isinstance(message, BaseModel):
            said = plain(message)
            if said["method"] != "notifications/progress":  # a call's own callback hears of those
                self.take_note(said)

    async def request(self, method: str, params: Json) -> Json:
        """As the port, for the methods that the features use."""
        try:
            return plain(await self._asked(method, params))
        except MCPError as error:
            raise Refused(error.error.code, error.error.message) from error

    async def _asked(self, method: str, params: Json) -> Any:
        client = self._client
        if method in LISTS:
            return await getattr(client, LISTS[method])(cursor=params.get("cursor"))
        if method == "resources/read":
            return await client.read_resource(params["uri"])
        if method == "prompts/get":
            return await client.get_prompt(params["name"], params.get("arguments"))
        assert method == "completion/complete", method
        ref = types.PromptReference(type="ref/prompt", name=params["ref"]["name"])
        return await client.complete(ref, params["argument"])

    async def call(self, tool: str, arguments: Json | None = None, **meta: Any) -> Json:
        """As the port. The SDK mints progress tokens itself; what it tells is filed under the wanted one."""
        token = meta.pop("progressToken", None)

        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            params = {"progressToken": token, "progress": progress, "total": total}
            self.take_note({"method": "notifications/progress", "params": params})

        try:
            result = await self._client.call_tool(
                tool, arguments, progress_callback=progressed if token is not None else None
            )
        except MCPError as error:
            raise Refused(error.error.code, error.error.message) from error
        return plain(result)

    async def begin(self, tool: str, arguments: Json, **meta: Any) -> asyncio.Task[Json]:
        """As the port."""
        return asyncio.create_task(self.call(tool, arguments, **meta))

    async def cancel(self, begun: asyncio.Task[Json]) -> None:
        """As the port: the SDK tells the server when a call's task is cancelled."""
        begun.cancel()
        await asyncio.gather(begun, return_exceptions=True)

    async def subscribe(self, uri: str) -> None:
        """As the port."""
        if not self.modern:
            await self._client.subscribe_resource(uri)
            return
        stands = asyncio.Event()
        self._listening = asyncio.create_task(self._listen(uri, stands))
        await stands.wait()

    async def _listen(self, uri: str, stands: asyncio.Event) -> None:
        async with self._client.listen(tools_list_changed=True, resource_subscriptions=[uri]) as events:
            stands.set()
            async for event in events:
                updated = getattr(event, "uri", None)
                if updated is not None:
                    self.take_note({"method": "notifications/resources/updated", "params": {"uri": str(updated)}})
                elif type(event).__name__ == "ToolsListChanged":
                    self.take_note({"method": "notifications/tools/list_changed", "params": {}})

    async def unsubscribe(self, uri: str) -> None:
        """As the port."""
        if self._listening is not None:
            self._listening.cancel()
            with suppress(asyncio.CancelledError):
                await self._listening
            self._listening = None
        elif uri and not self.modern:
            await self._client.unsubscribe_resource(uri)


def _not_opened(ready: asyncio.Future[SdkOwn], owner: asyncio.Task[None]) -> None:
    """Whoever waits for a client that could not be opened hears why."""
    if not ready.done():
        ready.set_exception(owner.exception() or ConnectionError("the client ended before it was ready"))


def plain(model: Any) -> Json:
    """Return a model of the SDK as it is on the wire."""
    found: Json = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    return found
