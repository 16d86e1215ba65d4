"""`omni-mcp servers disable`, `enable` and `accept` end when it holds: the very next call shows it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from omni_mcp.testing import error_of
from tests.daemon.gateway_world import World, a_world, connect, serving
from tests.upstream.servers.web import web_server
from tests.upstream.town import Shop

LET = '@id("let") permit (principal, action, resource in Omni::Server::"up");'


async def test_the_next_call_after_accept_and_enable_runs_and_the_next_after_disable_does_not(tmp_path: Path) -> None:
    async with web_server(Shop().script()) as server, a_world() as world:
        world.home.policies.mkdir(mode=0o700)
        (world.home.policies / "let.cedar").write_text(LET)
        (world.home.policies / "let.cedar").chmod(0o600)
        await asyncio.to_thread(world.omni, "add", "up", "--url", server.url, "--accept", "none")
        async with serving(world):
            client = await connect(world)
            await asyncio.to_thread(world.omni, "accept", "up", "--all", "--read-only", "--yes")
            first = (await client.call("up__it"))["result"]
            off = await asyncio.to_thread(world.omni, "servers", "disable", "up")
            refused = (await client.call("up__it"))["result"]
            why = await asyncio.to_thread(world.omni, "explain", "last")
            on = await asyncio.to_thread(world.omni, "servers", "enable", "up")
            again = (await client.call("up__it"))["result"]
            await client.leave()

    assert (said(first), said(again)) == ("done", "done")
    assert error_of(refused)["code"] == "policy_denied"
    assert "omni-mcp servers enable up" in why.stdout
    assert off.stdout == "up is disabled: it takes no new calls\n"
    assert on.stdout == "up is enabled: its accepted tools can be called\n"


def test_without_a_gateway_it_is_said_that_it_holds_from_the_next_start(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.omni("add", "up", "--url", "http://127.0.0.1:9/mcp", "--accept", "none")

    assert "from the next start of the gateway" in world.omni("servers", "disable", "up").stdout
    assert json.loads(world.omni("servers", "enable", "up", "--json").stdout)["in_force"] is False


def said(result: Any) -> Any:
    return result["content"][0]["text"]
