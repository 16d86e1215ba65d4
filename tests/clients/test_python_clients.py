"""The SDK's own client, from another process, over every transport and in every mode."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.sse import sse_client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from tests.clients.running import ALLOW_RUNS, OMNI, Running, end_gateway_of_shim, new_place, serving

Connect = Callable[[str], AbstractAsyncContextManager[Client]]
MODES = ("auto", "legacy", "2026-07-28")


@pytest.fixture(scope="module")
def gateway() -> Iterator[Running]:
    with new_place() as place:
        place.write_policy(ALLOW_RUNS)
        with serving(place) as running:
            yield running


def over_stdio(gateway: Running, *arguments: str) -> Connect:
    parameters = StdioServerParameters(command=OMNI, args=["stdio", *arguments], env=gateway.place.environment)

    def connect(mode: str) -> AbstractAsyncContextManager[Client]:
        return Client(parameters, mode=mode, cache=None)

    return connect


def over_http(gateway: Running, path: str = "/mcp") -> Connect:
    @asynccontextmanager
    async def connect(mode: str) -> AsyncIterator[Client]:
        async with httpx2.AsyncClient(headers=gateway.headers, timeout=30) as http:
            transport = streamable_http_client(gateway.url(path), http_client=http)
            async with Client(transport, mode=mode, cache=None) as client:
                yield client

    return connect


def over_sse(gateway: Running) -> Connect:
    def connect(mode: str) -> AbstractAsyncContextManager[Client]:
        transport = sse_client(gateway.url("/sse"), headers=gateway.headers)
        return Client(transport, mode=mode, cache=None)

    return connect


ROADS: dict[str, Callable[[Running], Connect]] = {"stdio": over_stdio, "http": over_http, "sse": over_sse}


def text_of(result: Any) -> str:
    words: str = result.content[0].text
    return words


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("road", ROADS)
async def test_a_client_lists_calls_and_is_refused_by_every_road_in_every_mode(
    gateway: Running, road: str, mode: str
) -> None:
    async with ROADS[road](gateway)(mode) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        allowed = await client.call_tool("runs__list", {"limit": 5})
        refused = await client.call_tool("tools__shell_run", {"command": "true"})
        version = client.protocol_version

    assert "runs__list" in tools and "tools__shell_run" not in tools, "only what the policy allows is listed"
    assert not allowed.is_error
    assert refused.is_error and "not available" in text_of(refused)
    assert (version == "2026-07-28") is (mode != "legacy")


@pytest.mark.parametrize("mode", MODES)
async def test_resources_and_their_templates_are_read(gateway: Running, mode: str) -> None:
    async with over_http(gateway)(mode) as client:
        await client.call_tool("runs__list", {})
        uris = [str(resource.uri) for resource in (await client.list_resources()).resources]
        latest = next(uri for uri in uris if "latest" in uri)
        contents = (await client.read_resource(latest)).contents
        templates = (await client.list_resource_templates()).resource_templates

    assert json.loads(contents[0].text)  # type: ignore[union-attr]  # a text, or json fails on it
    assert templates


async def test_each_server_is_also_served_alone_under_its_own_names(gateway: Running) -> None:
    async with over_http(gateway, "/mcp/runs")("auto") as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert not (await client.call_tool("list", {})).is_error
    assert {"list", "read", "search", "explain", "why_refused", "runtime_query"} <= names

    async with over_stdio(gateway, "--server", "runs")("auto") as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == names


async def test_a_call_of_another_process_is_on_record_under_the_client_that_made_it(gateway: Running) -> None:
    async with over_stdio(gateway, "--agent", "coder")("legacy") as client:
        await client.call_tool("tools__shell_run", {"command": "a refused command"})

    runs = gateway.place.run_json("runs", "list")
    run = next(run for run in runs if '"coder"' in run["principal"])
    story = gateway.place.run_json("runs", "show", run["id"])
    kinds = [event["kind"] for event in story["events"]]
    assert kinds.count("tool_call") == 1
    error = next(event for event in story["events"] if event["kind"] == "tool_error")
    assert error["payload"]["code"] == "policy_denied" and error["payload"]["dispatched"] is False


async def test_without_a_token_nothing_is_served(gateway: Running) -> None:
    async with httpx2.AsyncClient() as http:
        for path in ("/mcp", "/sse", "/mcp/runs", "/metrics", "/api/status"):
            assert (await http.get(gateway.url(path))).status_code == 401, path
        wrong = await http.post(gateway.url("/mcp"), headers={"Authorization": "Bearer wrong"}, json={})
    assert wrong.status_code == 401


async def test_the_shim_starts_a_gateway_where_none_runs() -> None:
    with new_place() as place:
        place.write_policy(ALLOW_RUNS)
        parameters = StdioServerParameters(command=OMNI, args=["stdio"], env=place.environment)
        try:
            async with Client(parameters, cache=None) as client:
                assert not (await client.call_tool("runs__list", {})).is_error
        finally:
            end_gateway_of_shim(place)
