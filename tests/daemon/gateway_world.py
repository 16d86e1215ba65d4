"""A whole installation in a temporary directory: real commands in real processes, as a user would run them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omni_mcp.cli.launch import control
from omni_mcp.datalock import read_note
from omni_mcp.paths import Home, find_home

OMNI = [sys.executable, "-m", "omni_mcp.cli.main"]
WAIT_S = 40.0
ALLOW_TOOLS = """
@id("test-tools")
permit (principal, action, resource in Omni::Server::"tools");
"""


class World:
    """One OMNI_HOME and everything that runs in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("OMNI_")},
            "HOME": str(root),
            "OMNI_HOME": str(root / "home"),
            "XDG_RUNTIME_DIR": str(root),
            "NO_COLOR": "1",
        }
        self.home: Home = find_home(self.environment)
        self.home.config.mkdir(mode=0o700)

    def write_settings(self, text: str) -> None:
        """Write omni.toml."""
        self.home.settings_file.write_text(text)

    def allow_tools(self) -> None:
        """Permit every tool of our own server; guardrails still ask about writes."""
        self.home.policies.mkdir(mode=0o700, exist_ok=True)
        file = self.home.policies / "test.cedar"
        file.write_text(ALLOW_TOOLS)
        file.chmod(0o600)

    def omni(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = subprocess.run([*OMNI, *arguments], env=self.environment, capture_output=True, text=True, timeout=WAIT_S)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def status(self) -> dict[str, Any]:
        """What the gateway says of itself over its socket; `{}` if none answers."""
        return control(self.home, "status") or {}

    def events(self, run_kind: str) -> list[dict[str, Any]]:
        """Return the events of the newest run of a kind, as the command line prints them."""
        listed = json.loads(self.omni("runs", "list", "--json").stdout)
        runs = listed["runs"] if isinstance(listed, dict) else listed
        run = next(run["id"] for run in runs if run["kind"] == run_kind)
        events: list[dict[str, Any]] = json.loads(self.omni("runs", "show", run, "--json").stdout)["events"]
        return events


@dataclass(slots=True)
class Client:
    """An MCP client that knows one version, on the pipes of `omni-mcp stdio`."""

    process: asyncio.subprocess.Process
    _number: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)

    async def send(self, method: str, **params: Any) -> int:
        """Send a request and return its id."""
        self._number += 1
        await self._write({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params})
        return self._number

    async def answer(self, identifier: int) -> dict[str, Any]:
        """Wait for the answer to a request."""
        assert self.process.stdout is not None
        while True:
            line = await asyncio.wait_for(self.process.stdout.readline(), WAIT_S)
            assert line, "the gateway said nothing more"
            message: dict[str, Any] = json.loads(line)
            self.seen.append(message)
            if message.get("id") == identifier and "method" not in message:
                return message

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        return await self.answer(await self.send(method, **params))

    async def greet(self) -> dict[str, Any]:
        """Go through the handshake."""
        info = {"name": "test", "version": "1"}
        answer = await self.ask("initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo=info)
        await self._write({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return answer

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool and wait for its result."""
        return await self.ask("tools/call", name=tool, arguments=arguments)

    async def leave(self) -> int:
        """Close our side and wait for the end of the process; returns its exit code."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        await asyncio.wait_for(self.process.stdout.read(), WAIT_S)
        return await asyncio.wait_for(self.process.wait(), WAIT_S)

    async def _write(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        await self.process.stdin.drain()


@asynccontextmanager
async def a_world() -> AsyncIterator[World]:
    """Yield a fresh installation; at the end whatever still runs in it is told to end."""
    root = Path(tempfile.mkdtemp(prefix="omni-t-"))
    world = World(root)
    try:
        yield world
    finally:
        if control(world.home, "drain") is not None:
            await until(lambda: read_note(world.home.daemon_lock) is None)
        shutil.rmtree(root)


@asynccontextmanager
async def serving(world: World, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `omni-mcp serve` until the context is left."""
    with (world.root / "stderr").open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            *OMNI, "serve", "--port", "0", *options, env=world.environment, stdin=subprocess.DEVNULL, stderr=stderr
        )
    try:
        await until(lambda: process.returncode is not None or bool(world.status()))
        assert process.returncode is None, (world.root / "stderr").read_text()
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), WAIT_S)


async def connect(world: World, *options: str, greet: bool = True) -> Client:
    """Start `omni-mcp stdio` as a desktop client does."""
    process = await asyncio.create_subprocess_exec(
        *OMNI, "stdio", *options, env=world.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, limit=64 * 1024 * 1024,
    )  # fmt: skip
    client = Client(process)
    if greet:
        await client.greet()
    return client


async def until(condition: Callable[[], bool], limit_s: float = WAIT_S) -> None:
    """Look again and again until *condition* holds: for states of other processes, which send no event."""
    ends_s = time.monotonic() + limit_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < ends_s, "it did not come about"
        await asyncio.sleep(0.02)


def descendants(pid: int) -> list[int]:
    """Return the processes that come from *pid*, itself included."""
    found, todo = [], [pid]
    while todo:
        found.append(current := todo.pop())
        for task in Path(f"/proc/{current}/task").glob("*/children"):
            todo += [int(child) for child in task.read_text().split()]
    return found


def is_alive(pid: int) -> bool:
    """Whether *pid* runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
