"""The hand-written server over Streamable HTTP and over HTTP+SSE, as an ASGI application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tests.matrix.peers.brain import MODERN, Json, Server

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
SESSION = b"the-only-session"


class WebServer:
    """One server under `/mcp` or, for the older transport, `/sse` and `/messages`."""

    def __init__(self, version: str) -> None:
        self.server = Server(version)
        self._modern = version == MODERN
        self._standing: asyncio.Queue[Json] = asyncio.Queue()
        self._work: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """As ASGI."""
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        if path == "/sse" and method == "GET":
            await self._stand(receive, send, first="event: endpoint\ndata: /messages\n\n")
        elif path == "/messages" and method == "POST":
            await self._take(await body_of(receive), send)
        elif path == "/mcp" and method == "POST":
            await self._post(scope, receive, send)
        elif path == "/mcp" and method == "GET" and not self._modern:
            await self._stand(receive, send)
        elif path == "/mcp" and method == "DELETE":
            await answer(send, 200)
        else:
            await answer(send, 405)

    async def _take(self, message: Json, send: Send) -> None:
        """Take a message whose answer goes elsewhere."""
        self.server.standing = self._standing.put
        task = asyncio.create_task(self.server.take(message, self._standing.put))
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        await answer(send, 202)

    async def _post(self, scope: Message, receive: Receive, send: Send) -> None:
        message = await body_of(receive)
        fault = self._fault(scope, message)
        if fault is not None:
            said = {"jsonrpc": "2.0", "id": message.get("id"), "error": {"code": fault, "message": "wrong headers"}}
            await answer(send, 400, json.dumps(said).encode())
            return
        if "id" not in message or "method" not in message:
            await self._take(message, send)
            return
        said_here: asyncio.Queue[Json] = asyncio.Queue()
        work = asyncio.create_task(self.server.take(message, said_here.put))
        gone = asyncio.create_task(until_gone(receive))
        try:
            await self._stream(message, said_here, work, gone, send)
        finally:
            gone.cancel()
            if self._modern and not work.done():
                self.server.cancel(message["id"])
                work.cancel()

    async def _stream(
        self, message: Json, said: asyncio.Queue[Json], work: asyncio.Task[None], gone: asyncio.Task[None], send: Send
    ) -> None:
        """Answer with JSON if the answer comes first, else with a stream."""
        session = [(b"mcp-session-id", SESSION)] if message["method"] == "initialize" else []
        streaming = False
        while True:
            taking = asyncio.create_task(said.get())
            await asyncio.wait({taking, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                taking.cancel()
                return
            news = taking.result()
            is_answer = news.get("id") == message["id"] and "method" not in news
            if is_answer and not streaming:
                await answer(send, 200, json.dumps(news).encode(), session)
                return
            if not streaming:
                streaming = True
                await begin(send)
            await send({"type": "http.response.body", "body": event(news), "more_body": not is_answer})
            if is_answer:
                return

    def _fault(self, scope: Message, message: Json) -> int | None:
        """Return the error of a request whose headers do not say what its version wants them to."""
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        method, version = message.get("method"), headers.get("mcp-protocol-version")
        if self._modern:
            params = message.get("params") or {}
            named = params.get("uri" if method == "resources/read" else "name")
            if version != MODERN or headers.get("mcp-method") != method:
                return -32020
            needs_name = method in ("tools/call", "resources/read", "prompts/get")
            return -32020 if needs_name and headers.get("mcp-name") != named else None
        if method in ("initialize", "server/discover"):
            return -32600 if method == "server/discover" else None
        wants_version = self.server.version >= "2025-06-18"
        fit = headers.get("mcp-session-id") == SESSION.decode()
        return None if fit and (not wants_version or version == self.server.version) else -32600

    async def _stand(self, receive: Receive, send: Send, *, first: str = "") -> None:
        """Hold the stream for what belongs to no request."""
        self.server.standing = self._standing.put
        await begin(send)
        await send({"type": "http.response.body", "body": (first or ": open\n\n").encode(), "more_body": True})
        gone = asyncio.create_task(until_gone(receive))
        try:
            while not gone.done():
                taking = asyncio.create_task(self._standing.get())
                await asyncio.wait({taking, gone}, return_when=asyncio.FIRST_COMPLETED)
                if taking.done():
                    await send({"type": "http.response.body", "body": event(taking.result()), "more_body": True})
                else:
                    taking.cancel()
        finally:
            gone.cancel()


async def body_of(receive: Receive) -> Json:
    """Read one JSON body."""
    data = b""
    while True:
        part = await receive()
        data += part.get("body", b"")
        if not part.get("more_body"):
            found: Json = json.loads(data)
            return found


async def until_gone(receive: Receive) -> None:
    """Wait until the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def begin(send: Send) -> None:
    """Begin an event stream."""
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def answer(send: Send, status: int, body: bytes = b"", headers: list[tuple[bytes, bytes]] | None = None) -> None:
    """Send a whole answer."""
    kind = [(b"content-type", b"application/json")] if body else []
    await send({"type": "http.response.start", "status": status, "headers": [*kind, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})


def event(message: Json) -> bytes:
    """One message as an event."""
    return f"event: message\ndata: {json.dumps(message)}\n\n".encode()
