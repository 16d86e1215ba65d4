"""A server made with the Python SDK that does everything a server can, in both eras: over stdio, HTTP and HTTP+SSE.

python -m tests.upstream.servers.sdk stdio
python -m tests.upstream.servers.sdk http     (prints its port)
"""

from __future__ import annotations

import asyncio
import socket
import sys
import warnings
from typing import Any

import anyio
import mcp_types as types
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.sse import SseServerTransport
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

warnings.simplefilter("ignore")  # roots, sampling and logging are deprecated, and wanted here
BUS = InMemorySubscriptionBus()
WATCHED = "test://watched"
FORM: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
OBJECT: dict[str, Any] = {"type": "object"}
TOOLS = [
    types.Tool(name=name, description=f"Tool {name}", input_schema=OBJECT)
    for name in (
        "echo",
        "progress",
        "log",
        "slow",
        "ask",
        "sample",
        "roots",
        "fail",
        "raise",
        "touch",
        "change",
        "meta",
    )
]
MODERN = "2026-07-28"
SESSIONS: list[Any] = []
CANCELLED: list[str] = []


def text(words: str, *, is_error: bool = False) -> types.CallToolResult:
    """Wrap a text."""
    return types.CallToolResult(content=[types.TextContent(type="text", text=words)], is_error=is_error)


async def call_tool(ctx: Any, params: types.CallToolRequestParams) -> Any:
    """Run one of the tools."""
    arguments = params.arguments or {}
    if params.name in ("ask", "sample", "roots"):
        return await _asking(ctx, params)
    if params.name == "progress":
        for number in (1, 2, 3):
            await ctx.session.report_progress(number, 3, f"step {number}")
        return text("done")
    if params.name == "log":
        await ctx.session.send_log_message("info", {"said": "hello"}, "fixture", related_request_id=ctx.request_id)
        return text("logged")
    if params.name == "slow":
        try:
            await anyio.sleep(float(arguments.get("seconds", 60)))
        except anyio.get_cancelled_exc_class():
            CANCELLED.append(str(arguments.get("mark", "")))
            raise
        return text("slept")
    if params.name == "fail":
        return text("it failed", is_error=True)
    if params.name == "raise":
        raise types_error()
    if params.name == "touch":
        await BUS.publish(_updated())
        for session in SESSIONS:
            await session.send_resource_updated(WATCHED)
        return text("touched")
    if params.name == "change":
        TOOLS.append(types.Tool(name=f"new{len(TOOLS)}", input_schema=OBJECT))
        await BUS.publish(_tools_changed())
        for session in SESSIONS:
            await session.send_tool_list_changed()
        return text("changed")
    if params.name == "meta":
        meta = dict(ctx.meta or {})
        return types.CallToolResult(content=[], structured_content={"meta": meta, "cancelled": list(CANCELLED)})
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=str(arguments.get("text", "")))], structured_content=arguments
    )


def types_error() -> Exception:
    """An error with a code of its own."""
    from mcp.shared.exceptions import MCPError

    return MCPError(-32050, "no such luck", {"why": "test"})


def _updated() -> Any:
    from mcp.server.subscriptions import ResourceUpdated

    return ResourceUpdated(uri=WATCHED)


def _tools_changed() -> Any:
    from mcp.server.subscriptions import ToolsListChanged

    return ToolsListChanged()


async def _asking(ctx: Any, params: types.CallToolRequestParams) -> Any:
    requests: dict[str, Any] = {
        "ask": types.ElicitRequest(params=types.ElicitRequestFormParams(message="Who are you?", requested_schema=FORM)),
        "sample": types.CreateMessageRequest(
            params=types.CreateMessageRequestParams(
                messages=[types.SamplingMessage(role="user", content=types.TextContent(type="text", text="hi"))],
                max_tokens=10,
            )
        ),
        "roots": types.ListRootsRequest(),
    }
    if ctx.protocol_version == MODERN:
        responses = getattr(params, "input_responses", None) or {}
        if "answer" not in responses:
            return types.InputRequiredResult(
                input_requests={"answer": requests[params.name]}, request_state=f"state of {params.name}"
            )
        if params.request_state != f"state of {params.name}":
            return text("the state was changed", is_error=True)
        return text(_said(responses["answer"]))
    session = ctx.session
    try:
        if params.name == "ask":
            return text(_said(await session.elicit_form("Who are you?", FORM, related_request_id=ctx.request_id)))
        if params.name == "sample":
            request = requests["sample"].params
            answer = await session.create_message(request.messages, max_tokens=10, related_request_id=ctx.request_id)
            return text(_said(answer))
        return text(_said(await session.list_roots()))
    except Exception as error:
        return text(f"not answered: {error}", is_error=True)


def _said(answer: Any) -> str:
    plain = answer if isinstance(answer, dict) else answer.model_dump(mode="json", by_alias=True, exclude_none=True)
    if "action" in plain:
        return f"{plain['action']} {(plain.get('content') or {}).get('name', '')}".strip()
    if "roots" in plain:
        return " ".join(root["uri"] for root in plain["roots"])
    return str(plain["content"]["text"])


async def list_tools(ctx: Any, params: Any) -> types.ListToolsResult:
    """Everything on two pages."""
    if ctx.session not in SESSIONS and ctx.protocol_version != MODERN:
        SESSIONS.append(ctx.session)
    if params is not None and params.cursor == "second":
        return types.ListToolsResult(tools=TOOLS[6:], ttl_ms=0, cache_scope="public")
    return types.ListToolsResult(tools=TOOLS[:6], next_cursor="second", ttl_ms=0, cache_scope="public")


async def list_resources(ctx: Any, params: Any) -> types.ListResourcesResult:
    """Two resources."""
    found = [types.Resource(uri="test://static", name="static"), types.Resource(uri=WATCHED, name="watched")]
    return types.ListResourcesResult(resources=found, ttl_ms=0, cache_scope="public")


async def list_templates(ctx: Any, params: Any) -> types.ListResourceTemplatesResult:
    """One template."""
    found = [types.ResourceTemplate(uri_template="test://item/{id}", name="item")]
    return types.ListResourceTemplatesResult(resource_templates=found, ttl_ms=0, cache_scope="public")


async def read_resource(ctx: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    """Say which one it is."""
    contents = [types.TextResourceContents(uri=params.uri, text=f"content of {params.uri}")]
    return types.ReadResourceResult(contents=contents, ttl_ms=0, cache_scope="public")


async def list_prompts(ctx: Any, params: Any) -> types.ListPromptsResult:
    """One prompt."""
    arguments = [types.PromptArgument(name="word")]
    prompts = [types.Prompt(name="greet", arguments=arguments)]
    return types.ListPromptsResult(prompts=prompts, ttl_ms=0, cache_scope="public")


async def get_prompt(ctx: Any, params: types.GetPromptRequestParams) -> types.GetPromptResult:
    """Say hello."""
    words = types.TextContent(type="text", text=f"hello {(params.arguments or {}).get('word', 'world')}")
    return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=words)])


async def complete(ctx: Any, params: types.CompleteRequestParams) -> types.CompleteResult:
    """Suggest two words."""
    start = params.argument.value
    return types.CompleteResult(completion=types.Completion(values=[f"{start}one", f"{start}two"], has_more=False))


async def nothing(ctx: Any, params: Any) -> types.EmptyResult:
    """Take note."""
    return types.EmptyResult()


class Announcing(Server[Any]):
    """The SDK says that lists never change unless it is told otherwise."""

    def create_initialization_options(self, notification_options: Any = None, *args: Any, **more: Any) -> Any:
        from mcp.server.lowlevel.server import NotificationOptions

        changes = NotificationOptions(tools_changed=True, resources_changed=True, prompts_changed=True)
        return super().create_initialization_options(changes, *args, **more)


def server() -> Server[Any]:
    """Build the server."""
    return Announcing(
        "sdk-fixture", version="1", on_list_tools=list_tools, on_call_tool=call_tool, on_list_resources=list_resources,
        on_list_resource_templates=list_templates, on_read_resource=read_resource, on_subscribe_resource=nothing,
        on_unsubscribe_resource=nothing, on_list_prompts=list_prompts, on_get_prompt=get_prompt,
        on_completion=complete, on_set_logging_level=nothing, on_subscriptions_listen=ListenHandler(BUS),
    )  # fmt: skip


async def over_stdio() -> None:
    """Serve the one client at the other end of the pipes."""
    it = server()
    async with stdio_server() as (read, write):
        await it.run(read, write, it.create_initialization_options())


async def over_http() -> None:
    """Serve /mcp and /sse on a free port of loopback, until killed."""
    it = server()
    sse = SseServerTransport("/messages/")

    async def connect(request: Request) -> Response:
        async with sse.connect_sse(request.scope, request.receive, request._send) as (read, write):
            await it.run(read, write, it.create_initialization_options())
        return Response()

    app = it.streamable_http_app()
    app.router.routes += [Route("/sse", connect), Mount("/messages/", app=sse.handle_post_message)]
    assert isinstance(app, Starlette)
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio: no delay for TCP only
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    print(listening.getsockname()[1], flush=True)
    await uvicorn.Server(uvicorn.Config(app, log_level="error")).serve([listening])


if __name__ == "__main__":
    asyncio.run(over_stdio() if sys.argv[1] == "stdio" else over_http())
