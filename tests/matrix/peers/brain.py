"""A hand-written server of any one version that has every feature; it knows no transport and none of our code.

Each message it takes comes with a `Sink`: where what it says about that request goes. What belongs to no request goes
to the sink that the transport names as the standing one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

Json = dict[str, Any]
Sink = Callable[[Json], Awaitable[None]]

MODERN = "2026-07-28"
WATCHED = "test://watched"
META = "io.modelcontextprotocol/"
FORM: Json = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
SAMPLE: Json = {"messages": [{"role": "user", "content": {"type": "text", "text": "hi"}}], "maxTokens": 9}
QUESTIONS: dict[str, tuple[str, Json]] = {
    "ask": ("elicitation/create", {"message": "Who are you?", "requestedSchema": FORM}),
    "sample": ("sampling/createMessage", SAMPLE),
    "roots": ("roots/list", {}),
}
NEEDS = {"ask": "elicitation", "sample": "sampling", "roots": "roots"}
ELICITS_SINCE = "2025-06-18"
TOOLS = ("echo", "fail", "refuse", "progress", "log", "hang", "cancelled", "touch", "change", *QUESTIONS)


class Server:
    """One server. `standing` takes what belongs to no request; a transport sets it when it has such a way."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.standing: Sink | None = None
        self.heard = asyncio.Event()  # set with every cancellation and subscription
        self.cancelled: list[str] = []
        self._modern = version == MODERN
        self._numbers = itertools.count(1)
        self._asked: dict[str, asyncio.Future[Json]] = {}
        self._running: dict[Any, tuple[asyncio.Task[None], str]] = {}
        self._subscribed: set[str] = set()
        self._listening: dict[Any, tuple[Json, Sink]] = {}
        self._extra = 0

    async def take(self, message: Json, sink: Sink) -> None:
        """Take one message; returns when all that it brings about has been said."""
        method = message.get("method")
        if method is None:
            waiting = self._asked.pop(str(message.get("id")), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
        elif "id" not in message:
            if method == "notifications/cancelled":
                self.cancel((message.get("params") or {}).get("requestId"))
        else:
            await self._request(message["id"], method, message.get("params") or {}, sink)

    def cancel(self, id: Any) -> None:
        """Stop a request, or a subscription, that nobody waits for any more."""
        self._listening.pop(id, None)
        found = self._running.pop(id, None)
        if found is not None:
            self.cancelled.append(found[1])
            self.heard.set()
            found[0].cancel()

    async def _request(self, id: Any, method: str, params: Json, sink: Sink) -> None:
        if method == "tools/call":
            mark = str((params.get("arguments") or {}).get("mark", ""))
            task = asyncio.create_task(self._call(id, params, sink))
            self._running[id] = task, mark
            try:
                await asyncio.wait({task})
            finally:
                self._running.pop(id, None)
            if not task.cancelled():
                task.result()
            return
        if method == "subscriptions/listen" and self._modern:
            await self._listen(id, params, sink)
            return
        handler = self._handlers().get(method)
        if handler is None:
            await sink(error(id, -32601, "Method not found"))
            return
        await self._reply(id, handler(params), sink)

    def _handlers(self) -> dict[str, Callable[[Json], Json]]:
        every: dict[str, Callable[[Json], Json]] = {
            "tools/list": lambda _: self._fresh({"tools": self._tools()}),
            "resources/list": lambda _: self._fresh({"resources": RESOURCES}),
            "resources/templates/list": lambda _: self._fresh({"resourceTemplates": TEMPLATES}),
            "resources/read": self._read,
            "prompts/list": lambda _: self._fresh({"prompts": PROMPTS}),
            "prompts/get": greeting,
            "completion/complete": completion,
        }
        if self._modern:
            return {**every, "server/discover": lambda _: self._fresh(self._discovered())}
        return {
            **every, "initialize": lambda _: self._greeted(), "ping": lambda _: {}, "logging/setLevel": lambda _: {},
            "resources/subscribe": self._subscribe, "resources/unsubscribe": self._unsubscribe,
        }  # fmt: skip

    def _capabilities(self) -> Json:
        found: Json = {
            "tools": {"listChanged": True}, "resources": {"subscribe": True, "listChanged": True},
            "prompts": {"listChanged": True}, "logging": {},
        }  # fmt: skip
        return found if self.version == "2024-11-05" else {**found, "completions": {}}

    def _greeted(self) -> Json:
        info = {"name": "matrix", "version": "1"}
        return {"protocolVersion": self.version, "capabilities": self._capabilities(), "serverInfo": info}

    def _discovered(self) -> Json:
        return {"supportedVersions": [MODERN], "capabilities": self._capabilities()}

    def _tools(self) -> list[Json]:
        names = [name for name in TOOLS if name != "ask" or self.version >= ELICITS_SINCE]
        names += [f"extra{self._extra}"] if self._extra else []
        return [{"name": name, "description": f"Tool {name}", "inputSchema": {"type": "object"}} for name in names]

    def _fresh(self, body: Json) -> Json:
        return {**body, "ttlMs": 0, "cacheScope": "public"} if self._modern else body

    def _read(self, params: Json) -> Json:
        uri = params["uri"]
        return self._fresh({"contents": [{"uri": uri, "mimeType": "text/plain", "text": f"content of {uri}"}]})

    def _subscribe(self, params: Json) -> Json:
        self._subscribed.add(params["uri"])
        self.heard.set()
        return {}

    def _unsubscribe(self, params: Json) -> Json:
        self._subscribed.discard(params["uri"])
        return {}

    async def _listen(self, id: Any, params: Json, sink: Sink) -> None:
        wanted = params.get("notifications") or {}
        self._listening[id] = wanted, sink
        stamp = {META + "subscriptionId": id}
        await sink(note("notifications/subscriptions/acknowledged", {"notifications": wanted, "_meta": stamp}))
        self.heard.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._listening.pop(id, None)

    async def _reply(self, id: Any, body: Json, sink: Sink) -> None:
        await sink(result(id, {"resultType": "complete", **body} if self._modern else body))

    async def _call(self, id: Any, params: Json, sink: Sink) -> None:
        name, arguments = params["name"], params.get("arguments") or {}
        meta = params.get("_meta") or {}
        if name in QUESTIONS:
            await self._ask(id, name, params, sink)
            return
        if name == "refuse":
            await sink(error(id, -32050, "no such luck", {"why": "test"}))
            return
        if name == "progress":
            for number in (1, 2, 3) if "progressToken" in meta else ():
                told = {"progressToken": meta["progressToken"], "progress": number, "total": 3}
                await sink(note("notifications/progress", told))
        elif name == "log" and (not self._modern or META + "logLevel" in meta):
            await sink(note("notifications/message", {"level": "info", "logger": "matrix", "data": {"said": "hello"}}))
        elif name == "hang":
            await sink(note("notifications/progress", {"progressToken": meta.get("progressToken"), "progress": 1}))
            await asyncio.get_running_loop().create_future()
        elif name == "touch":
            await self._tell_updated(sink)
        elif name == "change":
            self._extra = int(arguments["number"])
            await self._tell_changed(sink)
        words = ",".join(self.cancelled) if name == "cancelled" else str(arguments.get("text", name))
        failed = {"isError": True} if name == "fail" else {}
        await self._reply(id, {"content": [{"type": "text", "text": words}], **failed}, sink)

    async def _ask(self, id: Any, name: str, params: Json, sink: Sink) -> None:
        method, asked = QUESTIONS[name]
        if self._modern:
            if NEEDS[name] not in params["_meta"][META + "clientCapabilities"]:
                needed: Json = {"requiredCapabilities": {NEEDS[name]: {}}}
                await sink(error(id, -32021, "Missing required client capability", needed))
                return
            said = (params.get("inputResponses") or {}).get("answer")
            if said is None:
                wanted = {"answer": {"method": method, "params": asked}}
                body = {"resultType": "input_required", "inputRequests": wanted, "requestState": f"state of {name}"}
                await sink(result(id, body))
                return
            if params.get("requestState") != f"state of {name}":
                said = {"error": "the state did not come back"}
            await self._reply(id, {"content": [{"type": "text", "text": words_of(said)}]}, sink)
            return
        key = f"question-{next(self._numbers)}"
        waiting = self._asked[key] = asyncio.get_running_loop().create_future()
        await sink({"jsonrpc": "2.0", "id": key, "method": method, "params": asked})
        reply = await waiting
        said = reply.get("result") or {"error": reply["error"]["code"]}
        await self._reply(id, {"content": [{"type": "text", "text": words_of(said)}]}, sink)

    async def _tell_updated(self, sink: Sink) -> None:
        if WATCHED in self._subscribed:
            await (self.standing or sink)(note("notifications/resources/updated", {"uri": WATCHED}))
        for id, (wanted, listener) in list(self._listening.items()):
            if WATCHED in wanted.get("resourceSubscriptions", ()):
                stamp = {META + "subscriptionId": id}
                await listener(note("notifications/resources/updated", {"uri": WATCHED, "_meta": stamp}))

    async def _tell_changed(self, sink: Sink) -> None:
        if not self._modern:
            await (self.standing or sink)(note("notifications/tools/list_changed", {}))
        for id, (wanted, listener) in list(self._listening.items()):
            if wanted.get("toolsListChanged"):
                stamp = {META + "subscriptionId": id}
                await listener(note("notifications/tools/list_changed", {"_meta": stamp}))


RESOURCES: list[Json] = [{"uri": "test://static", "name": "static"}, {"uri": WATCHED, "name": "watched"}]
TEMPLATES: list[Json] = [{"uriTemplate": "test://item/{id}", "name": "item"}]
PROMPTS: list[Json] = [{"name": "greet", "arguments": [{"name": "word"}]}]


def greeting(params: Json) -> Json:
    """Answer `prompts/get`."""
    word = (params.get("arguments") or {}).get("word", "world")
    return {"messages": [{"role": "user", "content": {"type": "text", "text": f"hello {word}"}}]}


def completion(params: Json) -> Json:
    """Answer `completion/complete` with what was typed, and more."""
    start = params["argument"]["value"]
    return {"completion": {"values": [f"{start}one", f"{start}two"], "total": 2, "hasMore": False}}


def words_of(said: Json) -> str:
    """Return what a client answered, in the words that the features look for."""
    if "error" in said:
        return f"error {said['error']}"
    if "action" in said:
        return f"{said['action']} {(said.get('content') or {}).get('name', '')}".strip()
    if "roots" in said:
        return " ".join(root["uri"] for root in said["roots"])
    return str(said["content"]["text"])


def note(method: str, params: Json) -> Json:
    """A notification."""
    return {"jsonrpc": "2.0", "method": method, "params": params}


def result(id: Any, body: Json) -> Json:
    """A successful answer."""
    return {"jsonrpc": "2.0", "id": id, "result": body}


def error(id: Any, code: int, message: str, data: Any = None) -> Json:
    """An answer that says no."""
    said = {"code": code, "message": message, **({} if data is None else {"data": data})}
    return {"jsonrpc": "2.0", "id": id, "error": said}
