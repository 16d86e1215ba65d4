"""A scripted HTTP server in the test's own process, for answers that no library gives: each request meets one function.

The function gets the request and a writer for raw bytes; when it returns, the connection is closed unless it says so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Asked:
    """One request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter

    @property
    def message(self) -> dict[str, Any]:
        """The JSON in the body."""
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def rpc(self) -> str:
        """Method of the JSON-RPC message; empty for answers and other requests."""
        return str(self.message.get("method", "")) if self.body else ""

    async def raw(self, data: bytes) -> None:
        """Write bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, status: int, body: bytes = b"", media_type: str = "application/json", **headers: str) -> None:
        """Write a whole answer."""
        lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}"]
        lines += [f"content-type: {media_type}"] if body else []
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def result(self, result: dict[str, Any], **headers: str) -> None:
        """Answer the JSON-RPC request with a result."""
        message = {"jsonrpc": "2.0", "id": self.message["id"], "result": result}
        await self.reply(200, json.dumps(message).encode(), **headers)

    async def error(self, status: int, code: int, message: str = "no") -> None:
        """Answer the JSON-RPC request with an error."""
        answer = {"jsonrpc": "2.0", "id": self.message.get("id"), "error": {"code": code, "message": message}}
        await self.reply(status, json.dumps(answer).encode())

    async def events(self, *, keep_open: bool = False) -> None:
        """Begin an event stream."""
        await self.raw(b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    async def event(self, message: dict[str, Any] | None, *, id: str = "", retry_ms: int | None = None) -> None:
        """Write one event; None for one without data."""
        text = f"id: {id}\n" if id else ""
        text += f"retry: {retry_ms}\n" if retry_ms is not None else ""
        text += f"data: {json.dumps(message)}\n\n" if message is not None else "data:\n\n"
        await self.raw(b"%x\r\n%s\r\n" % (len(text.encode()), text.encode()))

    async def end(self) -> None:
        """End the event stream as HTTP wants it."""
        await self.raw(b"0\r\n\r\n")


Script = Callable[[Asked], Awaitable[None]]


class WebServer:
    """One scripted server."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.port = 0
        self.connections = 0

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.port}/mcp"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (asked := await _read(reader, writer)) is not None:
                self.asked.append(asked)
                await self.script(asked)
                if writer.is_closing():
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections -= 1
            writer.close()


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked | None:
    head = await reader.readline()
    if not head.strip():
        return None
    method, target, _ = head.decode().split(" ", 2)
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode().strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(method, target, headers, body, writer)


@asynccontextmanager
async def web_server(script: Script) -> AsyncIterator[WebServer]:
    """Serve *script* on a free port of loopback."""
    server = WebServer(script)
    tasks: set[asyncio.Task[None]] = set()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(server.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listening = await asyncio.start_server(accepted, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def handshake(call: Script, *, session: str = "s-1", version: str = "2025-11-25", get: Script | None = None) -> Script:
    """A handshake server whose `tools/call` is *call*; it has one tool, `it`."""

    async def script(asked: Asked) -> None:
        if asked.method == "GET":
            await (get(asked) if get else asked.reply(405))
        elif asked.method == "DELETE":
            await asked.reply(200)
        elif asked.rpc == "server/discover":
            await asked.error(400, -32600)
        elif asked.rpc == "initialize":
            capabilities = {"tools": {"listChanged": True}}
            result = {"protocolVersion": version, "capabilities": capabilities, "serverInfo": {"name": "web"}}
            await asked.result(result, mcp_session_id=session)
        elif asked.rpc == "tools/list":
            await asked.result({"tools": [{"name": "it", "inputSchema": {"type": "object"}}]})
        elif asked.rpc == "tools/call":
            await call(asked)
        else:
            await asked.reply(202)

    return script


def modern(call: Script, *, tools: list[dict[str, Any]] | None = None) -> Script:
    """A modern server whose `tools/call` is *call*."""
    offered = tools or [{"name": "it", "inputSchema": {"type": "object"}}]

    async def script(asked: Asked) -> None:
        if asked.method != "POST":
            await asked.reply(405)
        elif asked.rpc == "server/discover":
            await asked.result(
                {"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}},
                 "ttlMs": 0, "cacheScope": "public"}
            )  # fmt: skip
        elif asked.rpc == "tools/list":
            await asked.result({"resultType": "complete", "tools": offered, "ttlMs": 0, "cacheScope": "public"})
        elif asked.rpc == "tools/call":
            await call(asked)
        else:
            await asked.error(404, -32601)

    return script


def text(words: str) -> dict[str, Any]:
    """A result with one text."""
    return {"content": [{"type": "text", "text": words}], "resultType": "complete"}
