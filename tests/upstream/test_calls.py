"""Calls through a whole gateway reach servers of every version over every transport, and come back as they were."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from omni_mcp.contracts.call import Era
from omni_mcp.engines.upstream.pool import Known
from omni_mcp.protocol.eras import HANDSHAKE_VERSIONS, MODERN_VERSIONS
from omni_mcp.server_definition import ServerDefinition
from tests.upstream.world import python_server, sdk_over_http, world
from tests.waiting import until

CLIENTS = (*HANDSHAKE_VERSIONS, *MODERN_VERSIONS)


@pytest.fixture(scope="module")
def sdk_url() -> Iterator[str]:
    """The SDK's server over HTTP, one for all tests of this file."""
    with sdk_over_http() as url:
        yield url


def sdk(transport: str, url: str) -> tuple[ServerDefinition, Known]:
    """Return the settings of the SDK's server over *transport*, and what makes us speak the era that is meant."""
    kind, _, era = transport.partition("/")
    found = {
        "stdio": lambda: python_server("sdk", "stdio"),
        "http": lambda: ServerDefinition(url=f"{url}/mcp", transport="http"),
        "sse": lambda: ServerDefinition(url=f"{url}/sse", transport="sse"),
    }[kind]()
    eras: dict[str, Era] = {found.definition: "handshake"} if era == "handshake" else {}
    return found, Known(eras=eras)


SDK_LINKS = ("stdio/handshake", "stdio/modern", "http/handshake", "http/modern", "sse/handshake")
MODERN = "2026-07-28"
EACH_LINK = pytest.mark.parametrize(
    "link",
    [pytest.param(one, marks=[pytest.mark.long] * (one in ("stdio/handshake", "http/modern"))) for one in SDK_LINKS],
)


def beside_clients(older: str) -> pytest.MarkDecorator:
    """Every link with a client of each era. A server that is started for one test, for a client of its own era, is left
    to `make long`: the matrix has that pair too."""
    pairs = [(link, client) for link in SDK_LINKS for client in (older, MODERN)]
    same = {("stdio/handshake", older), ("stdio/modern", MODERN)}
    return pytest.mark.parametrize(
        ("link", "client_version"), [pytest.param(*one, marks=[pytest.mark.long] * (one in same)) for one in pairs]
    )


@pytest.mark.parametrize("version", HANDSHAKE_VERSIONS)
async def test_a_server_of_every_handshake_version_answers_a_call(version: str) -> None:
    async with world({"up": python_server("raw", f'{{"version": "{version}"}}')}) as here:
        async with here.client() as client:
            result = await client.call("up__echo", {"text": "hello"})
        spoken = here.pool.facts()["up"]["connections"]["shared"]["version"]

    assert result["content"] == [{"type": "text", "text": "hello"}]
    assert result["structuredContent"] == {"text": "hello"}
    assert result["vendor/field"] == {"kept": True}
    assert spoken == version


@beside_clients("2025-06-18")
async def test_everything_that_can_be_called_is_reached(link: str, client_version: str, sdk_url: str) -> None:
    settings, known = sdk(link, sdk_url)
    async with world({"up": settings}, known=known) as here, here.client(version=client_version) as client:
        tools = {tool["name"] for tool in await client.listed("tools")}
        echoed = await client.call("up__echo", {"text": "hi", "n": 7})
        failed = await client.call("up__fail")
        read = await client.request("resources/read", {"uri": "test://static"})
        item = await client.request("resources/read", {"uri": "test://item/7"})
        prompt = await client.request("prompts/get", {"name": "up__greet", "arguments": {"word": "you"}})
        completion = await client.request(
            "completion/complete",
            {"ref": {"type": "ref/prompt", "name": "up__greet"}, "argument": {"name": "word", "value": "t"}},
        )
        era = here.pool.facts()["up"]["connections"]["shared"]["era"]

    assert {"up__echo", "up__ask", "up__meta"} <= tools
    assert echoed["structuredContent"] == {"text": "hi", "n": 7}
    assert failed["isError"] and failed["content"][0]["text"] == "it failed"
    assert read["result"]["contents"][0]["text"] == "content of test://static"
    assert item["result"]["contents"][0]["text"] == "content of test://item/7"
    assert prompt["result"]["messages"][0]["content"]["text"] == "hello you"
    assert completion["result"]["completion"]["values"] == ["tone", "ttwo"]
    assert era == link.partition("/")[2]


@beside_clients("2025-06-18")
async def test_progress_and_log_messages_reach_the_caller_before_the_answer(
    link: str, client_version: str, sdk_url: str
) -> None:
    settings, known = sdk(link, sdk_url)
    async with world({"up": settings}, known=known) as here, here.client(version=client_version) as client:
        await client.call("up__progress", _meta={"progressToken": "mine"})
        steps = [note["params"] for note in client.notifications if note["method"] == "notifications/progress"]
        await client.call("up__log", _meta={"io.modelcontextprotocol/logLevel": "debug"})
        logs = [note["params"] for note in client.notifications if note["method"] == "notifications/message"]

    assert [(step["progressToken"], step["progress"], step["total"]) for step in steps] == [
        ("mine", 1, 3), ("mine", 2, 3), ("mine", 3, 3)
    ]  # fmt: skip
    assert [(log["level"], log["data"]) for log in logs] == [("info", {"said": "hello"})]


ANSWERS: dict[str, Any] = {
    "elicitation/create": {"action": "accept", "content": {"name": "Ann"}},
    "sampling/createMessage": {
        "role": "assistant", "model": "m", "content": {"type": "text", "text": "hello from the model"}
    },
    "roots/list": {"roots": [{"uri": "file:///work"}]},
}  # fmt: skip
CAN: dict[str, Any] = {"elicitation": {}, "sampling": {}, "roots": {}}


async def driven(client: Any, tool: str, answers: dict[str, Any]) -> Any:
    """Call a tool as any client would: a modern one answers rounds, an older one is pushed to."""
    result = await client.call(tool)
    while result.get("resultType") == "input_required":
        responses = {key: answers[one["method"]] for key, one in result["inputRequests"].items()}
        result = await client.call(tool, inputResponses=responses, requestState=result["requestState"])
    return result


@beside_clients("2025-11-25")
async def test_what_a_server_asks_is_asked_of_the_caller_in_every_pair_of_eras(
    link: str, client_version: str, sdk_url: str
) -> None:
    settings, known = sdk(link, sdk_url)
    async with world({"up": settings}, known=known) as here:
        async with here.client(
            version=client_version, capabilities=CAN, answer=lambda method, params: ANSWERS[method]
        ) as client:
            asked = await driven(client, "up__ask", ANSWERS)
            sampled = await driven(client, "up__sample", ANSWERS)
            roots = await driven(client, "up__roots", ANSWERS)
            declined = dict(ANSWERS, **{"elicitation/create": {"action": "decline"}})
            client._answer = lambda method, params: declined[method]
            refused = await driven(client, "up__ask", declined)

    assert asked["content"][0]["text"] == "accept Ann"
    assert sampled["content"][0]["text"] == "hello from the model"
    assert roots["content"][0]["text"] == "file:///work"
    assert refused["content"][0]["text"] == "decline"
    assert not len(here.pool.parking)


@EACH_LINK
async def test_a_cancelled_call_is_cancelled_at_the_server(link: str, sdk_url: str) -> None:
    settings, known = sdk(link, sdk_url)
    mark = f"mark {link}"
    async with world({"up": settings}, known=known) as here, here.client(version="2025-11-25") as client:
        id, reply = await client.start("tools/call", {"name": "up__slow", "arguments": {"mark": mark}})
        await here.gateway.until("policy_decided")
        connection = here.pool._connections["up", ""]
        await until(lambda: connection.busy)
        await client.notify("notifications/cancelled", {"requestId": id})
        async with asyncio.timeout(30):
            while True:
                seen = await client.call("up__meta")
                if mark in seen["structuredContent"]["cancelled"]:
                    break
        assert not connection.busy
        reply.cancel()


@EACH_LINK
async def test_trace_context_is_forwarded_and_the_callers_other_metadata_stays(link: str, sdk_url: str) -> None:
    settings, known = sdk(link, sdk_url)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with world({"up": settings}, known=known) as here, here.client(capabilities={"elicitation": {}}) as client:
        result = await client.call(
            "up__meta", _meta={"traceparent": trace, "vendor/secret": "token", "progressToken": "mine"}
        )
        silent = await client.call("up__meta")

    meta = result["structuredContent"]["meta"]
    assert meta["traceparent"] == trace
    assert "progress_token" in meta and "progress_token" not in silent["structuredContent"]["meta"]
    assert "vendor/secret" not in str(meta) and "mine" not in str(meta) and "memory-client" not in str(meta)
    if link.endswith("modern"):
        assert meta["io.modelcontextprotocol/clientCapabilities"] == {"elicitation": {}}
        assert meta["io.modelcontextprotocol/clientInfo"] == {"name": "omni-mcp", "version": "test"}
