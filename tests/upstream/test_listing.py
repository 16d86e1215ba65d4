"""What a server lists is taken verbatim, one bad definition at a time, and never more than the caps allow."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import orjson
import pytest

from omni_mcp.contracts.manifest import Labels
from omni_mcp.engines.upstream.listing import ITEMS_LIMIT, PAGES_LIMIT, Listing, Listings
from omni_mcp.engines.upstream.pool import Known
from omni_mcp.server_definition import ServerDefinition
from tests.upstream.servers.web import Asked, handshake, web_server
from tests.upstream.world import python_server, world

TOOL: dict[str, Any] = {"name": "it", "inputSchema": {"type": "object"}}


def raw(**options: Any) -> ServerDefinition:
    return python_server("raw", json.dumps(options))


async def test_bad_tools_are_left_out_by_name_and_the_others_stay_as_they_are() -> None:
    async with world({"up": raw(list="bad_tools")}) as here, here.client() as client:
        tools = {tool["name"]: tool for tool in await client.listed("tools") if tool["name"].startswith("up__")}
        problems = here.pool.facts()["up"]["problems"]

    assert tools["up__echo"]["x-vendor"] == {"kept": "echo"}
    assert not {"up__no_schema", "up__bool", "up__echo2"} & set(tools)
    assert any(len(name) == 64 and name.startswith("up__nnn") for name in tools)
    assert len(problems) == 6 and any("used twice" in problem for problem in problems)


async def test_tools_that_nobody_could_call_are_left_out_with_the_reason() -> None:
    async with world({"up": raw(list="useless_tools")}) as here, here.client() as client:
        names = {tool["name"] for tool in await client.listed("tools")}
        problems = here.pool.facts()["up"]["problems"]

    assert "up__echo" in names
    assert not {"up__task", "up__wrong", "up__lost", "up__out"} & names
    assert [problem.split("'")[1] for problem in problems] == ["task", "wrong", "lost", "out"]
    assert "as a task only" in problems[0] and "inputSchema is refused" in problems[1] and "outputSchema" in problems[3]


@pytest.mark.parametrize(("kind", "tools", "word"), [("endless", 0, "pages"), ("loop", 1, "cursor")])
async def test_a_list_without_an_end_is_cut(kind: str, tools: int, word: str) -> None:
    async with world({"up": raw(list=kind)}) as here:
        listing = here.pool.source.find("up")

    assert listing is not None
    assert len(listing.items["tool"]) == tools
    assert word in listing.problems[0]


async def test_more_items_than_allowed_are_left_out() -> None:
    pages = []

    async def unused(asked: Asked) -> None:
        await asked.error(200, -32601)

    script = handshake(unused)

    async def many(asked: Asked) -> None:
        if asked.rpc != "tools/list":
            await script(asked)
            return
        pages.append(asked)
        start = (len(pages) - 1) * 3000
        tools = [{**TOOL, "name": f"t{start + n}"} for n in range(3000)]
        await asked.result({"tools": tools, "nextCursor": f"c{len(pages)}"})

    async with web_server(many) as server:
        async with world({"up": ServerDefinition(url=server.url)}) as here:
            listing = here.pool.source.find("up")

    assert listing is not None
    assert len(listing.items["tool"]) == ITEMS_LIMIT
    assert len(pages) == 2 < PAGES_LIMIT


async def test_a_definition_is_quarantined_with_the_worst_labels_until_somebody_accepts_it() -> None:
    source = Listings()
    source.use({"up": 30.0}, {"up": Listing(items={"tool": [TOOL]})})
    entry = source.load()[0]

    assert (entry.state, entry.binding, entry.labels, entry.limits.timeout_s) == (
        "quarantined",
        "mcp_remote",
        Labels(),
        30,
    )
    assert entry.definition == TOOL

    trusted = Listings(accept=lambda entry: replace(entry, state="accepted"))
    trusted.use({"up": 30.0}, {"up": Listing(items={"tool": [TOOL]})})
    assert trusted.load()[0].state == "accepted"


async def test_what_an_earlier_process_listed_is_served_without_waiting_for_the_server() -> None:
    known = Listing(items=orjson.loads(orjson.dumps({"tool": [TOOL]})))
    silent = ServerDefinition(command="/bin/sleep", args=("60",))
    started: list[str] = []

    async def launch(*asked: Any) -> Any:
        started.append("")
        await asyncio.sleep(60)

    from omni_mcp.engines.upstream.envelope import ClientInfo
    from omni_mcp.engines.upstream.pool import open_upstreams

    async with open_upstreams(
        {"up": silent}, launch=launch, secrets={}, info=ClientInfo(), known=Known(listings={"up": known})
    ) as pool:
        entries = list(pool.source.load())

    assert [entry.name for entry in entries] == ["it"] and not started
