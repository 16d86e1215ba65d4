"""What a handshake server asks during a call reaches the caller whose call it is, and nobody else."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from omni_mcp.server_definition import ServerDefinition
from omni_mcp.testing import ANN, BOB, error_of
from tests.upstream.world import python_server, world, writing
from tests.waiting import until

CAN: dict[str, Any] = {"elicitation": {}, "sampling": {}, "roots": {}}


def raw(**options: Any) -> ServerDefinition:
    return python_server("raw", json.dumps(options), **options.pop("facts", {}))


def accept_as(name: str) -> Any:
    return lambda method, params: {"action": "accept", "content": {"name": name}}


async def test_a_modern_caller_answers_in_a_later_round_of_the_same_upstream_call() -> None:
    async with world({"up": raw()}) as here, here.client(capabilities=CAN) as client:
        asked = await client.call("up__ask")
        assert asked["resultType"] == "input_required" and len(here.pool.parking) == 1
        key, question = next(iter(asked["inputRequests"].items()))
        answered = await client.call(
            "up__ask", inputResponses={key: {"action": "accept", "content": {"name": "Ann"}}},
            requestState=asked["requestState"],
        )  # fmt: skip
        seen = (await client.call("up__seen"))["structuredContent"]["seen"]
        outcomes = list((await here.gateway.outcomes()).values())

    assert question["method"] == "elicitation/create" and question["params"]["message"] == "Who?"
    assert json.loads(answered["content"][0]["text"]) == {"action": "accept", "content": {"name": "Ann"}}
    assert sum(m["method"] == "tools/call" and m["params"]["name"] == "ask" for m in seen) == 1
    assert outcomes == [["tool_result"], ["tool_result"]]


async def test_two_questions_at_once_are_both_answered_whatever_the_rounds() -> None:
    async with world({"up": raw()}) as here, here.client(capabilities=CAN) as client:
        result = await client.call("up__ask_both")
        rounds = 0
        while result.get("resultType") == "input_required":
            rounds += 1
            one = sorted(result["inputRequests"])[0]  # only one of them each time
            name = result["inputRequests"][one]["params"]["message"]
            result = await client.call(
                "up__ask_both", inputResponses={one: {"action": "accept", "content": {"name": name}}},
                requestState=result["requestState"],
            )  # fmt: skip

    text = result["content"][0]["text"]
    assert rounds == 2 and "First?" in text and "Second?" in text


async def test_a_caller_that_does_not_come_back_is_cancelled_at_the_server() -> None:
    async with world({"up": raw()}, parked_s=0.2) as here, here.client(capabilities=CAN) as client:
        asked = await client.call("up__ask")
        await until(lambda: not len(here.pool.parking))
        key = next(iter(asked["inputRequests"]))
        late = await client.request(
            "tools/call",
            {"name": "up__ask", "arguments": {}, "inputResponses": {key: {"action": "accept"}},
             "requestState": asked["requestState"]},
        )  # fmt: skip
        seen = (await client.call("up__seen"))["structuredContent"]["seen"]

    assert error_of(late)["code"] == "outcome_unknown"
    assert "notifications/cancelled" in [message["method"] for message in seen]


@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
@pytest.mark.parametrize("tool", ["ask", "sample", "roots"])
async def test_who_cannot_answer_is_not_asked_and_the_server_is_told(version: str, tool: str) -> None:
    async with world({"up": raw()}) as here, here.client(version=version) as client:
        result = await client.call(f"up__{tool}")

    assert json.loads(result["content"][0]["text"])["code"] == -32601


async def test_null_parameters_are_none_and_what_can_be_no_parameters_is_answered_with_an_error() -> None:
    roots = {"roots": [{"uri": "file:///here"}]}
    async with world({"up": raw()}) as here:
        async with here.client(version="2025-11-25", capabilities=CAN, answer=lambda *_: roots) as client:
            absent = await client.call("up__null_params")
            wrong = await client.call("up__list_params")

    assert json.loads(absent["content"][0]["text"]) == roots
    assert json.loads(wrong["content"][0]["text"])["code"] == -32602


@pytest.mark.parametrize("tool", ["text_id", "float_id"])
async def test_an_answer_counts_whose_id_came_back_as_another_kind_of_number(tool: str) -> None:
    async with world({"up": raw()}) as here, here.client() as client:
        result = await client.call(f"up__{tool}")

    assert result["content"][0]["text"] == "mine all the same"


async def test_a_question_that_no_version_knows_is_refused() -> None:
    async with world({"up": raw()}) as here:
        async with here.client(version="2025-11-25", capabilities=CAN, answer=accept_as("x")) as client:
            result = await client.call("up__unanswerable")

    assert json.loads(result["content"][0]["text"])["code"] == -32601


@pytest.mark.parametrize(("tool", "text"), [("ask_and_go", "did not wait"), ("withdraw", "never mind")])
@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
async def test_a_server_that_does_not_wait_for_its_answer_gets_none(tool: str, text: str, version: str) -> None:
    async with world({"up": raw()}) as here:
        async with here.client(version=version, capabilities=CAN, answer=accept_as("x")) as client:
            result = await client.call(f"up__{tool}")
            while result.get("resultType") == "input_required":  # it has not taken its question back yet
                result = await client.call(f"up__{tool}", inputResponses={}, requestState=result["requestState"])
            after = await client.call("up__echo", {"text": "on"})

    assert result["content"][0]["text"] == text
    assert after["content"][0]["text"] == "on"


async def test_a_question_that_could_be_anybodys_reaches_nobody() -> None:
    """A stdio server does not say which call a question belongs to."""
    async with world({"up": raw()}) as here:
        async with (
            here.client(version="2025-11-25", principal=ANN, capabilities=CAN, answer=accept_as("Ann")) as ann,
            here.client(version="2025-11-25", principal=BOB, capabilities=CAN, answer=accept_as("Bob")) as bob,
        ):
            id, hanging = await bob.start("tools/call", {"name": "up__hang", "arguments": {}})
            await until(lambda: here.pool._connections["up", ""].busy)
            both = await ann.call("up__ask")
            await bob.notify("notifications/cancelled", {"requestId": id})
            await until(lambda: not here.pool._connections["up", ""].busy)
            alone = await ann.call("up__ask")
            hanging.cancel()

    assert json.loads(both["content"][0]["text"])["code"] == -32600
    assert json.loads(alone["content"][0]["text"])["content"] == {"name": "Ann"}


@pytest.mark.parametrize("others", ["2025-11-25", "2026-07-28"])
async def test_another_client_of_the_same_principal_never_sees_a_question_or_a_log_of_a_call(others: str) -> None:
    shown: list[str] = []

    def show(method: str, params: Any) -> Any:
        shown.append(method)
        return {"action": "accept", "content": {"name": "another"}}

    async with world({"up": raw()}) as here:
        async with (
            here.client(version="2025-11-25", capabilities=CAN, answer=accept_as("mine")) as mine,
            here.client(version=others, capabilities=CAN, answer=show) as other,
        ):
            id, hanging = await other.start("tools/call", {"name": "up__hang", "arguments": {}})
            await until(lambda: here.pool._connections["up", ""].busy)
            both = await mine.call("up__ask")
            rooted = await mine.call("up__roots")
            await mine.call("up__log")
            await other.notify("notifications/cancelled", {"requestId": id})
            await until(lambda: not here.pool._connections["up", ""].busy)
            alone = await mine.call("up__ask")
            hanging.cancel()
        logs = [message for message in other.notifications if message["method"] == "notifications/message"]

    assert json.loads(both["content"][0]["text"])["code"] == -32600
    assert json.loads(rooted["content"][0]["text"])["code"] == -32600
    assert json.loads(alone["content"][0]["text"])["content"] == {"name": "mine"}
    assert shown == [] and logs == []


async def test_an_answer_that_is_no_message_refuses_the_question_at_once() -> None:
    async with world({"up": raw()}) as here:
        async with here.client(version="2025-11-25", capabilities=CAN) as client:
            receive, answering = client.send, []

            def send(data: bytes) -> bool:
                message = json.loads(data)
                if "method" not in message:
                    return bool(receive(data))
                wide = b'{"jsonrpc":"2.0","id":"%s","result":{"n":%d}}' % (message["id"].encode(), 10**20)
                answering.append(asyncio.create_task(client.tell(wide)))
                return True

            client.send = send
            told = json.loads((await client.call("up__sample"))["content"][0]["text"])
            await asyncio.gather(*answering)

    assert told["code"] == -32603 and "64 bits" in told["message"]


async def test_a_call_that_waits_for_its_caller_to_come_back_keeps_no_other_call_from_asking() -> None:
    async with world({"up": raw()}) as here:
        async with (
            here.client(capabilities=CAN) as gone,
            here.client(version="2025-11-25", capabilities=CAN, answer=accept_as("here")) as client,
            here.client(version="2025-11-25", principal=BOB, capabilities=CAN, answer=accept_as("Bob")) as bob,
        ):
            await gone.call("up__ask")
            asked = await client.call("up__ask")
            elsewhere = await bob.call("up__ask")

    assert json.loads(asked["content"][0]["text"])["content"] == {"name": "here"}
    assert json.loads(elsewhere["content"][0]["text"])["code"] == -32600


async def test_a_client_with_several_calls_under_way_is_asked_what_one_of_them_asks() -> None:
    async with world({"up": raw()}) as here:
        async with here.client(version="2025-11-25", capabilities=CAN, answer=accept_as("me")) as client:
            id, hanging = await client.start("tools/call", {"name": "up__hang", "arguments": {}})
            await until(lambda: here.pool._connections["up", ""].busy)
            asked = await client.call("up__ask")
            await client.notify("notifications/cancelled", {"requestId": id})
            hanging.cancel()

    assert json.loads(asked["content"][0]["text"])["content"] == {"name": "me"}


async def test_a_stateful_server_runs_once_for_each_principal_and_keeps_them_apart() -> None:
    settings = python_server("raw", "{}", stateful=True)
    async with world({"up": settings}) as here:
        async with (
            here.client(version="2025-11-25", principal=ANN, capabilities=CAN, answer=accept_as("Ann")) as ann,
            here.client(version="2025-11-25", principal=BOB, capabilities=CAN, answer=accept_as("Bob")) as bob,
        ):
            pids = [(await one.call("up__seen"))["structuredContent"]["pid"] for one in (ann, bob, ann)]
            _, first = await ann.start("tools/call", {"name": "up__ask", "arguments": {}})
            _, second = await bob.start("tools/call", {"name": "up__ask", "arguments": {}})
            texts = [(await one)["result"]["content"][0]["text"] for one in (first, second)]

    assert pids[0] == pids[2] != pids[1]
    assert [json.loads(text)["content"]["name"] for text in texts] == ["Ann", "Bob"]


async def test_one_principal_cannot_resume_the_parked_call_of_another() -> None:
    async with world({"up": raw()}) as here:
        async with (
            here.client(principal=ANN, capabilities=CAN) as ann,
            here.client(principal=BOB, capabilities=CAN) as bob,
        ):
            asked = await ann.call("up__ask")
            key = next(iter(asked["inputRequests"]))
            stolen = await bob.request(
                "tools/call",
                {"name": "up__ask", "arguments": {}, "inputResponses": {key: {"action": "accept"}},
                 "requestState": asked["requestState"]},
            )  # fmt: skip
            parked = len(here.pool.parking)

    assert stolen["error"]["code"] == -32602 and parked == 1


async def test_a_parked_call_whose_server_dies_has_an_unknown_outcome() -> None:
    async with world({"up": raw()}, accept=writing) as here, here.client(capabilities=CAN) as client:
        asked = await client.call("up__ask")
        here.children.started[-1].kill()
        await here.children.started[-1].wait()
        key = next(iter(asked["inputRequests"]))
        late = await client.request(
            "tools/call",
            {"name": "up__ask", "arguments": {}, "inputResponses": {key: {"action": "accept"}},
             "requestState": asked["requestState"]},
        )  # fmt: skip

    assert error_of(late)["code"] == "outcome_unknown"
