"""A server that sends a person to a web page reaches that person's client, in the words of its era."""

from __future__ import annotations

from typing import Any

import pytest

from omni_mcp.testing import error_of
from tests.upstream.world import python_server, world
from tests.waiting import until

OPENS: dict[str, Any] = {"elicitation": {"form": {}, "url": {}}}
RAW = python_server("raw", "{}")
DONE = "notifications/elicitation/complete"


def told(client: Any) -> list[Any]:
    return [message["params"] for message in client.notifications if message["method"] == DONE]


async def test_a_client_of_2025_11_25_gets_the_error_as_it_is_and_hears_when_the_page_is_done() -> None:
    async with world({"up": RAW}) as here:
        async with (
            here.client(version="2025-11-25", capabilities=OPENS) as client,
            here.client(version="2025-11-25", capabilities=OPENS) as other,
        ):
            refused = await client.request("tools/call", {"name": "up__page", "arguments": {}})
            await other.call("up__page", {"done": "e1"})
            await until(lambda: told(client))
            await other.call("up__page", {"done": "e1"})
            await client.call("up__echo")

    assert refused["error"]["code"] == -32042 and refused["error"]["message"] == "a page has to be opened"
    assert refused["error"]["data"]["elicitations"][0]["url"] == "https://example.com/page"
    assert told(client) == [{"elicitationId": "e1"}] and told(other) == []


async def test_a_modern_client_opens_the_page_in_a_round_and_the_call_is_made_again() -> None:
    async with world({"up": RAW}) as here, here.client(capabilities=OPENS) as client:
        asked = await client.call("up__page")
        await client.call("up__echo", {"opened": True})
        ((key, page),) = asked["inputRequests"].items()
        answered = await client.call(
            "up__page", inputResponses={key: {"action": "accept"}}, requestState=asked["requestState"]
        )

    assert page["method"] == "elicitation/create" and page["params"]["url"] == "https://example.com/page"
    assert answered["content"][0]["text"] == "thank you"


@pytest.mark.parametrize("answer", [{"action": "decline"}, {"action": "cancel"}, None])
async def test_a_page_that_nobody_wants_to_open_ends_the_call_at_once(answer: Any) -> None:
    async with world({"up": RAW}) as here, here.client(capabilities=OPENS) as client:
        asked = await client.call("up__page")
        answers = {} if answer is None else dict.fromkeys(asked["inputRequests"], answer)
        ended = await client.call("up__page", inputResponses=answers, requestState=asked["requestState"])
        seen = (await client.call("up__seen"))["structuredContent"]["seen"]

    assert ended["isError"] and "did not agree" in ended["content"][0]["text"]
    assert sum(m["method"] == "tools/call" and m["params"]["name"] == "page" for m in seen) == 1


@pytest.mark.parametrize(
    ("version", "capabilities"),
    [("2025-06-18", OPENS), ("2025-11-25", {"elicitation": {"form": {}}}), ("2025-11-25", {}), ("2026-07-28", {})],
)
async def test_a_client_that_knows_no_pages_gets_a_result_that_its_model_reads(version: str, capabilities: Any) -> None:
    async with world({"up": RAW}) as here, here.client(version=version, capabilities=capabilities) as client:
        result = await client.call("up__page")
        await client.call("up__page", {"done": "e1"})
        await client.call("up__echo")

    assert result["isError"] and "a page has to be opened" in result["content"][0]["text"]
    assert told(client) == []


async def test_a_page_that_was_asked_for_in_a_call_is_told_as_done_to_its_client_alone() -> None:
    page = {"mode": "url", "elicitationId": "e2", "url": "https://example.com", "message": "?"}
    async with world({"up": RAW}) as here:
        async with (
            here.client(version="2025-11-25", capabilities=OPENS, answer=lambda *_: {"action": "accept"}) as client,
            here.client(version="2025-11-25", capabilities=OPENS) as other,
        ):
            await client.call("up__elicit", {"params": page})
            await other.call("up__page", {"done": "e2"})
            await until(lambda: told(client))
            failed = await other.request("tools/call", {"name": "up__no_content", "arguments": {}})

    assert told(client) == [{"elicitationId": "e2"}] and told(other) == []
    assert error_of(failed)["code"] == "upstream_protocol"
