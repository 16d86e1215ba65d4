"""Lists that change and resources that are watched are told while somebody cares, in both eras."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from omni_mcp.contracts.call import Era
from omni_mcp.engines.upstream.connection import Timing
from omni_mcp.engines.upstream.pool import Known
from omni_mcp.server_definition import ServerDefinition
from tests.upstream.servers.web import Asked, handshake, text, web_server
from tests.upstream.world import QUICK, python_server, sdk_over_http, world
from tests.waiting import until


@pytest.fixture(scope="module")
def sdk_url() -> Iterator[str]:
    with sdk_over_http() as url:
        yield url


@pytest.mark.parametrize(
    "link",
    [
        "stdio/modern", "http/handshake", "sse/handshake",
        *(pytest.param(one, marks=pytest.mark.long) for one in ("stdio/handshake", "http/modern")),
    ],
)  # fmt: skip
async def test_a_new_tool_is_listed_and_an_updated_resource_is_told(link: str, sdk_url: str) -> None:
    kind, _, era = link.partition("/")
    settings = {
        "stdio": python_server("sdk", "stdio"),
        "http": ServerDefinition(url=f"{sdk_url}/mcp"),
        "sse": ServerDefinition(url=f"{sdk_url}/sse", transport="sse"),
    }[kind]
    eras: dict[str, Era] = {settings.definition: "handshake"} if era == "handshake" else {}
    async with world({"up": settings}, known=Known(eras=eras)) as here, here.client(version="2025-11-25") as client:
        before = {tool["name"] for tool in await client.listed("tools")}
        await client.call("up__change")
        await here.heard.until("list_changed", "up")
        async with asyncio.timeout(30):
            while not (new := {tool["name"] for tool in await client.listed("tools")} - before):
                client.heard.clear()
                await client.heard.wait()
        await here.pool.watch("up", "", "test://watched")
        await client.call("up__touch")
        await here.heard.until("resource", "up", "test://watched")

    assert len(new) == 1 and new.pop().startswith("up__new")


async def test_watching_survives_a_server_that_dies() -> None:
    options = json.dumps({"capabilities": {"resources": {"subscribe": True}}})
    async with world({"up": python_server("raw", options)}) as here, here.client() as client:
        await here.pool.watch("up", "", "test://x")
        await here.pool.watch("up", "", "test://x")
        here.pool.unwatch("up", "", "test://x")
        await client.call("up__echo")
        here.children.started[-1].kill()
        await until(lambda: len(here.children.started) == 2 and here.pool._connections["up", ""].state == "ready")
        async with asyncio.timeout(30):
            while True:
                seen = (await client.call("up__seen"))["structuredContent"]["seen"]
                if "resources/subscribe" in [message["method"] for message in seen]:
                    break

    assert [m["params"]["uri"] for m in seen if m["method"] == "resources/subscribe"] == ["test://x"]


async def test_a_list_that_changes_all_the_time_is_not_asked_for_all_the_time() -> None:
    async def call(asked: Asked) -> None:
        await asked.events()
        for _ in range(500):
            await asked.event({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        await asked.event({"jsonrpc": "2.0", "id": asked.message["id"], "result": text("done")})
        await asked.end()

    async with web_server(handshake(call)) as server:
        timing = Timing(list_settle_s=0.0, list_pause_s=60.0)
        async with world({"up": ServerDefinition(url=server.url)}, timing=timing) as here, here.client() as client:
            await client.call("up__it")
            await client.call("up__it")
        lists = [one for one in server.asked if one.rpc == "tools/list"]

    assert here.heard.events.count(("list_changed", "up")) == 1000
    assert len(lists) == 1


async def test_a_server_that_fails_keeps_its_last_good_list_and_says_that_it_is_degraded() -> None:
    broken = False

    async def call(asked: Asked) -> None:
        await asked.result(text("done"))

    script = handshake(call)

    async def sometimes(asked: Asked) -> None:
        if broken:
            asked.writer.close()
        else:
            await script(asked)

    async with web_server(sometimes) as server:
        async with world({"up": ServerDefinition(url=server.url)}) as here, here.client() as client:
            broken = True
            here.pool.refresh("up")
            await until(lambda: here.pool.facts()["up"]["list_fault"])
            names = [tool["name"] for tool in await client.listed("tools")]

    assert "up__it" in names


async def test_a_server_that_was_down_for_long_is_listed_once_it_is_up_and_takes_calls_at_once() -> None:
    """Also where so many tries failed that calls are refused unasked: whoever gives lists is there."""
    up = False

    async def call(asked: Asked) -> None:
        await asked.result(text("done"))

    script = handshake(call)

    async def sometimes(asked: Asked) -> None:
        if up:
            await script(asked)
        else:
            asked.writer.close()

    async with web_server(sometimes) as server:
        patience = replace(QUICK.patience, open_limit_s=5.0)
        timing = Timing(list_pause_s=0.01, list_retry_s=0.01, list_retry_limit_s=0.05, patience=patience)
        async with world({"up": ServerDefinition(url=server.url)}, timing=timing) as here, here.client() as client:
            before = [tool["name"] for tool in await client.listed("tools")]
            await until(lambda: here.pool.facts()["up"]["connections"]["shared"]["breaker_open"])
            up = True
            await here.heard.until("listing", "up")
            after = await client.call("up__it")

    assert "up__it" not in before
    assert after["content"][0]["text"] == "done"
