"""A server that offers what a test says, and a lock beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from omni_mcp.config import Settings, SurfaceSettings
from omni_mcp.contracts.events import draft
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.lock import NAME_FIELDS, launch_parts
from omni_mcp.contracts.manifest import Closed, Labels
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.acceptance import accept, answer_to
from omni_mcp.engines.catalog.lock import LockedSource
from omni_mcp.engines.catalog.lock_listing import KeptListing
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.testing import ALLOW_ALL, Canary, LocalGateway, local_gateway

AT = "2026-11-21T12:00:00.000000Z"
LAUNCH = launch_parts({"command": "npx", "args": ["-y", "notes@1.0.0"], "profile": "npx"})
OTHER_LAUNCH = launch_parts({"command": "npx", "args": ["-y", "notes@2.0.0"], "profile": "npx"})
READ_ONLY = Labels(read_only=True, destructive=False)


def tool(name: str = "look", description: str = "Look at a note.", **more: Any) -> JsonObject:
    """A tool as a server defines it."""
    schema = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}
    return {"name": name, "description": description, "inputSchema": schema, **more}


class Server:
    """A source: one server whose lists and launch a test changes."""

    def __init__(self, *definitions: JsonObject, name: str = "notes") -> None:
        self.name = name
        self.items: dict[str, list[JsonObject]] = {"tool": list(definitions)}
        self.launch: Mapping[str, str] = LAUNCH

    def offers(self, *definitions: JsonObject, kind: str = "tool") -> None:
        self.items[kind] = list(definitions)

    def load(self) -> Iterable[Entry]:
        """As the port: made anew each time, quarantined, as the listings of upstreams are."""
        return [
            Entry(
                kind=kind, server=self.name, name=item[NAME_FIELDS[kind]], definition=item, binding="mcp_remote",
                state="quarantined",
            )
            for kind in NAME_FIELDS
            for item in self.items.get(kind, ())
        ]  # fmt: skip

    def launch_of(self, server: str) -> Mapping[str, str]:
        return {self.name: self.launch}[server]

    def listing(self) -> KeptListing:
        """What the gateway would keep of it."""
        return KeptListing(server=self.name, seen_at=AT, launch=dict(self.launch), items=dict(self.items))


class World:
    """A gateway in front of a server, and the person who accepts."""

    def __init__(self, here: LocalGateway, server: Server, source: LockedSource, lock: LockFile) -> None:
        self.here = here
        self.server = server
        self.source = source
        self.lock = lock

    def accept(self, *names: str, labels: Labels = READ_ONLY) -> None:
        """Accept what waits, all of it or only *names*, in another object on the same file, as a command does."""
        answer(LockFile(self.lock.path), self.source, names, labels)
        assert self.lock.reload().changed
        self.here.gateway.catalog.reload()

    def record(self, payload: Closed) -> None:
        """Write something down in the gateway's own run."""
        run = self.here.gateway.status()["log"]["run"]
        self.here.gateway.log.append(run, draft(payload, actor="gateway"))

    def changes(self, *definitions: JsonObject) -> None:
        """The server offers other tools from now on, and the gateway saw them."""
        self.server.offers(*definitions)
        self.here.gateway.catalog.reload()

    def relaunched(self, launch: Mapping[str, str]) -> None:
        """The server is launched otherwise from now on."""
        self.server.launch = launch
        self.here.gateway.catalog.reload()

    async def listed(self) -> list[str]:
        """Return the names of the server's tools that a client sees."""
        async with self.here.client() as client:
            names = [one["name"] for one in await client.listed("tools")]
        return [name for name in names if name.startswith(f"{self.server.name}__")]


def answer(lock: LockFile, source: LockedSource, names: tuple[str, ...], labels: Labels) -> None:
    """Say yes to what waits."""
    waiting = [one for one in source.waiting if not names or one.name in names]
    answers = [answer_to(one, one.difference(), labels) for one in waiting]
    assert answers, "nothing of that waits"
    lock.edit(lambda now: accept(now, answers, by="1000", at=AT))


@asynccontextmanager
async def a_world(canary: Canary, directory: Path, server: Server, rules: str = ALLOW_ALL) -> AsyncIterator[World]:
    """Open a gateway in front of *server*; nothing of it is accepted."""
    directory.mkdir(mode=0o700, exist_ok=True)
    lock = LockFile(directory / "home" / "omni.lock")
    lock.reload()
    source = LockedSource(server, lock, launch_of=server.launch_of)
    everything = Settings(surface=SurfaceSettings(mode="full"))
    async with local_gateway(
        rules, sources=[source], executors={"mcp_remote": canary}, directory=directory, settings=everything, cells=False
    ) as here:
        world = World(here, server, source, lock)
        source.listen(world.record)
        yield world


def locked_names(lock: LockFile, server: str = "notes") -> list[str]:
    """Return what the file says is accepted, as `tool/look@1`."""
    return [f"{item}@{version}" for found, item, version, _ in lock.read().versions() if found == server]
