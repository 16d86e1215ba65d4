"""What changes in the gateway is heard by clients that wait: of both eras, over a pipe and over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx2
import mcp_types as types
import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.subscriptions import ToolsListChanged

from tests.clients.running import ALLOW_RUNS, OMNI, Running, new_place, serving

HEARD_WITHIN_S = 15
ALLOW_HASH = """
@id("test-hash")
permit (principal, action, resource == Omni::Tool::"tools__text_hash");
"""


@pytest.fixture
def gateway() -> Iterator[Running]:
    with new_place() as place:
        place.write_policy(ALLOW_RUNS)
        with serving(place) as running:
            yield running


async def names(client: Client) -> set[str]:
    return {tool.name for tool in (await client.list_tools()).tools}


async def test_a_handshake_client_on_a_pipe_hears_that_a_policy_file_changed_its_list(gateway: Running) -> None:
    heard = asyncio.Event()

    async def listen(message: Any) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            heard.set()

    parameters = StdioServerParameters(command=OMNI, args=["stdio"], env=gateway.place.environment)
    async with Client(parameters, mode="legacy", cache=None, message_handler=listen) as client:
        assert "tools__text_hash" not in await names(client)
        gateway.place.write_policy(ALLOW_HASH, "hash.cedar")
        await asyncio.wait_for(heard.wait(), HEARD_WITHIN_S)
        assert "tools__text_hash" in await names(client)


async def test_a_modern_client_over_http_hears_it_on_its_listen_stream(gateway: Running) -> None:
    async with httpx2.AsyncClient(headers=gateway.headers, timeout=60) as http:
        transport = streamable_http_client(gateway.url(), http_client=http)
        async with Client(transport, mode="2026-07-28", cache=None) as client:
            assert "tools__text_hash" not in await names(client)
            async with client.listen(tools_list_changed=True) as changes:
                gateway.place.write_policy(ALLOW_HASH, "hash.cedar")
                event = await asyncio.wait_for(anext(changes), HEARD_WITHIN_S)
            assert isinstance(event, ToolsListChanged)
            assert "tools__text_hash" in await names(client)
