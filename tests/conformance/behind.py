"""The conformance server as a process behind a gateway: over which transport, and in which era it is spoken to."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from omni_mcp.config import Settings
from omni_mcp.contracts.call import Era
from omni_mcp.daemon.run import Opener
from omni_mcp.gateway import Gateway
from omni_mcp.paths import Home
from omni_mcp.server_definition import ServerDefinition
from tests.conformance.definitions import SERVER, WATCHED
from tests.matrix.front import in_front_of
from tests.upstream.world import ROOT

COMMAND = (sys.executable, "-m", "tests.conformance.everything")


@dataclass(frozen=True, slots=True)
class Road:
    """How the gateway speaks with the server behind it, such as `stdio/modern`."""

    transport: str
    era: Era

    def __str__(self) -> str:
        return f"{self.transport}/{self.era}"


ROADS = tuple(Road(transport, era) for transport in ("stdio", "http") for era in ("handshake", "modern"))


def road_of(text: str) -> Road:
    """Return the road of that name.

    Raises:
        ValueError: there is none.
    """
    return ROADS[[str(road) for road in ROADS].index(text)]


def opener_for(road: Road) -> Opener:
    """Return what opens a gateway with the server behind it on *road*."""

    @asynccontextmanager
    async def opened(settings: Settings, home: Home) -> AsyncIterator[Gateway]:
        async with _server(road) as behind:
            eras: dict[str, Era] = {SERVER: "handshake"} if road.era == "handshake" else {}
            async with in_front_of({SERVER: behind}, settings, home, eras=eras) as (gateway, pool):
                await pool.watch(SERVER, "", WATCHED)
                yield gateway

    return opened


@asynccontextmanager
async def _server(road: Road) -> AsyncIterator[ServerDefinition]:
    if road.transport == "stdio":
        yield ServerDefinition(command=COMMAND[0], args=(*COMMAND[1:], "stdio"))
        return
    process = await asyncio.create_subprocess_exec(*COMMAND, "http", stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        yield ServerDefinition(url=f"http://127.0.0.1:{port}/mcp")
    finally:
        process.terminate()
        await process.wait()
