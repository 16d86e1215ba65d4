"""The ends that the SDKs make: their clients in each mode, and servers built on them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from omni_mcp.contracts.call import Era
from omni_mcp.server_definition import ServerDefinition
from tests.matrix.caller import Caller
from tests.matrix.node_client import CLIENT, SERVER, NodeClient, node_command
from tests.matrix.pairs import End, Transport
from tests.matrix.sdk_client import SdkClient
from tests.matrix.world import World
from tests.node.setup import Node
from tests.upstream.world import ROOT

PYTHON = (sys.executable, "-m", "tests.matrix.peers.sdk")


@dataclass(frozen=True, slots=True)
class ClientMade:
    """A client of an SDK: `made` is python, v1 or v2 (TypeScript); `mode` is how it finds a version."""

    made: str
    mode: str
    version: str

    @property
    def end(self) -> End:
        """Where it stands in the matrix."""
        return End(self.version, "http", f"{self.made}{self.mode}")

    def connect(self, world: World, node: Node | None, place: Path) -> Caller:
        """Return the client, not connected yet. *place* is a directory of its own."""
        url = f"{world.base}/mcp"
        if self.made == "python":
            return SdkClient(url, world.headers, self.mode)
        assert node is not None
        command = node_command(node, CLIENT, place)
        return NodeClient(command, url=url, token=world.token, kind=self.made, mode=self.mode)


@dataclass(frozen=True, slots=True)
class ServerMade:
    """A server on an SDK, python or typescript, that the gateway speaks to in one era."""

    made: str
    transport: Transport
    version: str

    @property
    def end(self) -> End:
        """Where it stands in the matrix."""
        return End(self.version, self.transport, self.made)

    @property
    def eras(self) -> dict[str, Era]:
        """What the gateway knows before it looks: servers of the Python SDK speak both."""
        return {} if self.end.modern else {self.end.name: "handshake"}

    @asynccontextmanager
    async def serve(self, node: Node | None, place: Path) -> AsyncIterator[ServerDefinition]:
        """Run it, if the gateway does not start it itself; yields where it is."""
        if self.transport == "stdio":
            command: tuple[str, ...] = (*PYTHON, "stdio")
            if self.made != "python":
                assert node is not None
                command = tuple(node_command(node, SERVER, place))
            yield ServerDefinition(command=command[0], args=command[1:])
            return
        process = await asyncio.create_subprocess_exec(*PYTHON, "http", stdout=subprocess.PIPE, cwd=ROOT)
        try:
            assert process.stdout is not None
            yield ServerDefinition(url=f"http://127.0.0.1:{int(await process.stdout.readline())}/mcp")
        finally:
            process.terminate()
            await process.wait()


CLIENTS = (
    ClientMade("python", "legacy", "2025-11-25"),
    ClientMade("python", "auto", "2026-07-28"),
    ClientMade("python", "2026-07-28", "2026-07-28"),
    ClientMade("v1", "", "2025-11-25"),
    ClientMade("v2", "legacy", "2025-11-25"),
    ClientMade("v2", "auto", "2026-07-28"),
)
SERVERS = (
    ServerMade("python", "stdio", "2025-11-25"),
    ServerMade("python", "stdio", "2026-07-28"),
    ServerMade("python", "http", "2025-11-25"),
    ServerMade("python", "http", "2026-07-28"),
    ServerMade("typescript", "stdio", "2025-11-25"),
)
