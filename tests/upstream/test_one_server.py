"""`/mcp/NAME` and `stdio --server NAME`: one server by itself, under its own names; the same policy, log and record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from omni_mcp.protocol.eras import MODERN_VERSIONS
from omni_mcp.testing import ANN, error_of
from tests.upstream.servers.web import Asked, text, web_server
from tests.upstream.town import Shop, a_town
from tests.waiting import until

BOTH_ERAS = pytest.mark.parametrize("version", ["2025-11-25", MODERN_VERSIONS[-1]])
NO_WRITES = '\n@id("not-this") forbid (principal, action, resource == Omni::Tool::"up__hidden");\n'
NOTE = {"uri": "note://1", "name": "one"}


def shop(*names: str) -> Shop:
    return Shop(tools=[{"name": name, "inputSchema": {"type": "object"}} for name in names])


async def library(asked: Asked) -> None:
    """A handshake server with a tool, a prompt and a resource that can be watched; calling the tool changes it."""
    answers: dict[str, dict[str, Any]] = {
        "initialize": {
            "protocolVersion": "2025-11-25", "serverInfo": {"name": "library"},
            "capabilities": {"tools": {}, "prompts": {}, "resources": {"subscribe": True}},
        },
        "tools/list": {"tools": [{"name": "it", "inputSchema": {"type": "object"}}]},
        "prompts/list": {"prompts": [{"name": "greet"}]},
        "prompts/get": {"messages": [{"role": "user", "content": {"type": "text", "text": "hello"}}]},
        "resources/list": {"resources": [NOTE]},
        "resources/read": {"contents": [{"uri": "note://1", "text": "written"}]},
        "resources/templates/list": {"resourceTemplates": []},
        "resources/subscribe": {},
        "resources/unsubscribe": {},
    }  # fmt: skip
    if asked.rpc == "tools/call":
        await asked.events()
        news = {"method": "notifications/resources/updated", "params": {"uri": "note://1"}}
        await asked.event({"jsonrpc": "2.0", **news})
        await asked.event({"jsonrpc": "2.0", "id": asked.message["id"], "result": text("done")})
        await asked.end()
    elif asked.rpc in answers:
        await asked.result(answers[asked.rpc])
    elif asked.method == "POST" and "id" in asked.message:
        await asked.error(400, -32600)
    else:
        await asked.reply(202 if asked.method == "POST" else 405)


@BOTH_ERAS
async def test_one_server_alone_shows_its_own_names_and_nobody_elses(version: str, tmp_path: Path) -> None:
    one, two = shop("it", "hidden"), shop("other")
    async with web_server(one.script()) as up, web_server(two.script()) as down:
        settings = f'[servers.up]\nurl = "{up.url}"\n[servers.down]\nurl = "{down.url}"\n'
        async with a_town(tmp_path, settings) as town:
            with (town.here.home.policies / "test.cedar").open("a") as file:
                file.write(NO_WRITES)
            await town.here.gateway.reload()
            await town.accepted("up", "down")
            async with town.here.client(profile="up", version=version) as client:
                names = [tool["name"] for tool in await client.listed("tools")]
                called, refused = await client.call("it"), await client.call("hidden")
                strangers = [await client.call(name) for name in ("down__other", "other", "tools__text_hash", "up__it")]
            outcomes = (await town.here.outcomes()).values()
            [event] = [one for one in await town.here.events() if one.kind == "tool_result"]

    assert names == ["it"] and error_of(called) == {} and len(one.calls) == 1 and two.calls == []
    assert {error_of(found)["code"] for found in (refused, *strangers)} == {"policy_denied"}
    assert ["tool_result"] in list(outcomes) and event.payload is not None


@BOTH_ERAS
async def test_its_resources_prompts_and_their_news_go_by_their_own_names_too(version: str, tmp_path: Path) -> None:
    async with web_server(library) as server:
        async with a_town(tmp_path, f'[servers.up]\nurl = "{server.url}"\n') as town:
            await town.accepted("up")
            async with town.here.client(profile="up", version=version) as client:
                [resource], [prompt] = await client.listed("resources"), await client.listed("prompts")
                read = await client.request("resources/read", {"uri": "note://1"})
                said = await client.request("prompts/get", {"name": "greet"})
                if client.modern:
                    wanted = {"notifications": {"resourceSubscriptions": ["note://1"]}}
                    await client.start("subscriptions/listen", wanted)
                else:
                    await client.request("resources/subscribe", {"uri": "note://1"})
                await until(lambda: "resources/subscribe" in [one.rpc for one in server.asked])
                await client.call("it")
                await until(lambda: any("updated" in one["method"] for one in client.notifications))
                news = [one["params"]["uri"] for one in client.notifications if "updated" in one["method"]]

    assert (resource["uri"], prompt["name"]) == ("note://1", "greet")
    assert "written" in str(read) and "hello" in str(said) and set(news) == {"note://1"}


async def test_a_profile_of_the_same_name_goes_first(tmp_path: Path) -> None:
    one = shop("it")
    async with web_server(one.script()) as up:
        settings = f'[servers.up]\nurl = "{up.url}"\n[profiles.up]\nservers = ["up", "tools"]\n'
        async with a_town(tmp_path, settings) as town:
            await town.accepted("up")
            async with town.here.client(profile="up") as client:
                names = {tool["name"] for tool in await client.listed("tools")}

    assert "up__it" in names and "tools__text_hash" in names and "it" not in names


async def test_what_a_server_offers_later_is_there_later_and_a_server_without_tools_is_known(tmp_path: Path) -> None:
    one = shop("it")
    async with web_server(one.script()) as up:
        settings = f'[servers.up]\nurl = "{up.url}"\n[servers.off]\nurl = "{up.url}"\nenabled = false\n'
        async with a_town(tmp_path, settings) as town:
            known = [town.here.gateway.has_profile(name) for name in ("up", "off", "nobody", "")]
            async with town.here.client(profile="up") as client:
                before = await client.listed("tools")
                await town.accepted("up")
                after = await client.listed("tools")

    assert known == [True, False, False, False]
    assert before == [] and [tool["name"] for tool in after] == ["it"]


async def test_over_http_it_is_an_endpoint_of_its_own(tmp_path: Path) -> None:
    one = shop("it")
    async with web_server(one.script()) as up:
        async with a_town(tmp_path, f'[servers.up]\nurl = "{up.url}"\n') as town:
            await town.accepted("up")
            async with town.here.http(ANN) as (base, [token]), httpx2.AsyncClient(base_url=base) as http:
                meta: dict[str, Any] = {"io.modelcontextprotocol/protocolVersion": MODERN_VERSIONS[-1]}
                meta |= {"io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"}}
                meta |= {"io.modelcontextprotocol/clientCapabilities": {}}
                frame = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}
                headers = {
                    "Authorization": f"Bearer {token}", "MCP-Protocol-Version": MODERN_VERSIONS[-1],
                    "Mcp-Method": "tools/list", "Accept": "application/json, text/event-stream",
                }  # fmt: skip
                answers = [await http.post(f"/mcp/{name}", json=frame, headers=headers) for name in ("up", "nobody")]

    assert [answer.status_code for answer in answers] == [200, 404]
    assert [tool["name"] for tool in answers[0].json()["result"]["tools"]] == ["it"]
