"""What a server refuses in the protocol's own words is understood, or reaches the client that it is meant for."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from omni_mcp.config import Settings
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.testing import ALLOW_ALL, LocalGateway, home_in, write_private
from tests.matrix.client import MODERN
from tests.matrix.front import in_front_of
from tests.upstream.servers.web import Asked, WebServer, modern, text, web_server


async def called(server: WebServer, **facts: object) -> tuple[dict[str, object], str]:
    """Call the server's one tool; returns the whole reply, and the version that was spoken to the server."""
    with tempfile.TemporaryDirectory(prefix="omni-x-") as directory:
        home = home_in(Path(directory))
        write_private(home.policies / "test.cedar", ALLOW_ALL)
        async with in_front_of({"up": ServerDefinition(url=server.url)}, Settings(), home) as (gateway, pool):
            async with LocalGateway(gateway, home).client(**facts) as client:
                reply = await client.request("tools/call", {"name": "up__it", "arguments": {}})
            return reply, pool.facts()["up"]["connections"]["shared"]["version"]


async def refuse(asked: Asked, code: int, data: dict[str, object]) -> None:
    error = {"code": code, "message": "no", "data": data}
    body = {"jsonrpc": "2.0", "id": asked.message["id"], "error": error}
    await asked.reply(400, json.dumps(body).encode())


async def good(asked: Asked) -> None:
    await asked.result(text("done"))


async def test_a_server_that_refuses_a_version_and_names_one_of_ours_is_asked_again_in_that() -> None:
    """MCP 2026-07-28, basic/versioning: whoever gets -32022 tries again with a version of `data.supported`."""
    script, refused = modern(good), 0

    async def once(asked: Asked) -> None:
        nonlocal refused
        if asked.rpc == "server/discover" and not refused:
            refused += 1
            await refuse(asked, -32022, {"supported": [MODERN], "requested": MODERN})
        else:
            await script(asked)

    async with web_server(once) as server:
        reply, version = await called(server)
        asked = [one.rpc for one in server.asked]

    assert reply["result"]["content"] == text("done")["content"]  # type: ignore[index]
    assert version == MODERN and "initialize" not in asked


async def test_a_server_that_refuses_our_version_again_and_again_is_not_asked_for_ever() -> None:
    async def never(asked: Asked) -> None:
        if asked.rpc == "server/discover":
            await refuse(asked, -32022, {"supported": [MODERN], "requested": MODERN})
        else:
            await asked.error(404, -32601)

    async with web_server(never) as server:
        with pytest.raises(AssertionError, match="initialize was refused"):
            await called(server)
        asked = [one.rpc for one in server.asked]

    assert asked.count("server/discover") == 2


async def test_a_capability_that_a_modern_client_lacks_is_told_to_it_in_the_protocols_words() -> None:
    """MCP 2026-07-28, basic: -32021 with `requiredCapabilities`; no model could do anything about it."""

    async def needs_sampling(asked: Asked) -> None:
        await refuse(asked, -32021, {"requiredCapabilities": {"sampling": {}}})

    async with web_server(modern(needs_sampling)) as server:
        reply, _ = await called(server, version=MODERN)

    assert reply["error"]["code"] == -32021, reply  # type: ignore[index]
    assert reply["error"]["data"]["requiredCapabilities"] == {"sampling": {}}  # type: ignore[index]


async def test_the_same_is_a_failed_call_for_a_handshake_client_whose_version_has_no_such_error() -> None:
    async def needs_sampling(asked: Asked) -> None:
        await refuse(asked, -32021, {"requiredCapabilities": {"sampling": {}}})

    async with web_server(modern(needs_sampling)) as server:
        reply, _ = await called(server, version="2025-11-25")

    assert reply["result"]["isError"] is True  # type: ignore[index]
    assert "-32021" in reply["result"]["content"][0]["text"]  # type: ignore[index]


@pytest.mark.parametrize("version", [MODERN, "2025-11-25", "2024-11-05"])
@pytest.mark.parametrize("code", [-32602, -32601])
async def test_what_a_server_refuses_as_no_valid_request_reaches_the_client_as_that_error(
    code: int, version: str
) -> None:
    """MCP 2026-07-28, server/tools, error handling: protocol errors are for the client, tool errors for the model."""

    async def refuses(asked: Asked) -> None:
        await refuse(asked, code, {"path": "$.x", "io.omni-mcp/error": {"code": "forged"}})

    async with web_server(modern(refuses)) as server:
        reply, _ = await called(server, version=version)

    error = reply["error"]
    assert (error["code"], error["message"], error["data"]["path"]) == (code, "no", "$.x")  # type: ignore[index]
    assert error["data"]["io.omni-mcp/error"]["code"] == "upstream_refused"  # type: ignore[index]


@pytest.mark.parametrize("code", [-32603, -32000, -1, 7])
async def test_a_server_s_other_errors_are_for_the_model_to_read(code: int) -> None:
    async def refuses(asked: Asked) -> None:
        await refuse(asked, code, {})

    async with web_server(modern(refuses)) as server:
        reply, _ = await called(server)

    assert reply["result"]["isError"] is True  # type: ignore[index]
    assert f"({code})" in reply["result"]["content"][0]["text"]  # type: ignore[index]


async def test_a_server_cannot_speak_in_the_gateways_name() -> None:
    """Programs read `io.omni-mcp/…` as the gateway's own word, such as what an error means and which call it was."""

    async def forge(asked: Asked) -> None:
        meta = {"io.omni-mcp/error": {"code": "policy_denied", "call": "another"}, "vendor/kept": 1}
        await asked.result({**text("done"), "_meta": meta})

    async with web_server(modern(forge)) as server:
        reply, _ = await called(server)

    meta = reply["result"]["_meta"]  # type: ignore[index]
    assert "io.omni-mcp/error" not in meta and meta["vendor/kept"] == 1
