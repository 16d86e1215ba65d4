"""A gateway behind a gateway: our own server side is one more upstream, over both HTTP transports and in both eras."""

from __future__ import annotations

import pytest

from omni_mcp.contracts.call import Era
from omni_mcp.engines.upstream.pool import Known
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.testing import ALLOW_ALL, ANN, BOB, Canary, error_of, local_gateway
from tests.upstream.world import world


@pytest.mark.parametrize("link", ["mcp/modern", "mcp/handshake", "sse/handshake", "sse/modern"])
async def test_a_call_goes_through_two_gateways_under_the_name_that_the_inner_one_knows(link: str) -> None:
    path, _, era = link.partition("/")
    async with local_gateway(ALLOW_ALL, cells=False) as inner, inner.http(BOB) as (url, tokens):
        settings = ServerDefinition(
            url=f"{url}/{path}/runs",
            headers={"Authorization": "Bearer secret:inner"},
            transport="sse" if path == "sse" else "auto",
        )
        eras: dict[str, Era] = {settings.definition: "handshake"} if era == "handshake" else {}
        async with world({"up": settings}, known=Known(eras=eras), secrets={"inner": tokens[0]}) as outer:
            async with outer.client(principal=ANN) as client:
                result = await client.call("up__list")
                read = await client.request("resources/read", {"uri": "omni+up+run://latest"})
                refused = await client.request("tools/call", {"name": "up__nothing", "arguments": {}})
                spoken = outer.pool.facts()["up"]["connections"]["shared"]["era"]
        principals = {run["principal"] for run in await inner.gateway.log.runs() if run["kind"] != "gateway"}

    assert not result["isError"], result
    assert spoken == era
    assert read["result"]["contents"][0]["uri"] == "run://latest"
    assert error_of(refused)["code"] == "policy_denied"
    assert principals == {BOB.key}


@pytest.mark.parametrize("begun_by", ["the client", "the outer gateway"])
async def test_one_call_leaves_runs_of_one_trace_in_both_and_the_inner_policy_decides(
    canary: Canary, begun_by: str
) -> None:
    brought = begun_by == "the client"
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    meta = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"} if brought else {}
    canary.tool("it")
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as inner, inner.http(BOB) as (url, tokens):
        settings = ServerDefinition(url=f"{url}/mcp/canary", headers={"Authorization": "Bearer secret:inner"})
        async with (
            world({"up": settings}, secrets={"inner": tokens[0]}) as outer,
            outer.client(principal=ANN) as client,
        ):
            result = await client.call("up__it", _meta=meta)
            inner.write_policy('@id("none") forbid (principal, action, resource);')
            await inner.gateway.reload()
            refused = await client.call("up__it", _meta=meta)
            runs = [await here.log.runs() for here in (inner.gateway, outer.gateway.gateway)]

    if not brought:
        [trace] = [run["trace_id"] for run in runs[1] if run["kind"] != "gateway"]
    traced = [[run for run in found if run["trace_id"] == trace] for found in runs]
    assert not result["isError"], result
    assert refused["isError"] and "policy_denied" in str(refused["content"])
    assert [[run["calls"] for run in found] for found in traced] == [[2], [2]]
