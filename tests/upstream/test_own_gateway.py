"""A gateway behind a gateway: our own server side is one more upstream, over both HTTP transports and in both eras."""

from __future__ import annotations

import pytest

from omni_mcp.contracts.call import Era
from omni_mcp.engines.upstream.pool import Known
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.testing import ALLOW_ALL, ANN, BOB, error_of, local_gateway
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
