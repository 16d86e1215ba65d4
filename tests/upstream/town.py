"""Town: a whole gateway on an operator's directory, in front of scripted servers; its files and its commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from click.testing import CliRunner

from omni_mcp.assembly import open_gateway
from omni_mcp.cli.root import cli
from omni_mcp.config import load_settings
from omni_mcp.contracts.json import JsonObject
from omni_mcp.testing import ALLOW_ALL, LocalGateway, home_in, write_private
from tests.upstream.servers.web import Asked, Script, handshake, text
from tests.waiting import until

SURFACE = '[surface]\nmode = "full"\n'


@dataclass
class Shop:
    """What one scripted server offers and does; a test changes it while it runs."""

    tools: list[JsonObject] = field(default_factory=lambda: [{"name": "it", "inputSchema": {"type": "object"}}])
    calls: list[Asked] = field(default_factory=list)
    lists: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)  # calls of `slow` wait for it
    listing: asyncio.Event = field(default_factory=asyncio.Event)  # lists wait for it
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.listing.set()

    def script(self) -> Script:
        """Return what it does for a `web_server`."""
        talk = handshake(self._call)

        async def answer(asked: Asked) -> None:
            if asked.rpc == "tools/list":
                self.lists += 1
                await self.listing.wait()
                await asked.result({"tools": self.tools})
            else:
                await talk(asked)

        return answer

    async def _call(self, asked: Asked) -> None:
        self.calls.append(asked)
        if asked.message["params"]["name"] == "slow":
            self.begun.set()
            await self.open.wait()
        if asked.message["params"]["name"] == "announce":
            await asked.events()
            await asked.event({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
            await asked.event({"jsonrpc": "2.0", "id": asked.message["id"], "result": text("announced")})
            await asked.end()
            return
        await asked.result(text("done"))


@dataclass
class Town:
    """The operator and the gateway."""

    here: LocalGateway

    def runs(self, *words: str) -> Any:
        """Run a command; returns what it prints as JSON."""
        done = CliRunner(env={"OMNI_HOME": str(self.here.home.config)}).invoke(cli, [*words, "--json"])
        assert done.exit_code == 0, done.output
        return orjson.loads(done.stdout) if done.stdout.strip() else None

    def writes(self, text: str) -> None:
        """Write omni.toml."""
        write_private(self.here.home.settings_file, SURFACE + text)

    def accepts(self, name: str) -> None:
        """Accept everything that a server offers."""
        self.runs("accept", name, "--all", "--read-only", "--yes", "--accept-risks")

    async def offers(self, *names: str) -> None:
        """Wait until exactly the tools *names* of the servers behind can be called."""
        await until(lambda: self.names() == sorted(names))

    def names(self) -> list[str]:
        listed = self.here.gateway.catalog.entries("default", "tool")
        return sorted(name for name, entry in listed if entry.binding == "mcp_remote")

    def status(self, name: str) -> Any:
        return self.here.gateway.status()["servers"].get(name)

    async def accepted(self, *names: str) -> None:
        """Wait for the lists of servers, accept all of them, and wait until that is in force."""
        for name in names:
            listing = self.here.home.data / "listings" / f"{name}.json"
            await until(listing.exists)
            self.accepts(name)
        await until(lambda: {name.partition("__")[0] for name in self.names()} >= set(names))


@asynccontextmanager
async def a_town(directory: Path, settings: str = "") -> AsyncIterator[Town]:
    """Open a gateway with *settings* as its omni.toml, as the daemon does."""
    directory.mkdir(mode=0o700, exist_ok=True)
    home = home_in(directory)
    write_private(home.policies / "test.cedar", ALLOW_ALL)
    if not home.settings_file.exists():
        write_private(home.settings_file, SURFACE + settings)
    async with open_gateway(load_settings(home.settings_file), home) as gateway:
        yield Town(LocalGateway(gateway, home))
