"""Three servers behind one gateway: over stdio in a cell, over Streamable HTTP, and over HTTP+SSE; all accepted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from omni_mcp.assembly import open_gateway
from omni_mcp.config import load_settings
from omni_mcp.engines.sandbox.launcher import base_interpreter
from omni_mcp.serving.web_server import serve_http
from omni_mcp.testing import ALLOW_ALL
from tests.clients.running import OMNI, Place, new_place
from tests.matrix.peers.web import WebServer
from tests.matrix.test_operator import accept_all, listing_of
from tests.replay.script import MODERN, Heard, Script, run_script

PEERS = Path(__file__).resolve().parent.parent / "matrix" / "peers"
LINES_VERSION, SSE_VERSION = "2025-06-18", "2024-11-05"


def server_in_one_text(version: str) -> str:
    """Return the hand-written server over stdio as one program that needs no file: a cell has none of ours."""
    brain = (PEERS / "brain.py").read_text()
    lines = (PEERS / "lines.py").read_text().replace("from __future__ import annotations\n", "")
    lines = lines.replace("from tests.matrix.peers.brain import Json, Server\n", "")
    return f"{brain}\n{lines}".replace("sys.argv[1]", repr(version))


@dataclass(frozen=True, slots=True)
class World:
    """A home in which sessions are held and replayed."""

    place: Place

    async def session(self, script: Script) -> Heard:
        """Hold a session with a gateway that has the three servers."""
        return await run_script([OMNI, "stdio", "--embedded"], self.place.environment, script)

    async def replayed(self, script: Script, *runs: str, alone: bool = False, options: tuple[str, ...] = ()) -> Heard:
        """Hold a session with the record; *alone* in a network namespace without any interface that is up."""
        where = ["unshare", "--net"] if alone else []
        command = [*where, OMNI, "runs", "replay", *runs, "--offline", *options]
        return await run_script(command, self.place.environment, script)

    async def command(self, *words: str) -> str:
        """Run a command that has to succeed."""
        return await asyncio.to_thread(self.place.run, *words)

    async def newest_run(self) -> str:
        """Return the id of the newest run of a client."""
        listed = json.loads(await self.command("runs", "list", "--json"))
        return str(next(run["id"] for run in listed if run["kind"] == "session"))


@asynccontextmanager
async def world(**extra: str) -> AsyncIterator[World]:
    """Open the home with its servers running; leaving the block ends them."""
    async with AsyncExitStack() as stack:
        place = stack.enter_context(new_place(**extra))
        place.write_policy(ALLOW_ALL)
        web = await stack.enter_async_context(serve_http(WebServer(MODERN), "127.0.0.1", 0))
        old = await stack.enter_async_context(serve_http(WebServer(SSE_VERSION), "127.0.0.1", 0))
        here = World(place)
        code = server_in_one_text(LINES_VERSION)
        await here.command("add", "lines", "--", str(base_interpreter().binary), "-I", "-S", "-c", code)
        await here.command("add", "web", "--url", f"http://127.0.0.1:{web}/mcp")
        await here.command("add", "old", "--url", f"http://127.0.0.1:{old}/sse", "--transport", "sse")
        settings = load_settings(place.home.settings_file)
        async with open_gateway(settings, place.home):
            for server in ("lines", "web", "old"):
                accept_all(place.home, await listing_of(place.home, server))
        yield here
