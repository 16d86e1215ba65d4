"""The server that the official conformance suite expects, as a process of its own made with the Python SDK.

    python -m tests.conformance.everything stdio
    python -m tests.conformance.everything http     (prints its port)

What it says is the fixture's, so the suite meets one and the same server inside the gateway and behind it. Both eras
are served on the same transport; a client of the handshake era is pushed what a modern one gets as a round.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import warnings
from dataclasses import replace
from typing import Any

import mcp_types as types
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata

from omni_mcp.contracts.call import Answer, AskRefused, Call, ClientFacts, InputRequired, Principal, Round
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.contracts.tool import CallKind, Entry
from omni_mcp.protocol.eras import MODERN_VERSIONS
from tests.conformance.definitions import every_entry
from tests.conformance.fixture import CAPABILITY_OF, TEMPLATE_URI, ConformanceServer

NOBODY = Principal(kind="User", id="somebody")
FRESH: JsonObject = {"ttlMs": 0, "cacheScope": "public"}
MISSING_CAPABILITY = -32021
OLD_NOT_FOUND = -32002  # of the handshake era
CHANGES: dict[str, Any] = {
    "tools": ToolsListChanged,
    "prompts": PromptsListChanged,
    "resources": ResourcesListChanged,
}  # fmt: skip
ASKED: dict[str, tuple[Any, Any, Any]] = {
    "elicitation/create": (types.ElicitRequest, types.ElicitRequestFormParams, types.ElicitResult),
    "sampling/createMessage": (
        types.CreateMessageRequest,
        types.CreateMessageRequestParams,
        types.CreateMessageResult,
    ),
    "roots/list": (types.ListRootsRequest, None, types.ListRootsResult),
}


class SessionLink:
    """The way back to the client of one request."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx

    @property
    def client(self) -> object:
        """Who asked."""
        return self._ctx.session

    def page_done(self, elicitation: str) -> None:
        """Say nothing: no tool of the fixture ends by itself on a page."""

    async def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """Report progress."""
        await self._ctx.session.report_progress(progress, total, message)

    async def log(self, level: str, data: JsonValue, logger: str | None) -> None:
        """Send a log message within the answer."""
        await self._ctx.session.send_log_message(level, data, logger, related_request_id=self._ctx.request_id)

    def can_ask(self, method: str) -> bool:
        """Whether this client can be pushed to."""
        return not is_modern(self._ctx) and CAPABILITY_OF[method] in capabilities_of(self._ctx)

    async def ask(self, method: str, params: JsonObject) -> JsonObject:
        """Push a question within the answer.

        Raises:
            AskRefused: the client says no.
        """
        kind, of_params, of_result = ASKED[method]
        asked = kind() if of_params is None else kind(params=of_params.model_validate(params))
        related = ServerMessageMetadata(related_request_id=self._ctx.request_id)
        try:
            answer = await self._ctx.session.send_request(asked, of_result, metadata=related)
        except MCPError as error:
            raise AskRefused(str(error)) from error
        found: JsonObject = answer.model_dump(mode="json", by_alias=True, exclude_none=True)
        return found


class Everything:
    """Puts the fixture, which speaks our ports, behind the handlers of an SDK server."""

    def __init__(self) -> None:
        self.bus = InMemorySubscriptionBus()
        self._changed: list[Any] = []
        self._fixture = ConformanceServer(
            list_changed=lambda kind: self._changed.append(CHANGES[kind]()),
            resource_updated=lambda uri: self._changed.append(ResourceUpdated(uri=uri)),
        )
        self._entries = every_entry()

    def listed(self, kind: str, member: str) -> Any:
        """Return the handler of one list."""
        definitions = [entry.definition for entry in self._entries if entry.kind == kind]

        async def handler(ctx: Any, params: Any) -> JsonObject:
            return finished(ctx, {member: definitions, **FRESH})

        return handler

    async def call_tool(self, ctx: Any, params: Any) -> Any:
        """Run a tool."""
        return await self._answer(ctx, params, "tool", self._find("tool", params.name), params.arguments or {})

    async def get_prompt(self, ctx: Any, params: Any) -> Any:
        """Fill in a prompt."""
        return await self._answer(ctx, params, "prompt", self._find("prompt", params.name), params.arguments or {})

    async def read_resource(self, ctx: Any, params: Any) -> Any:
        """Read a resource."""
        uri = str(params.uri)
        entry = next((one for one in self._entries if one.kind == "resource" and one.name == uri), None)
        if entry is None and TEMPLATE_URI.fullmatch(uri):
            entry = next(one for one in self._entries if one.kind == "resource_template")
        if entry is None:
            code = types.INVALID_PARAMS if is_modern(ctx) else OLD_NOT_FOUND
            raise MCPError(code, "Resource not found", {"uri": uri})
        return {**await self._answer(ctx, params, "resource", entry, {}, name=uri), **FRESH}

    async def complete(self, ctx: Any, params: Any) -> Any:
        """Suggest values."""
        argument = {"name": params.argument.name, "value": params.argument.value}
        return finished(ctx, {"completion": await self._fixture.complete(NOBODY, self._entries[0], argument, {})})

    async def nothing(self, ctx: Any, params: Any) -> Any:
        """Take note: a session of the handshake era hears of every change that its own calls make."""
        return {}

    def _find(self, kind: str, name: str) -> Entry:
        for entry in self._entries:
            if entry.kind == kind and entry.name == name:
                return entry
        raise MCPError(types.INVALID_PARAMS, f"Unknown {kind}: {name}")

    async def _answer(
        self, ctx: Any, params: Any, kind: CallKind, entry: Entry, arguments: JsonObject, *, name: str = ""
    ) -> JsonObject:
        modern = is_modern(ctx)
        client = ClientFacts(era="modern" if modern else "handshake", capabilities=capabilities_of(ctx))
        call = Call(
            id="call", run="run", principal=NOBODY, client=client, kind=kind, name=name or entry.name,
            arguments=arguments, profile="", link=SessionLink(ctx), tool=entry,
            round=round_of(params) if modern else None,
        )  # fmt: skip
        result = await self._fixture.execute(call)
        while isinstance(result, InputRequired) and not modern:
            result = await self._fixture.execute(await self._pushed(call, result))
        await self._tell_changes(ctx)
        return finished(ctx, result.body) if isinstance(result, Answer) else unfinished(result, client.capabilities)

    async def _pushed(self, call: Call, wanted: InputRequired) -> Call:
        """Return the call with the answers that a later round of it would bring."""
        said: JsonObject = {}
        for key, request in wanted.requests.items():
            if not call.link.can_ask(request["method"]):
                raise MCPError(types.INVALID_REQUEST, f"the client cannot answer {request['method']}")
            said[key] = await call.link.ask(request["method"], request["params"])
        return replace(call, round=Round(number=2, intent_seq=0, state=wanted.state, responses=said))

    async def _tell_changes(self, ctx: Any) -> None:
        """Tell subscribers of the modern era, and the session that asked."""
        changes, self._changed = self._changed, []
        for change in changes:
            await self.bus.publish(change)
            if is_modern(ctx):
                continue
            if isinstance(change, ToolsListChanged):
                await ctx.session.send_tool_list_changed()
            elif isinstance(change, PromptsListChanged):
                await ctx.session.send_prompt_list_changed()
            elif isinstance(change, ResourceUpdated):
                await ctx.session.send_resource_updated(change.uri)


def is_modern(ctx: Any) -> bool:
    """Whether a request came in the modern era."""
    return ctx.protocol_version in MODERN_VERSIONS


def capabilities_of(ctx: Any) -> JsonObject:
    """Return what the client of a request declared."""
    declared = ctx.session.client_capabilities
    found: JsonObject = declared.model_dump(mode="json", by_alias=True, exclude_none=True) if declared else {}
    return found


def round_of(params: Any) -> Round | None:
    """Return the answers that a modern request brings, as the fixture reads them."""
    responses, state = getattr(params, "input_responses", None), getattr(params, "request_state", None)
    if responses is None and state is None:
        return None
    said = {
        key: one if isinstance(one, dict) else one.model_dump(mode="json", by_alias=True, exclude_none=True)
        for key, one in (responses or {}).items()
    }
    return Round(number=2, intent_seq=0, state=json.loads(state) if state else None, responses=said)


def finished(ctx: Any, body: JsonObject) -> JsonObject:
    """Return a result as the era of its request wants it."""
    return {"resultType": "complete", **body} if is_modern(ctx) else body


def unfinished(result: InputRequired, capabilities: JsonObject) -> JsonObject:
    """Return the result that asks a modern client for input.

    Raises:
        MCPError: the client lacks a capability that the answer needs.
    """
    needed = {CAPABILITY_OF[request["method"]] for request in result.requests.values()}
    if missing := sorted(needed - capabilities.keys()):
        data: JsonObject = {"requiredCapabilities": {name: {} for name in missing}}
        raise MCPError(MISSING_CAPABILITY, "Missing required client capability", data)
    state = {} if result.state is None else {"requestState": json.dumps(result.state)}
    return {"resultType": "input_required", "inputRequests": result.requests, **state}


class Announcing(Server[Any]):
    """The SDK says to handshake clients that lists never change, unless it is told otherwise."""

    def create_initialization_options(self, notification_options: Any = None, *args: Any, **more: Any) -> Any:
        """As the SDK's, with every kind of change."""
        changes = NotificationOptions(tools_changed=True, resources_changed=True, prompts_changed=True)
        return super().create_initialization_options(changes, *args, **more)


def server() -> Server[Any]:
    """Build the server."""
    it = Everything()
    found = Announcing(
        "everything", version="1.0.0", on_list_tools=it.listed("tool", "tools"), on_call_tool=it.call_tool,
        on_list_resources=it.listed("resource", "resources"),
        on_list_resource_templates=it.listed("resource_template", "resourceTemplates"),
        on_read_resource=it.read_resource, on_subscribe_resource=it.nothing, on_unsubscribe_resource=it.nothing,
        on_list_prompts=it.listed("prompt", "prompts"), on_get_prompt=it.get_prompt, on_completion=it.complete,
        on_set_logging_level=it.nothing, on_subscriptions_listen=ListenHandler(it.bus),
    )  # fmt: skip
    found.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience="everything"))
    return found


async def over_stdio() -> None:
    """Serve the one client at the other end of the pipes."""
    it = server()
    async with stdio_server() as (read, write):
        await it.run(read, write, it.create_initialization_options())


async def over_http() -> None:
    """Serve /mcp on a free port of loopback, until killed."""
    app = server().streamable_http_app()
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio: no delay for TCP only
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    print(listening.getsockname()[1], flush=True)
    await uvicorn.Server(uvicorn.Config(app, log_level="error", http="h11")).serve([listening])


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # logging, sampling and roots are deprecated, and wanted here
    asyncio.run(over_stdio() if sys.argv[1] == "stdio" else over_http())
