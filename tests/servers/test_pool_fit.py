"""The upstream pool with its servers in cells: it lists them, lets them go when idle, and knows why one ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.engines.sandbox.launcher import base_interpreter
from omni_mcp.engines.sandbox.server_child import ServerChild, start_child
from omni_mcp.engines.sandbox.servers import ServerLaunch
from omni_mcp.engines.upstream.connection import Timing
from omni_mcp.engines.upstream.envelope import ClientInfo
from omni_mcp.engines.upstream.health import Patience
from omni_mcp.engines.upstream.pool import Upstreams, open_upstreams
from omni_mcp.server_definition import MountDefinition, ServerDefinition
from tests.servers.world import World, given, owned
from tests.waiting import until

pytestmark = pytest.mark.sandbox

SMALL = """
import json, os, sys
open(os.path.join(sys.argv[1], "starts"), "a").write("x")
for line in sys.stdin:
    message = json.loads(line)
    if message.get("method") == "initialize":
        result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                  "serverInfo": {"name": "small", "version": "1"}}
    elif message.get("method") == "tools/list":
        result = {"tools": [{"name": "greet", "inputSchema": {"type": "object"}}]}
    elif "id" in message:
        error = {"code": -32601, "message": "no"}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}), flush=True)
        continue
    else:
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


def python(code: str, *words: str, **fields: Any) -> ServerDefinition:
    return ServerDefinition(command=base_interpreter().binary, args=("-I", "-S", "-c", code, *words), **fields)


@asynccontextmanager
async def pool_of(world: World, settings: ServerDefinition, *, idle_s: float | None = None) -> AsyncIterator[Upstreams]:
    """Open the pool with one server, listed once."""

    async def launch(name: str, settings: ServerDefinition, environment: Mapping[str, str]) -> ServerChild:
        return await start_child(
            world.cells,
            ServerLaunch(
                name=name, argv=(settings.command, *settings.args), profile=settings.profile, environment=environment,
                directories=tuple(given(Path(one.source), writable=one.writable) for one in settings.mounts),
                hosts=settings.hosts,
            ),
            mask=lambda text: text.replace("hunter2", "[KEY]"),
        )  # fmt: skip

    timing = Timing(patience=Patience(backoff_s=0.01, backoff_limit_s=0.05), idle_s=idle_s)
    opened = open_upstreams(
        {"small": settings}, launch=launch, secrets={"key": "hunter2"}, info=ClientInfo(version="test"), timing=timing
    )
    async with opened as pool:
        async with asyncio.timeout(60):
            await pool.listed("small")
        yield pool


@pytest.fixture
def place(tmp_path: Path) -> Path:
    found = tmp_path / "given"
    found.mkdir()
    return owned(found)


async def test_a_server_in_a_cell_is_listed_and_gone_with_the_pool(plain_world: World, place: Path) -> None:
    mark = str(place)
    async with pool_of(plain_world, python(SMALL, mark, mounts=(MountDefinition(source=mark, writable=True),))) as pool:
        listing = pool.source.find("small")
        running = processes(mark)

    assert listing is not None and [entry.name for entry in listing.entries("small", timeout_s=1.0)] == ["greet"]
    assert running and not processes(mark)


async def test_an_idle_server_ends_and_comes_back_when_it_is_wanted(plain_world: World, place: Path) -> None:
    settings = python(SMALL, str(place), mounts=(MountDefinition(source=str(place), writable=True),))
    async with pool_of(plain_world, settings, idle_s=0.05) as pool:
        await until(lambda: not processes(str(place)))
        pool.refresh("small")
        await until(lambda: (place / "starts").read_text() == "xx")


async def test_the_last_words_of_a_server_that_does_not_start_are_in_the_facts(plain_world: World) -> None:
    code = "import os, sys\nprint('bad key', os.environ['KEY'], file=sys.stderr)\nsys.exit(7)\n"
    async with pool_of(plain_world, python(code, secrets={"KEY": "key"})) as pool:
        facts = pool.facts()["small"]

    assert "exit status 7" in facts["list_fault"] and "bad key [KEY]" in facts["list_fault"]
    assert "hunter2" not in str(facts)


async def test_a_server_that_cannot_have_a_cell_is_offline_with_the_reason(plain_world: World) -> None:
    async with pool_of(plain_world, python("", profile="nothing")) as pool:
        assert "there is no sandbox profile 'nothing'" in pool.facts()["small"]["list_fault"]


def processes(mark: str) -> list[str]:
    """Return the processes of the host that have *mark* on their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        found += [pid] if os.fsencode(mark) in words else []
    return found
