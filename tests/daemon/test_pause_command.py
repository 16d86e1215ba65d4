"""`omni-mcp pause` and `resume` end when it holds: the very next call shows it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from omni_mcp.testing import error_of
from tests.daemon.gateway_world import World, a_world, connect, serving


async def test_the_next_call_after_pause_is_refused_and_the_next_after_resume_is_not(tmp_path: Path) -> None:
    async with a_world() as world:
        world.allow_tools()
        async with serving(world):
            client = await connect(world)
            for _ in range(2):
                said = await asyncio.to_thread(world.omni, "pause", "tool", "tools__text_hash")
                refused = (await client.call("tools__text_hash", text="x"))["result"]
                again = await asyncio.to_thread(world.omni, "resume", "tool", "tools__text_hash")
                taken = (await client.call("tools__text_hash", text="x"))["result"]

                assert (error_of(refused)["code"], taken["isError"]) == ("paused", False)
                assert said.stdout == "paused: tools__text_hash takes no new calls\n"
                assert again.stdout == "resumed: tools__text_hash takes calls again\n"
            await client.leave()


def test_without_a_gateway_it_is_said_that_it_holds_from_the_next_start(tmp_path: Path) -> None:
    world = World(tmp_path)
    said = world.omni("pause", "server", "tools").stdout
    facts = json.loads(world.omni("pause", "server", "tools", "--json").stdout)
    again = world.omni("resume", "server", "tools").stdout

    assert "from the next start of the gateway" in said and "from the next start of the gateway" in again
    assert facts["in_force"] is False
