"""A client that speaks lines over a socket pair, with raw bytes where a test wants them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson

from omni_mcp.contracts.call import Principal
from omni_mcp.serving.lines import serve_lines
from tests.serving.edge_world import ANN, World


class LineClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: asyncio.Task[None]) -> None:
        self.reader = reader
        self.writer = writer
        self.server = server

    @classmethod
    @asynccontextmanager
    async def open(cls, world: World, *, principal: Principal = ANN, **options: Any) -> AsyncIterator[LineClient]:
        """Connect to an edge; leaving closes the client's side and waits until the server is done."""
        ours, theirs = socket.socketpair()
        their_reader, their_writer = await asyncio.open_connection(sock=theirs)
        server = asyncio.create_task(
            serve_lines(world.edge, their_reader, their_writer, principal=principal, profile="default",
                        transport="stdio", **options)
        )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=ours, limit=64 * 1024 * 1024)
        client = cls(reader, writer, server)
        try:
            yield client
        finally:
            if not writer.is_closing():
                writer.write_eof()
            await asyncio.wait_for(server, 30)
            for side in (writer, their_writer):
                side.close()
                with suppress(ConnectionError):
                    await side.wait_closed()

    def send(self, *messages: Any) -> None:
        """Send messages; bytes go as they are."""
        for message in messages:
            self.writer.write(message if isinstance(message, bytes) else orjson.dumps(message) + b"\n")

    async def receive(self) -> Any:
        """Return the next message."""
        line = await asyncio.wait_for(self.reader.readline(), 30)
        assert line, "the server closed the connection"
        return orjson.loads(line)

    async def start(self, version: str = "2025-11-25", **capabilities: Any) -> Any:
        """Do the handshake."""
        params = {"protocolVersion": version, "capabilities": capabilities, "clientInfo": {"name": "c", "version": "1"}}
        self.send({"jsonrpc": "2.0", "id": "init", "method": "initialize", "params": params})
        answer = await self.receive()
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return answer

    async def ask(self, method: str, params: Any = None, *, id: Any = 1) -> Any:
        """Send one request and return its answer; other messages before it are dropped."""
        self.send({"jsonrpc": "2.0", "id": id, "method": method, "params": params or {}})
        while True:
            answer = await self.receive()
            if answer.get("id") == id and "method" not in answer:
                return answer
