"""Talk: just enough of MCP to ask a server for one thing after the other, over the pipes of its cell."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from omni_mcp.engines.sandbox.server_child import ServerChild

WAIT_S = 90.0


class Talk:
    """One session with *child*."""

    def __init__(self, child: ServerChild) -> None:
        self._child = child
        self._heard = b""
        self._last = 0

    async def greet(self) -> str:
        """Do the handshake; returns the server's name."""
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        answer = await self.ask("initialize", hello)
        self._say({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return str(answer["serverInfo"]["name"])

    async def call(self, tool: str, **arguments: Any) -> tuple[bool, str]:
        """Call a tool; returns whether it failed, and its text."""
        result = await self.ask("tools/call", {"name": tool, "arguments": arguments})
        return bool(result.get("isError")), "".join(block.get("text", "") for block in result["content"])

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its result."""
        self._last += 1
        self._say({"jsonrpc": "2.0", "id": self._last, "method": method, "params": params})
        async with asyncio.timeout(WAIT_S):
            while True:
                message = json.loads(await self._line())
                if message.get("id") == self._last and "method" not in message:
                    found: dict[str, Any] = message["result"]
                    return found

    def _say(self, message: dict[str, Any]) -> None:
        self._child.write(json.dumps(message).encode() + b"\n")

    async def _line(self) -> bytes:
        while b"\n" not in self._heard:
            more = await self._child.read()
            assert more, "the server closed its output"
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return line
