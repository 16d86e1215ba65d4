"""A pinned remote tool keeps its name, definition, labels and version when its server or the gateway starts again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.upstream.servers.web import web_server
from tests.upstream.town import Shop, Town, a_town
from tests.waiting import until

FIRST = {"name": "it", "description": "First.", "inputSchema": {"type": "object"}}
SECOND = {"name": "it", "description": "Second.", "inputSchema": {"type": "object", "required": ["x"]}}


async def facts(town: Town) -> tuple[Any, ...]:
    """Call the tool as a client of the pinned project; returns what it was shown and what was decided on."""
    async with town.here.client() as client:
        [shown] = [one for one in await client.listed("tools") if one["name"] == "up__it"]
        result = await client.call("up__it", {})
    decided = [event.payload for event in await town.here.events() if event.code == "policy_decided"][-1]
    assert decided is not None
    keys = ("server", "tool", "tool_version", "definition_digest", "policy_version", "executor")
    return shown["description"], result.get("isError", False), *(decided[key] for key in keys)


async def test_nothing_of_a_pinned_tool_changes_when_its_server_or_the_gateway_starts_again(tmp_path: Path) -> None:
    shop = Shop(tools=[FIRST])
    async with web_server(shop.script()) as server:
        settings = f'[servers.up]\nurl = "{server.url}"\n'
        async with a_town(tmp_path, settings) as town:
            await town.accepted("up")
            town.runs("pins", "set", "default", "up__it", "1")
            await town.here.gateway.reload_lock()
            before = await facts(town)
            shop.tools = [SECOND]
            town.runs("servers", "list")
            lists = shop.lists
        async with a_town(tmp_path) as again:  # the server is another process for it, and offers something else
            async with again.here.client() as client:
                await client.call("up__it", {})
            await until(lambda: shop.lists > lists)
            listing = again.here.home.data / "listings" / "up.json"
            await until(lambda: "Second." in listing.read_text())
            again.accepts("up")
            await again.here.gateway.reload_lock()
            await until(lambda: again.names() == ["up__it"])
            after = await facts(again)

    assert before[:5] == ("First.", False, "up", "it", "1")
    assert after == before
