"""An MCP server with one tool that costs as little as a server can: what proxies are measured in front of.

Run as a module it serves an inherited socket over HTTP (`--socket FD`), or lines over stdio (`--stdio`).
"""

from __future__ import annotations

import argparse
import socket
import sys
from typing import Any

import orjson
import uvicorn

from tests.bench.gateway import body_of

VERSION = "2025-11-25"
TOOL = {
    "name": "echo",
    "description": "Answers with its text.",
    "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
}
HELLO = {
    "protocolVersion": VERSION, "capabilities": {"tools": {"listChanged": False}},
    "serverInfo": {"name": "echo", "version": "1"},
}  # fmt: skip


def answer(message: dict[str, Any]) -> dict[str, Any] | None:
    """Answer one message; nothing for what is no request."""
    id, method = message.get("id"), message.get("method")
    if id is None or method is None:
        return None
    if method == "tools/call":
        text = message["params"]["arguments"]["text"]
        result: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": False}
    elif method == "tools/list":
        result = {"tools": [TOOL]}
    elif method == "initialize":
        asked = message["params"].get("protocolVersion", VERSION)
        result = {**HELLO, "protocolVersion": min(asked, VERSION)}
    elif method == "ping":
        result = {}
    else:
        return {"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "Method not found"}}
    return {"jsonrpc": "2.0", "id": id, "result": result}


async def over_http(scope: Any, receive: Any, send: Any) -> None:
    """As ASGI: answers are JSON, and there is no stream of its own."""
    if scope["type"] != "http":
        return
    body = await body_of(receive)
    reply = answer(orjson.loads(body)) if scope["method"] == "POST" else None
    status = 200 if reply else 202 if scope["method"] == "POST" else 405
    data = orjson.dumps(reply) if reply else b""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def over_stdio() -> None:
    """Answer lines."""
    for line in sys.stdin.buffer:
        reply = answer(orjson.loads(line))
        if reply is not None:
            sys.stdout.buffer.write(orjson.dumps(reply) + b"\n")
            sys.stdout.buffer.flush()


def main() -> None:
    """Serve until the other side goes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, default=0)
    parser.add_argument("--stdio", action="store_true")
    given = parser.parse_args()
    if given.stdio:
        over_stdio()
        return
    config = uvicorn.Config(
        over_http, log_level="error", loop="uvloop", http="httptools", access_log=False, timeout_keep_alive=600
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=given.socket)])


if __name__ == "__main__":
    main()
