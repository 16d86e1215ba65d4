"""World: a sandbox with the presets as an operator of this machine would have them, and servers in its cells."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from omni_mcp.contracts.errors import OmniError
from omni_mcp.contracts.sandbox import Connection, Mount
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox, open_sandbox
from omni_mcp.engines.sandbox.profiles import Profile, load_profiles
from omni_mcp.engines.sandbox.server_child import ServerChild, start_child
from omni_mcp.engines.sandbox.servers import ServerCells, ServerLaunch, Tail
from omni_mcp.host_places import HostPlaces
from omni_mcp.paths import Home, bundled
from tests.servers.talk import Talk

OWNER = 1234  # an ordinary user of the host, who owns the directories that servers are given


def presets(
    *, npx_read: tuple[str, ...] = (), npx_path: str = "", uvx_read: tuple[str, ...] = ()
) -> dict[str, Profile]:
    """Return the shipped profiles, with the places of this machine's Node.js and uv in those of that name."""
    found = load_profiles(bundled("sandbox") / "profiles")
    path = {"PATH": npx_path} if npx_path else {}
    own: dict[str, dict[str, object]] = {
        "npx": {"read": npx_read, "environment": {**found["npx"].environment, **path}},
        "uvx": {"read": uvx_read},
    }  # fmt: skip
    return {**found, **{name: Profile.model_validate({**found[name].model_dump(), **own[name]}) for name in own}}


@dataclass
class Running:
    """A server, the session with it, and what it tried to reach."""

    child: ServerChild
    talk: Talk
    tail: Tail
    tried: list[Connection] = field(default_factory=list)


@dataclass
class World:
    """Servers are started in *cells*; `start` ends them at the end of its context."""

    sandbox: BubblewrapSandbox
    cells: ServerCells
    homes: Path

    @asynccontextmanager
    async def start(self, launch: ServerLaunch) -> AsyncIterator[Running]:
        """Start a server, not greeted yet."""
        tail, tried = Tail(), list[Connection]()
        child = await start_child(self.cells, launch, mask=str, tail=tail, on_connection=tried.append)
        try:
            yield Running(child, Talk(child), tail, tried)
        finally:
            await child.stop()

    async def refusal(self, launch: ServerLaunch) -> str:
        """Return why a server is not even started."""
        try:
            async with self.start(launch):
                return ""
        except OmniError as error:
            return error.detail


@asynccontextmanager
async def open_world(place: Path, profiles: dict[str, Profile]) -> AsyncIterator[World]:
    """Open a sandbox with *profiles*; homes and caches of servers are below *place*."""
    async with open_sandbox(profiles=profiles, sandbox_dir=bundled("sandbox")) as sandbox:
        shown = HostPlaces(Home(config=place / "config", data=place / "data", runtime=place / "runtime"))
        cells = ServerCells(sandbox, profiles, place / "homes", secrets={}, shown=shown)
        yield World(sandbox, cells, place / "homes")


def given(place: Path, *, writable: bool = True) -> Mount:
    """The mount of a directory that the operator named."""
    return Mount(source=place, inside=str(place), writable=writable, as_owner=True)


def owned(place: Path) -> Path:
    """Give *place* and all in it to an ordinary user and close it to everybody else."""
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", f"{OWNER}:{OWNER}", str(place)], check=True)
    place.chmod(0o700)
    return place


def repository(place: Path) -> Path:
    """Make a git repository with one commit."""
    place.mkdir()
    git = ["git", "-C", str(place), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "init", "-q", "-b", "main", str(place)], check=True)
    (place / "note.txt").write_text("hello from the directory\n")
    subprocess.run([*git, "add", "note.txt"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", f"a commit in {place.name}"], check=True)
    return place
