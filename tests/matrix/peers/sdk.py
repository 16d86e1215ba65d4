"""A server made with the Python SDK that has every feature, in both eras.

python -m tests.matrix.peers.sdk stdio
python -m tests.matrix.peers.sdk http     (prints its port)
"""

from __future__ import annotations

import asyncio
import socket
import sys
import warnings
from typing import Any

import mcp_types as types
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ResourceUpdated, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata

from tests.matrix.peers.brain import (
    MODERN,
    NEEDS,
    PROMPTS,
    QUESTIONS,
    RESOURCES,
    TEMPLATES,
    TOOLS,
    WATCHED,
    Json,
    completion,
    greeting,
    words_of,
)

BUS = InMemorySubscriptionBus()
FRESH: Json = {"ttlMs": 0, "cacheScope": "public"}
ASKED: dict[str, tuple[Any, Any, Any]] = {
    "ask": (types.ElicitRequest, types.ElicitRequestFormParams, types.ElicitResult),
    "sample": (types.CreateMessageRequest, types.CreateMessageRequestParams, types.CreateMessageResult),
    "roots": (types.ListRootsRequest, None, types.ListRootsResult),
}


class Peer:
    """What the one process remembers."""

    def __init__(self) -> None:
        self._cancelled: list[str] = []
        self._extra = 0

    def listed(self, member: str, items: list[Json]) -> Any:
        """Return the handler of a list."""

        async def handler(ctx: Any, params: Any) -> Any:
            extra = [f"extra{self._extra}"] if member == "tools" and self._extra else []
            return finished(ctx, {member: [*items, *map(tool, extra)], **FRESH})

        return handler

    async def call(self, ctx: Any, params: Any) -> Any:
        """Run one of the tools."""
        name, arguments = params.name, params.arguments or {}
        if name in QUESTIONS:
            return await ask(ctx, params)
        if name == "refuse":
            raise MCPError(-32050, "no such luck", {"why": "test"})
        if name == "progress":
            for number in (1, 2, 3):
                await ctx.session.report_progress(number, 3)
        elif name == "log":
            await ctx.session.send_log_message("info", {"said": "hello"}, "matrix", related_request_id=ctx.request_id)
        elif name == "hang":
            await self._hang(ctx, str(arguments["mark"]))
        elif name == "touch":
            await BUS.publish(ResourceUpdated(uri=WATCHED))
            if not is_modern(ctx):
                await ctx.session.send_resource_updated(WATCHED)
        elif name == "change":
            self._extra = int(arguments["number"])
            await BUS.publish(ToolsListChanged())
            if not is_modern(ctx):
                await ctx.session.send_tool_list_changed()
        words = ",".join(self._cancelled) if name == "cancelled" else str(arguments.get("text", name))
        failed = {"isError": True} if name == "fail" else {}
        return finished(ctx, {"content": [{"type": "text", "text": words}], **failed})

    async def _hang(self, ctx: Any, mark: str) -> None:
        await ctx.session.report_progress(1)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self._cancelled.append(mark)
            raise


async def ask(ctx: Any, params: Any) -> Any:
    """Ask the caller, by a push or by a round."""
    method, asked = QUESTIONS[params.name]
    if is_modern(ctx):
        said = (params.input_responses or {}).get("answer")
        if said is None:
            if getattr(ctx.session.client_capabilities, NEEDS[params.name], None) is None:
                data: Json = {"requiredCapabilities": {NEEDS[params.name]: {}}}
                raise MCPError(-32021, "Missing required client capability", data)
            wanted = {"answer": {"method": method, "params": asked}}
            return {"resultType": "input_required", "inputRequests": wanted, "requestState": f"state of {params.name}"}
        kept = params.request_state == f"state of {params.name}"
        words = words_of(plain(said)) if kept else "the state did not come back"
        return finished(ctx, {"content": [{"type": "text", "text": words}]})
    kind, of_params, of_result = ASKED[params.name]
    question = kind() if of_params is None else kind(params=of_params.model_validate(asked))
    related = ServerMessageMetadata(related_request_id=ctx.request_id)
    try:
        words = words_of(plain(await ctx.session.send_request(question, of_result, metadata=related)))
    except MCPError as error:
        words = f"error {error.error.code}"
    return finished(ctx, {"content": [{"type": "text", "text": words}]})


async def read(ctx: Any, params: Any) -> Any:
    """Read a resource."""
    contents = [{"uri": str(params.uri), "mimeType": "text/plain", "text": f"content of {params.uri}"}]
    return finished(ctx, {"contents": contents, **FRESH})


async def get_prompt(ctx: Any, params: Any) -> Any:
    """Fill in a prompt."""
    return finished(ctx, greeting({"arguments": params.arguments}))


async def complete(ctx: Any, params: Any) -> Any:
    """Suggest values."""
    return finished(ctx, completion({"argument": {"value": params.argument.value}}))


async def nothing(ctx: Any, params: Any) -> Any:
    """Take note."""
    return {}


def tool(name: str) -> Json:
    """Describe a tool."""
    return {"name": name, "description": f"Tool {name}", "inputSchema": {"type": "object"}}


def is_modern(ctx: Any) -> bool:
    """Whether a request came in the modern era."""
    return bool(ctx.protocol_version == MODERN)


def finished(ctx: Any, body: Json) -> Json:
    """Return a result as the era of its request wants it."""
    return {"resultType": "complete", **body} if is_modern(ctx) else body


def plain(said: Any) -> Json:
    """Return what was answered as it is on the wire."""
    found: Json = said if isinstance(said, dict) else said.model_dump(mode="json", by_alias=True, exclude_none=True)
    return found


class Announcing(Server[Any]):
    """The SDK says to handshake clients that lists never change, unless it is told otherwise."""

    def create_initialization_options(self, notification_options: Any = None, *args: Any, **more: Any) -> Any:
        """As the SDK's, with every kind of change."""
        changes = NotificationOptions(tools_changed=True, resources_changed=True, prompts_changed=True)
        return super().create_initialization_options(changes, *args, **more)


def server() -> Server[Any]:
    """Build the server."""
    peer = Peer()
    return Announcing(
        "matrix-sdk", version="1", on_list_tools=peer.listed("tools", [tool(name) for name in TOOLS]),
        on_call_tool=peer.call, on_list_resources=peer.listed("resources", RESOURCES),
        on_list_resource_templates=peer.listed("resourceTemplates", TEMPLATES), on_read_resource=read,
        on_subscribe_resource=nothing, on_unsubscribe_resource=nothing, on_list_prompts=peer.listed("prompts", PROMPTS),
        on_get_prompt=get_prompt, on_completion=complete, on_set_logging_level=nothing,
        on_subscriptions_listen=ListenHandler(BUS),
    )  # fmt: skip


async def over_stdio() -> None:
    """Serve the one client at the other end of the pipes."""
    it = server()
    async with stdio_server() as (reading, writing):
        await it.run(reading, writing, it.create_initialization_options())


async def over_http() -> None:
    """Serve /mcp on a free port of loopback, until killed."""
    app = server().streamable_http_app()
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio: no delay for TCP only
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    print(listening.getsockname()[1], flush=True)
    await uvicorn.Server(uvicorn.Config(app, log_level="error")).serve([listening])


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # roots, sampling and logging are deprecated, and wanted here
    asyncio.run(over_stdio() if sys.argv[1] == "stdio" else over_http())
