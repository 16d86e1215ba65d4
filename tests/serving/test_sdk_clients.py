"""The other implementation: the SDK's client in every mode, over HTTP, over HTTP+SSE, and over lines."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from tests.serving.edge_world import World

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mcp_types as types
    from mcp.client.client import Client
    from mcp.client.sse import sse_client
    from mcp.client.streamable_http import streamable_http_client
    from mcp.shared.exceptions import MCPError

MODES = ("auto", "legacy", "2026-07-28")


@asynccontextmanager
async def connected(world: World, mode: str, *, sse: bool = False, **more: Any) -> AsyncIterator[Client]:
    headers = {"Authorization": "Bearer ann-token"}
    async with world.served() as base, httpx2.AsyncClient(headers=headers, timeout=20) as http:
        target = (
            sse_client(f"{base}/sse", headers=headers)
            if sse
            else streamable_http_client(f"{base}/mcp", http_client=http)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            async with Client(target, mode=mode, cache=None, **more) as client:
                yield client


@pytest.mark.parametrize("mode", MODES)
async def test_lists_calls_reads_and_completes(mode: str) -> None:
    world = World()
    async with connected(world, mode) as client:
        tools = await client.list_tools()
        called = await client.call_tool("t__echo", {"x": 1})
        refused = await client.call_tool("t__nothing", {})
        resources = await client.list_resources()
        templates = await client.list_resource_templates()
        read = await client.read_resource("note://a")
        prompts = await client.list_prompts()
        prompt = await client.get_prompt("p__greet", {"who": "Ann"})
        completed = await client.complete(
            types.PromptReference(type="ref/prompt", name="p__greet"), {"name": "who", "value": "A"}
        )
    assert tools.tools[0].name == "t__echo"
    assert called.structured_content == {"value": {"x": 1}}
    assert refused.is_error and "policy_denied" in refused.content[0].text  # type: ignore[union-attr]
    assert resources.resources[0].uri == "note://a" and templates.resource_templates[0].uri_template == "note://{id}"
    assert read.contents[0].text == "text of note://a"  # type: ignore[union-attr]
    assert prompts.prompts[0].name == "p__greet"
    assert prompt.messages[0].content.text == "Hello Ann"  # type: ignore[union-attr]
    assert completed.completion.values == ["A!", "greet"]
    era = {"legacy": "handshake"}.get(mode, "modern")
    assert {call.client.era for call in world.calls} == {era}


@pytest.mark.parametrize("mode", MODES)
async def test_progress_reaches_the_caller_that_asked_for_it(mode: str) -> None:
    seen: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    async with connected(World(), mode) as client:
        await client.call_tool("t__talk", {}, progress_callback=on_progress)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("mode", MODES)
async def test_log_messages_come_at_the_wanted_level(mode: str) -> None:
    seen: list[tuple[str, Any]] = []

    async def on_log(params: types.LoggingMessageNotificationParams) -> None:
        seen.append((params.level, params.data))

    level: Any = {} if mode == "legacy" else {"log_level": "warning"}
    async with connected(World(), mode, logging_callback=on_log, **level) as client:
        if mode == "legacy":
            await client.set_logging_level("warning")
        await client.call_tool("t__talk", {})
    assert seen == [("warning", {"said": "aloud"})]


async def agree(context: Any, params: Any) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"name": "Ann"})


@pytest.mark.parametrize("mode", MODES)
async def test_what_a_tool_needs_is_asked_in_either_era(mode: str) -> None:
    """One multi-round tool: modern clients get input_required, handshake clients a pushed elicitation/create."""
    world = World()
    async with connected(world, mode, elicitation_callback=agree) as client:
        result = await client.call_tool("t__round", {"x": 1})
    value = result.structured_content["value"]
    assert value["round"] == 2 and value["state"] == {"step": 1} and value["seq"] == 7
    assert value["carry"] == {"definition": "d"}
    assert value["got"]["name"]["content"] == {"name": "Ann"}
    assert len({call.id for call in world.calls}) == 1, "one call across its rounds"


async def test_a_handshake_client_answers_a_question_that_its_call_asks() -> None:
    async with connected(World(), "legacy", elicitation_callback=agree) as client:
        result = await client.call_tool("t__ask", {})
    assert result.structured_content["value"]["action"] == "accept"


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_without_the_capability_is_not_asked(mode: str) -> None:
    world = World()
    async with connected(world, mode) as client:
        if mode == "legacy":
            result = await client.call_tool("t__round", {})
            assert result.is_error and "outcome_unknown" in result.content[0].text  # type: ignore[union-attr]
        else:
            with pytest.raises(MCPError) as refused:
                await client.call_tool("t__round", {})
            assert refused.value.error.code == -32021
            assert refused.value.error.data == {"requiredCapabilities": {"elicitation": {}}}
    assert [error.code for _, error in world.ended] == ["outcome_unknown"]


async def test_the_older_transport_serves_the_sdk_client() -> None:
    async with connected(World(), "legacy", sse=True, elicitation_callback=agree) as client:
        assert len((await client.list_tools()).tools) == 7
        assert (await client.call_tool("t__echo", {"x": 2})).structured_content == {"value": {"x": 2}}
        assert (await client.call_tool("t__round", {})).structured_content["value"]["round"] == 2


async def test_the_older_transport_serves_the_modern_era_too() -> None:
    async with connected(World(), "auto", sse=True) as client:
        assert (await client.call_tool("t__echo", {"x": 2})).structured_content == {"value": {"x": 2}}


async def test_a_modern_listener_hears_what_it_named_and_nothing_else() -> None:
    world = World()
    async with (
        connected(world, "2026-07-28") as client,
        client.listen(tools_list_changed=True, resource_subscriptions=["note://a", "no://such"]) as heard,
    ):
        world.changes.lists_changed(["prompts", "tools"])
        first = await asyncio.wait_for(anext(aiter(heard)), 30)
        world.changes.resource_updated("note://a")
        second = await asyncio.wait_for(anext(aiter(heard)), 30)
    assert type(first).__name__ == "ToolsListChanged"
    assert type(second).__name__ == "ResourceUpdated" and second.uri == "note://a"  # type: ignore[union-attr]
    assert world.log.codes()[:1] == ["access_refused"], "the unknown resource was refused on record"


async def test_a_handshake_client_hears_of_lists_and_of_its_subscriptions() -> None:
    world = World()
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def on_message(message: Any) -> None:
        if message.method != "notifications/message":
            heard.put_nowait(message.method)

    async with connected(world, "legacy", message_handler=on_message) as client:
        await client.subscribe_resource("note://a")
        await until_listening(world)
        world.changes.lists_changed(["tools"])
        world.changes.resource_updated("note://a")
        got = {await asyncio.wait_for(heard.get(), 5), await asyncio.wait_for(heard.get(), 30)}
        await client.unsubscribe_resource("note://a")
        world.changes.resource_updated("note://a")
        world.changes.lists_changed(["prompts"])
        assert await asyncio.wait_for(heard.get(), 30) == "notifications/prompts/list_changed"
    assert got == {"notifications/tools/list_changed", "notifications/resources/updated"}


async def until_listening(world: World) -> None:
    """Wait until the client's GET stream is there."""
    async with asyncio.timeout(30):
        while not any(session.notify("notifications/message", {"level": "debug", "data": "are you there"})
                      for session in world.edge._sessions):  # fmt: skip
            await asyncio.sleep(0)


@pytest.mark.parametrize("mode", MODES)
async def test_a_call_that_the_client_gives_up_is_cancelled(mode: str) -> None:
    world = World()
    async with connected(world, mode) as client:
        call = asyncio.create_task(client.call_tool("t__slow", {}))
        await asyncio.wait_for(world.started.wait(), 30)
        call.cancel()
        await asyncio.wait({call})
        await asyncio.wait_for(world.stopped.wait(), 30)
        assert (await client.call_tool("t__echo", {})).structured_content == {"value": {}}, "the next call is served"
    assert world.cancelled == [world.calls[0].id]


async def test_a_fault_inside_tells_the_client_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with connected(World(), "2026-07-28") as client:
        with pytest.raises(MCPError) as fault:
            await client.call_tool("t__fail", {})
    assert fault.value.error.code == -32603
    assert "secret" not in str(fault.value.error)
