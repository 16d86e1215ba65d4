"""A client that subscribes has its answer once the server behind was asked, so no update is lost in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from omni_mcp.protocol.eras import MODERN_VERSIONS
from tests.upstream.servers.web import Asked, text, web_server
from tests.upstream.town import a_town

NOTE = {"uri": "note://1", "name": "one"}


async def library(asked: Asked) -> None:
    """A handshake server with one resource that can be watched, and a tool."""
    answers: dict[str, dict[str, Any]] = {
        "initialize": {
            "protocolVersion": "2025-11-25", "serverInfo": {"name": "library"},
            "capabilities": {"tools": {}, "resources": {"subscribe": True}},
        },
        "tools/list": {"tools": [{"name": "it", "inputSchema": {"type": "object"}}]},
        "tools/call": text("done"),
        "resources/list": {"resources": [NOTE]},
        "resources/templates/list": {"resourceTemplates": []},
        "resources/subscribe": {},
        "resources/unsubscribe": {},
    }  # fmt: skip
    if asked.rpc in answers:
        await asked.result(answers[asked.rpc])
    elif asked.method == "POST" and "id" in asked.message:
        await asked.error(400, -32600)
    else:
        await asked.reply(202 if asked.method == "POST" else 405)


@pytest.mark.parametrize("version", ["2025-11-25", MODERN_VERSIONS[-1]])
async def test_the_server_was_asked_before_the_subscriber_is_answered(version: str, tmp_path: Path) -> None:
    async with web_server(library) as server:
        async with a_town(tmp_path, f'[servers.up]\nurl = "{server.url}"\n') as town:
            await town.accepted("up")
            async with town.here.client(version=version) as client:
                [uri] = [one["uri"] for one in await client.listed("resources") if "note" in one["uri"]]
                if client.modern:
                    wanted = {"notifications": {"resourceSubscriptions": [uri]}}
                    client.heard.clear()
                    await client.start("subscriptions/listen", wanted)
                    await client.heard.wait()  # the acknowledgement
                else:
                    await client.request("resources/subscribe", {"uri": uri})
                asked = [one.message["params"]["uri"] for one in server.asked if one.rpc == "resources/subscribe"]

    assert asked == ["note://1"]


async def test_a_server_that_is_gone_keeps_no_subscriber_waiting(tmp_path: Path) -> None:
    up = True

    async def sometimes(asked: Asked) -> None:
        if up:
            await library(asked)
        else:
            asked.writer.close()

    async with web_server(sometimes) as server:
        async with a_town(tmp_path, f'[servers.up]\nurl = "{server.url}"\n') as town:
            await town.accepted("up")
        up = False
        async with a_town(tmp_path) as again, again.here.client(version="2025-11-25") as client:
            [uri] = [one["uri"] for one in await client.listed("resources") if "note" in one["uri"]]
            reply = await client.request("resources/subscribe", {"uri": uri})

    assert reply["result"] == {}
