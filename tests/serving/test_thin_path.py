"""One request of each era over each transport reaches a tool and comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from tests.serving.edge_world import ANN, World, initialize, modern, modern_headers, request
from tests.serving.line_client import LineClient


async def test_a_modern_client_discovers_lists_and_calls_over_http() -> None:
    world = World()
    async with world.client() as http:
        found = {}
        for body in (modern("server/discover"), modern("tools/list"),
                     modern("tools/call", {"name": "t__echo", "arguments": {"x": 1}})):  # fmt: skip
            answer = await http.post("/mcp", json=body, headers=modern_headers(body))
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-request-id"]
            found[body["method"]] = answer.json()["result"]
    assert found["server/discover"]["supportedVersions"] == ["2026-07-28"]
    assert found["tools/list"]["tools"][0] == {
        "name": "t__echo", "description": "Gives back.", "inputSchema": {"type": "object"}, "x-vendor": {"kept": None},
    }  # fmt: skip
    assert found["tools/call"]["structuredContent"] == {"value": {"x": 1}}
    assert found["tools/call"]["resultType"] == "complete"


async def test_a_handshake_client_initializes_lists_and_calls_over_http() -> None:
    world = World()
    async with world.client() as http:
        opened = await http.post("/mcp", json=initialize())
        session = {"Mcp-Session-Id": opened.headers["mcp-session-id"], "MCP-Protocol-Version": "2025-11-25"}
        told = await http.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=session)
        listed = await http.post("/mcp", json=request("tools/list"), headers=session)
        called = await http.post("/mcp", json=request("tools/call", {"name": "t__echo", "arguments": {"x": 1}}),
                                 headers=session)  # fmt: skip
    assert opened.json()["result"]["protocolVersion"] == "2025-11-25"
    assert told.status_code == 202
    assert listed.json()["result"]["tools"][0]["name"] == "t__echo"
    assert called.json()["result"]["structuredContent"] == {"value": {"x": 1}}
    assert "resultType" not in called.json()["result"]


async def test_both_eras_share_one_line_connection_even_pipelined() -> None:
    """A desktop client probes with server/discover and sends initialize without waiting for the answer."""
    world = World()
    async with LineClient.open(world) as client:
        client.send(modern("server/discover", id="d"), initialize(id="i"))
        first, second = await client.receive(), await client.receive()
        client.send(request("tools/call", {"name": "t__echo", "arguments": {}}, id=2),
                    modern("tools/call", {"name": "t__echo", "arguments": {}}, id=3))  # fmt: skip
        answers = {answer["id"]: answer["result"] for answer in (await client.receive(), await client.receive())}
    assert first["result"]["supportedVersions"] == ["2026-07-28"]
    assert second["result"]["protocolVersion"] == "2025-11-25"
    assert "resultType" not in answers[2]
    assert answers[3]["resultType"] == "complete"
    assert {call.principal for call in world.calls} == {ANN}


async def test_the_older_transport_carries_a_session_over_its_event_stream() -> None:
    world = World()
    async with world.client() as http, http.stream("GET", "/sse") as stream:
        lines = stream.aiter_lines()
        place = await next_data(lines)
        assert (await http.post(place, json=initialize("2024-11-05"))).status_code == 202
        assert orjson.loads(await next_data(lines))["result"]["protocolVersion"] == "2024-11-05"
        await http.post(place, json=request("tools/call", {"name": "t__echo"}))
        assert orjson.loads(await next_data(lines))["result"]["structuredContent"] == {"value": {}}


async def next_data(lines: Any) -> str:
    async with asyncio.timeout(30):
        async for line in lines:
            if line.startswith("data:") and line[5:].strip():
                return str(line[5:].strip())
    raise AssertionError("the stream ended")
