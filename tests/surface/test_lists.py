"""Which list a client gets, by mode, budget, profile and client name: all tools, or search and call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from omni_mcp.config import Settings
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.catalog.cost import tool_tokens
from omni_mcp.protocol.eras import META_CLIENT
from omni_mcp.testing import ALLOW_ALL, Canary, MemoryClient, error_of, local_gateway
from tests.surface.shelf import CALL, SEARCH, fill, settings

VERSIONS = ["2025-06-18", "2026-07-28"]
CANARY_ONLY = '@id("canary") permit (principal, action, resource in Omni::Server::"canary");'


async def names(client: MemoryClient, **params: Any) -> list[str]:
    return [tool["name"] for tool in (await client.request("tools/list", params))["result"]["tools"]]


def as_client(name: str) -> Mapping[str, Any]:
    return {"_meta": {META_CLIENT: {"name": name, "version": "1"}}}


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_whole_list_is_served_up_to_its_cost_and_search_beyond(version: str, canary: Canary) -> None:
    fill(canary, count=40)
    async with local_gateway(ALLOW_ALL, canary=canary, settings=settings(mode="full"), cells=False) as here:
        async with here.client(version=version) as client:
            whole = await client.listed("tools")
    price = sum(tool_tokens(tool["name"], tool) for tool in whole)
    assert len(whole) > 40 and not {SEARCH, CALL} & {tool["name"] for tool in whole}

    for budget, expected in ((price, [tool["name"] for tool in whole]), (price - 1, [CALL, SEARCH])):
        async with local_gateway(ALLOW_ALL, canary=canary, settings=settings(token_budget=budget), cells=False) as here:
            async with here.client(version=version) as client:
                assert sorted(await names(client)) == sorted(expected)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_client_gets_the_mode_of_its_name(version: str, canary: Canary) -> None:
    fill(canary, count=10)
    modes = settings(mode="search", clients={"memory-client": "full", "other": "full"})
    async with local_gateway(ALLOW_ALL, canary=canary, settings=modes, cells=False) as here:
        async with here.client(version=version) as client:
            if client.modern:
                assert len(await names(client)) == 2
                assert len(await names(client, **as_client("other"))) > 10
                assert len(await names(client, **as_client("somebody"))) == 2
            else:
                assert len(await names(client)) > 10


async def test_a_profile_can_have_a_surface_of_its_own_for_every_client(canary: Canary) -> None:
    fill(canary, count=10)
    wanted = Settings.model_validate({
        "surface": {"mode": "full"},
        "profiles": {
            "small": {"servers": ["canary"], "surface": "search"},
            "same": {"servers": ["canary"], "names": "identity"},
            "tight": {"servers": ["canary"], "surface": "auto", "token_budget": 10},
        },
    })  # fmt: skip
    async with local_gateway(ALLOW_ALL, canary=canary, settings=wanted, cells=False) as here:
        for profile, expected in (("small", 2), ("same", 10), ("tight", 2)):
            async with here.client(profile=profile) as client:
                assert len(await names(client)) == expected, profile
                assert len(await names(client, **as_client("claude-code"))) == expected, profile


async def test_who_may_not_search_gets_the_whole_list_of_auto_and_nothing_of_search(canary: Canary) -> None:
    fill(canary, count=10)
    for mode, expected in (("auto", 10), ("search", 0)):
        wanted = settings(mode=mode, token_budget=1)
        async with (
            local_gateway(CANARY_ONLY, canary=canary, settings=wanted, cells=False) as here,
            here.client() as client,
        ):
            assert len(await names(client)) == expected, mode


async def test_a_short_list_hides_no_way_and_opens_none(canary: Canary) -> None:
    fill(canary, count=10)
    canary.tool("secret")
    rules = ALLOW_ALL + '@id("no") forbid (principal, action, resource == Omni::Tool::"canary__secret");'
    async with (
        local_gateway(rules, canary=canary, settings=settings(mode="search"), cells=False) as here,
        here.client() as client,
    ):
        assert not (await client.call("canary__create_issue"))["isError"]
        for name in ("canary__secret", "canary__nothing"):
            assert error_of(await client.call(name))["code"] == "policy_denied"
    assert canary.touched == ["tool canary__create_issue"]


async def test_a_cursor_of_one_surface_is_no_cursor_of_another(canary: Canary) -> None:
    fill(canary, count=300)
    async with local_gateway(
        ALLOW_ALL, canary=canary, settings=settings(clients={"x": "full"}, token_budget=1), cells=False
    ) as here:
        async with here.client() as client:
            page = (await client.request("tools/list", dict(as_client("x"))))["result"]
            assert await names(client, cursor=page["nextCursor"], **as_client("x"))
            refused = await client.request("tools/list", {"cursor": page["nextCursor"]})
            assert refused["error"]["code"] == -32602


async def test_resources_and_prompts_are_listed_as_ever(canary: Canary) -> None:
    canary.resource("note://one")
    canary.prompt("greet")
    async with local_gateway(ALLOW_ALL, canary=canary, settings=settings(mode="search"), cells=False) as here:
        async with here.client() as client:
            assert any(prompt["name"] == "canary__greet" for prompt in await client.listed("prompts"))
            assert any(one["uri"] == "note://one" for one in await client.listed("resources"))


async def test_the_list_follows_the_catalog_across_the_budget(canary: Canary) -> None:
    fill(canary, count=10)
    canary_only = {"profiles": {"one": {"servers": ["canary"]}}, "surface": {"token_budget": 1000}}
    wanted = Settings.model_validate(canary_only)
    async with local_gateway(ALLOW_ALL, canary=canary, settings=wanted, cells=False) as here:
        async with here.client(profile="one") as client:
            assert len(await names(client)) == 10
            assert await found(client, "create later") == "canary__create_issue"
            fill_more(canary)
            await here.gateway.reload()
            assert sorted(await names(client)) == [CALL, SEARCH]
            assert (await found(client, "later")).startswith("canary__more_")


def fill_more(canary: Canary) -> None:
    for number in range(60):
        canary.tool(f"more_{number}", definition={"description": "One of many that came later."})


async def found(client: MemoryClient, query: str) -> str:
    result: JsonObject = await client.call(SEARCH, {"query": query})
    return str(result["structuredContent"]["tools"][0]["name"])
