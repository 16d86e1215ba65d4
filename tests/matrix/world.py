"""One gateway in front of a hand-written server at every end, and clients of every end before it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from omni_mcp.config import LimitSettings, Settings, SurfaceSettings
from omni_mcp.contracts.call import Era
from omni_mcp.engines.upstream.connection import Timing
from omni_mcp.engines.upstream.pool import Upstreams
from omni_mcp.gateway import Gateway
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.serving.web_server import serve_http
from omni_mcp.testing import ALLOW_ALL, ANN, LocalGateway, home_in, write_private
from tests.matrix.caller import Caller
from tests.matrix.client import Client, Road
from tests.matrix.features import Cell
from tests.matrix.front import in_front_of
from tests.matrix.pairs import End, Pair
from tests.matrix.peers.web import WebServer
from tests.matrix.roads import HttpRoad, LinesRoad, SseRoad

PROMPT = Timing(list_settle_s=0.0, list_pause_s=0.0)


@dataclass
class World:
    """What a pair needs to meet; clients are connected once and kept."""

    gateway: Gateway
    pool: Upstreams
    base: str
    token: str
    clients: dict[End, Caller] = field(default_factory=dict)

    async def cell(self, pair: Pair) -> Cell:
        """Return the cell of *pair*, its client connected."""
        client = self.clients.get(pair.client)
        if client is None:
            client = Client(pair.client.version, self._road(pair.client))
            await self.join(pair.client, client)
        return Cell(pair, client, partial(self.pool.watch, pair.server.name, ""))

    async def join(self, end: End, client: Caller) -> None:
        """Connect *client*; it is the one at *end* from then on."""
        await client.open()
        self.clients[end] = client

    @property
    def headers(self) -> dict[str, str]:
        """What a client sends over HTTP."""
        return {"authorization": f"Bearer {self.token}"}

    def _road(self, end: End) -> Road:
        if end.transport == "stdio":
            return LinesRoad(self.gateway)
        if end.transport == "sse":
            return SseRoad(self.base, self.token)
        return HttpRoad(f"{self.base}/mcp", self.token)


@asynccontextmanager
async def open_world(
    servers: Collection[End], *, others: Mapping[str, ServerDefinition] | None = None,
    eras: Mapping[str, Era] | None = None,
) -> AsyncIterator[World]:  # fmt: skip
    """Open a gateway in front of a hand-written server at each of *servers*.

    Args:
        others: servers that somebody else wrote, by the name of their end.
        eras: of servers by name, where they are not to be probed.
    """
    settings = Settings(
        limits=LimitSettings(calls_per_minute=1_000_000, events_per_run=1_000_000), surface=SurfaceSettings(mode="full")
    )
    async with AsyncExitStack() as stack:
        home = home_in(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="omni-x-"))))
        write_private(home.policies / "test.cedar", ALLOW_ALL)
        behind = {end.name: await _server(end, stack) for end in servers} | dict(others or {})
        opening = in_front_of(behind, settings, home, timing=PROMPT, eras=eras)
        gateway, pool = await stack.enter_async_context(opening)
        base, [token] = await stack.enter_async_context(LocalGateway(gateway, home).http(ANN))
        world = World(gateway, pool, base, token)
        try:
            yield world
        finally:
            for client in world.clients.values():
                await client.close()


async def _server(end: End, stack: AsyncExitStack) -> ServerDefinition:
    if end.transport == "stdio":
        return ServerDefinition(command=sys.executable, args=("-m", "tests.matrix.peers.lines", end.version))
    port = await stack.enter_async_context(serve_http(WebServer(end.version), "127.0.0.1", 0))
    if end.transport == "sse":
        return ServerDefinition(url=f"http://127.0.0.1:{port}/sse", transport="sse")
    return ServerDefinition(url=f"http://127.0.0.1:{port}/mcp", transport="http")
