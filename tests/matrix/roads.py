"""The three transports as a client of the tests' own sees them: lines, Streamable HTTP, HTTP+SSE."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import httpx2

from omni_mcp.gateway import Gateway
from omni_mcp.serving.lines import serve_lines
from omni_mcp.testing import ANN
from tests.matrix.caller import Json
from tests.matrix.client import MODERN, Taker

NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
BOTH = "application/json, text/event-stream"


class LinesRoad:
    """One JSON object a line, over a socket pair to the same code that serves stdio."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, version: str, take: Taker) -> None:
        """As the port."""
        ours, theirs = socket.socketpair()
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=1 << 24)
        their_reader, self._theirs = await asyncio.open_connection(sock=theirs)
        serving = serve_lines(
            self._gateway.edge, their_reader, self._theirs, principal=ANN, profile="default", transport="stdio"
        )
        self._tasks = [asyncio.create_task(serving), asyncio.create_task(_read_lines(reader, take))]

    async def send(self, message: Json) -> None:
        """As the port."""
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def stand(self) -> None:
        """Everything comes on the one stream."""

    async def abandon(self, id: int) -> bool:
        """A notification does it."""
        return False

    async def close(self) -> None:
        """As the port."""
        self._writer.close()
        await asyncio.wait(self._tasks[:1], timeout=5)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._theirs.close()


async def _read_lines(reader: asyncio.StreamReader, take: Taker) -> None:
    while line := await reader.readline():
        take(json.loads(line))


class HttpRoad:
    """Streamable HTTP; each request is read in a task of its own."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._http = httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=60, trust_env=False)
        self._session: str | None = None
        self._reading: dict[int, asyncio.Task[None]] = {}
        self._standing: asyncio.Task[None] | None = None
        self._version = ""
        self._greeted = False

    async def open(self, version: str, take: Taker) -> None:
        """As the port."""
        self._version, self._take = version, take

    def _headers(self, message: Json | None = None) -> dict[str, str]:
        headers = {"accept": BOTH, "content-type": "application/json"}
        if self._session is not None:
            headers["mcp-session-id"] = self._session
        if self._version == MODERN:
            headers["mcp-protocol-version"] = MODERN
            if message is not None and "method" in message:
                headers["mcp-method"] = message["method"]
                if (key := NAMED.get(message["method"])) is not None:
                    headers["mcp-name"] = message["params"][key]
        elif self._greeted and self._version >= "2025-06-18":
            headers["mcp-protocol-version"] = self._version
        return headers

    async def send(self, message: Json) -> None:
        """As the port."""
        if "id" in message and "method" in message:
            sent = asyncio.Event()
            task = asyncio.create_task(self._exchange(message, sent))
            self._reading[message["id"]] = task
            await sent.wait()
            return
        reply = await self._http.post(self._url, json=message, headers=self._headers(message))
        assert reply.status_code == 202, reply.text

    async def _exchange(self, message: Json, sent: asyncio.Event) -> None:
        sent.set()
        try:
            headers = self._headers(message)
            async with self._http.stream("POST", self._url, json=message, headers=headers) as reply:
                if message["method"] == "initialize":
                    self._session = reply.headers.get("mcp-session-id")
                    self._greeted = True
                if reply.headers["content-type"].startswith("application/json"):
                    self._take(json.loads(await reply.aread()))
                    return
                async for event in _events(reply):
                    self._take(event)
        except httpx2.HTTPError as error:
            self._take({"jsonrpc": "2.0", "id": message["id"], "error": {"code": 0, "message": repr(error)}})
        finally:
            self._reading.pop(message["id"], None)

    async def stand(self) -> None:
        """Hold the GET stream."""
        opened = asyncio.Event()
        self._standing = asyncio.create_task(self._stand(opened))
        await opened.wait()

    async def _stand(self, opened: asyncio.Event) -> None:
        async with self._http.stream("GET", self._url, headers=self._headers()) as reply:
            assert reply.status_code == 200, reply.status_code
            opened.set()
            async for event in _events(reply):
                self._take(event)

    async def abandon(self, id: int) -> bool:
        """A modern client closes the answer."""
        if self._version != MODERN:
            return False
        task = self._reading[id]
        task.cancel()
        await asyncio.wait({task})
        return True

    async def close(self) -> None:
        """As the port."""
        tasks = [*self._reading.values(), *([self._standing] if self._standing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._http.delete(self._url, headers=self._headers())
        await self._http.aclose()


class SseRoad:
    """HTTP+SSE of 2024-11-05: one stream for everything that comes, and an address to post to."""

    def __init__(self, base: str, token: str) -> None:
        self._base = base
        self._http = httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=60, trust_env=False)
        self._place = ""

    async def open(self, version: str, take: Taker) -> None:
        """As the port."""
        placed = asyncio.Event()
        self._reading = asyncio.create_task(self._read(take, placed))
        await placed.wait()

    async def _read(self, take: Taker, placed: asyncio.Event) -> None:
        async with self._http.stream("GET", f"{self._base}/sse", headers={"accept": "text/event-stream"}) as reply:
            async for name, data in _named_events(reply):
                if name == "endpoint":
                    self._place = data
                    placed.set()
                else:
                    take(json.loads(data))

    async def send(self, message: Json) -> None:
        """As the port."""
        reply = await self._http.post(f"{self._base}{self._place}", json=message)
        assert reply.status_code == 202, reply.text

    async def stand(self) -> None:
        """Everything comes on the one stream."""

    async def abandon(self, id: int) -> bool:
        """A notification does it."""
        return False

    async def close(self) -> None:
        """As the port."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._http.aclose()


async def _named_events(reply: httpx2.Response) -> AsyncIterator[tuple[str, str]]:
    name, data = "message", ""
    async for line in reply.aiter_lines():
        if line.startswith("event:"):
            name = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            data += line.removeprefix("data:").strip()
        elif not line:
            if data:
                yield name, data
            name, data = "message", ""


async def _events(reply: httpx2.Response) -> AsyncIterator[Json]:
    async for _, data in _named_events(reply):
        yield json.loads(data)
