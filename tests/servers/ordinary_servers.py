"""Run by an ordinary user: starts the four servers in cells and prints what they answered as one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from omni_mcp.engines.sandbox.server_child import ServerEnded
from tests.servers.launches import from_json
from tests.servers.world import World, open_world, presets


async def filesystem(world: World, order: dict[str, Any]) -> Any:
    launch = from_json(order["launches"]["filesystem"])
    place = launch.directories[-1].source
    async with world.start(launch) as running:
        await running.talk.greet()
        read = await running.talk.call("read_text_file", path=str(place / "note.txt"))
        wrote, _ = await running.talk.call("write_file", path=str(place / "new.txt"), content="made")
        closed, _ = await running.talk.call("read_text_file", path=f"{order['beside']}/note.txt")
        return [read, wrote, closed]


async def memory(world: World, order: dict[str, Any]) -> Any:
    async with world.start(from_json(order["launches"]["memory"])) as running:
        await running.talk.greet()
        return (await running.talk.call("read_graph"))[0]


async def clock(world: World, order: dict[str, Any]) -> Any:
    async with world.start(from_json(order["launches"]["time"])) as running:
        await running.talk.greet()
        return (await running.talk.call("get_current_time", timezone="Asia/Tokyo"))[1]


async def git(world: World, order: dict[str, Any]) -> Any:
    launch = from_json(order["launches"]["git"])
    async with world.start(launch) as running:
        await running.talk.greet()
        mine = await running.talk.call("git_log", repo_path=str(launch.directories[-1].source))
        other = await running.talk.call("git_log", repo_path=order["beside"])
        return [[mine[0], "a commit in mine" in mine[1]], [other[0], "a commit in beside" in other[1]]]


async def half(world: World, order: dict[str, Any]) -> Any:
    if set(order["half"]["hosts"]) == set(order["all_hosts"]):
        return "one host"
    async with world.start(from_json(order["half"])) as running:
        try:
            return await running.talk.greet()
        except ServerEnded as error:
            return str(error)


async def main(order: dict[str, Any]) -> None:
    profiles = presets(npx_read=order["npx_read"], npx_path=order["npx_path"], uvx_read=order["uvx_read"])
    async with open_world(Path(order["place"]), profiles) as world:
        tasks = {"filesystem": filesystem, "memory": memory, "time": clock, "git": git, "half": half}
        print(json.dumps({name: await task(world, order) for name, task in tasks.items()}))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
