"""What was recorded answers: in order, once each, with all that was said, and nothing of the world is touched."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from omni_mcp.contracts.call import Answer, Call, InputRequired
from omni_mcp.contracts.errors import UpstreamUnavailable
from omni_mcp.contracts.json import JsonObject
from omni_mcp.serving.lists import PAGE_SIZE
from omni_mcp.testing import BOB, Canary, LocalGateway, MemoryClient, error_of
from tests.replay.conftest import FORGETFUL, newest, recording, replaying

LARGE = "lorem ipsum " * 200_000
PASSWORD = "hunter2-hunter2"
ASK_A_PERSON = """
@id("all") permit (principal, action, resource);
@id("look") @approval("required") forbid (principal, action, resource) unless { context has approval };
"""


def said(text: str, **more: object) -> Answer:
    return Answer(body={"content": [{"type": "text", "text": text}], "isError": False, **more}, where="remote")


async def both(
    canary: Canary, place: Path, script: list[tuple[str, JsonObject]], **facts: object
) -> tuple[list[JsonObject], list[JsonObject]]:
    """Make the calls, then make them again offline; returns what came back each time."""
    async with recording(canary, place) as here, here.client(**facts) as client:
        then = [await client.request("tools/call", {"name": name, "arguments": given}) for name, given in script]
        heard = list(client.notifications)
    touched = list(canary.touched)
    async with replaying(canary, place) as (again, _), again.client(**facts) as client:
        now = [await client.request("tools/call", {"name": name, "arguments": given}) for name, given in script]
        assert client.notifications == heard
    assert canary.touched == touched, "the replay reached the outside world"
    return then, now


async def test_results_come_back_with_their_keys_in_order_and_unmasked(canary: Canary, tmp_path: Path) -> None:
    async def answer(call: Call) -> Answer:
        return said("z", zeta=1, alpha={"password": PASSWORD, "n": 1.0, "big": 2**63}, _meta={"b": 1, "a": 2})

    canary.tool("keys", answer)
    then, now = await both(canary, tmp_path, [("canary__keys", {"password": PASSWORD, "a": 1})])

    assert str(now) == str(then)
    assert PASSWORD in str(now)
    outcome = newest(tmp_path).calls[0].outcome
    assert outcome is not None and PASSWORD not in str(outcome.payload)


async def test_the_same_call_twice_gets_its_answers_in_order(canary: Canary, tmp_path: Path) -> None:
    async def count(call: Call) -> Answer:
        return said(str(len(canary.calls)))

    canary.tool("count", count)
    then, now = await both(
        canary, tmp_path, [("canary__count", {}), ("canary__count", {}), ("canary__count", {"a": 1})]
    )

    assert now == then
    assert [reply["result"]["content"][0]["text"] for reply in now] == ["1", "2", "3"]


async def test_failures_and_refusals_come_back_with_the_ids_that_they_named(canary: Canary, tmp_path: Path) -> None:
    async def fail(call: Call) -> Answer:
        raise UpstreamUnavailable("it cannot be reached", data={"retry_after_s": 7})

    canary.tool("fail", fail)
    canary.tool("strict", schema={"type": "object", "required": ["a"]})
    script: list[tuple[str, JsonObject]] = [
        ("canary__fail", {}), ("canary__strict", {}), ("canary__nothing", {"x": 1}), ("nowhere__at_all", {})
    ]  # fmt: skip
    then, now = await both(canary, tmp_path, script)

    assert now == then
    assert [error_of(reply)["code"] for reply in now] == [
        "upstream_unavailable", "invalid_arguments", "policy_denied", "policy_denied"
    ]  # fmt: skip


async def test_a_result_that_became_an_artifact_comes_back_as_it_was_shown(canary: Canary, tmp_path: Path) -> None:
    async def large(call: Call) -> Answer:
        return said(LARGE, structuredContent={"text": LARGE})

    canary.tool("large", large, definition={"outputSchema": {"type": "object", "required": ["text"]}})
    then, now = await both(canary, tmp_path, [("canary__large", {})])

    assert now == then
    assert "artifact://" in str(now)


async def test_everything_said_during_a_call_comes_back_in_order(canary: Canary, tmp_path: Path) -> None:
    async def talk(call: Call) -> Answer:
        await call.link.progress(1, 2, "half")
        await call.link.log("info", {"b": 1, "a": 2}, "it")
        answer = await call.link.ask("elicitation/create", {"message": "who?", "requestedSchema": {"type": "object"}})
        await call.link.progress(2, 2, None)
        return said(str(answer))

    canary.tool("talk", talk)
    facts = {
        "version": "2025-11-25", "capabilities": {"elicitation": {}},
        "answer": lambda method, params: {"action": "accept", "content": {"name": "Ann"}},
    }  # fmt: skip
    script: JsonObject = {"name": "canary__talk", "arguments": {}, "_meta": {"progressToken": "p"}}
    heard = []
    for opening in (recording, replaying):
        async with opening(canary, tmp_path) as opened:
            here: LocalGateway = opened if isinstance(opened, LocalGateway) else opened[0]
            async with here.client(**facts) as client:
                reply = await client.request("tools/call", script)
                heard.append((reply, client.notifications))

    assert heard[0] == heard[1]
    assert "Ann" in str(heard[0][0]) and len(heard[0][1]) == 3
    assert len(canary.calls) == 1


async def test_a_client_that_answers_otherwise_is_told_so(canary: Canary, tmp_path: Path) -> None:
    async def ask(call: Call) -> Answer:
        return said(str(await call.link.ask("roots/list", {})))

    canary.tool("ask", ask)
    facts = {"version": "2025-11-25", "capabilities": {"roots": {}}}
    async with recording(canary, tmp_path) as here:
        async with here.client(**facts, answer=lambda method, params: {"roots": []}) as client:
            await client.call("canary__ask")
    async with replaying(canary, tmp_path) as (again, _):
        async with again.client(**facts, answer=lambda method, params: {"roots": [{"uri": "file:///x"}]}) as client:
            reply = await client.request("tools/call", {"name": "canary__ask", "arguments": {}})

    assert error_of(reply)["code"] == "not_recorded"
    assert "answered otherwise" in str(reply)


async def test_rounds_of_a_modern_call_come_back(canary: Canary, tmp_path: Path) -> None:
    question = {"who": {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": {}}}}

    async def rounds(call: Call) -> Answer | InputRequired:
        if call.round is None:
            return InputRequired(requests=question, state="mine", where="remote")
        return said(str(call.round.responses))

    canary.tool("rounds", rounds)
    replies = []
    for opening in (recording, replaying):
        async with opening(canary, tmp_path) as opened:
            here: LocalGateway = opened if isinstance(opened, LocalGateway) else opened[0]
            async with here.client(capabilities={"elicitation": {}}) as client:
                asked = await client.request("tools/call", {"name": "canary__rounds", "arguments": {}})
                state = asked["result"]["requestState"]
                more = {"inputResponses": {"who": {"action": "accept", "content": {"n": 1}}}, "requestState": state}
                answered = await client.request("tools/call", {"name": "canary__rounds", "arguments": {}, **more})
                replies.append((asked, answered))

    assert replies[0] == replies[1]
    assert "accept" in str(replies[1][1])
    assert len(canary.calls) == 2


async def test_a_replay_takes_a_state_only_after_it_gave_it_out_once_from_whom_it_gave_it_to(
    canary: Canary, tmp_path: Path
) -> None:
    async def rounds(call: Call) -> Answer | InputRequired:
        if call.round is None:
            return InputRequired(requests={"who": {"method": "roots/list", "params": {}}}, where="remote")
        return said("done")

    canary.tool("rounds", rounds)
    first: JsonObject = {"name": "canary__rounds", "arguments": {}}
    async with recording(canary, tmp_path) as here, here.client(capabilities={"roots": {}}) as client:
        asked = await client.request("tools/call", first)
        later = {**first, "inputResponses": {"who": {"roots": []}}, "requestState": asked["result"]["requestState"]}
        done = await client.request("tools/call", later)
    async with replaying(canary, tmp_path) as (again, _), again.client(capabilities={"roots": {}}) as client:
        early = await client.request("tools/call", later)
        assert (await client.request("tools/call", first))["result"] == asked["result"]
        async with again.client(principal=BOB, capabilities={"roots": {}}) as other:
            stolen = await other.request("tools/call", later)
        state = later["requestState"]
        flipped = await client.request(
            "tools/call", {**later, "requestState": state[:-1] + ("A" if state[-1] != "A" else "E")}
        )
        other_arguments = await client.request("tools/call", {**later, "arguments": {"n": 1}})
        assert (await client.request("tools/call", later))["result"] == done["result"]
        twice = await client.request("tools/call", later)

    for refused in (early, stolen, flipped, other_arguments, twice):
        assert refused["error"]["code"] == -32602 and refused["error"]["data"] == {"path": "$.params.requestState"}


async def test_cursors_of_long_lists_come_back(canary: Canary, tmp_path: Path) -> None:
    for number in range(PAGE_SIZE + 10):
        canary.tool(f"t{number}")
    replies: list[list[JsonObject]] = []
    for opening in (recording, replaying):
        async with opening(canary, tmp_path) as opened:
            here: LocalGateway = opened if isinstance(opened, LocalGateway) else opened[0]
            async with here.client() as client:
                await client.call("canary__t1")
                page = await client.request("tools/list", {})
                replies.append([page, await client.request("tools/list", {"cursor": page["result"]["nextCursor"]})])

    assert replies[0] == replies[1]
    assert len(replies[1][1]["result"]["tools"]) >= 10


async def test_a_call_that_was_not_recorded_is_refused_and_runs_nothing(canary: Canary, tmp_path: Path) -> None:
    canary.tool("look")
    async with recording(canary, tmp_path) as here, here.client() as client:
        await client.call("canary__look", {"n": 1})
    before = canary.touched
    async with replaying(canary, tmp_path) as (again, answers), again.client() as client:
        other = await client.request("tools/call", {"name": "canary__look", "arguments": {"n": 2}})
        events = await again.events(call=error_of(other)["call"])

    assert error_of(other)["code"] == "not_recorded"
    assert answers.unmatched == ["canary__look"] and len(answers.left) == 1
    assert canary.touched == before
    assert [event.code or event.kind for event in events] == ["tool_call", "policy_decided", "tool_error"]


async def test_another_principal_is_not_answered_with_what_was_told_to_this_one(canary: Canary, tmp_path: Path) -> None:
    canary.tool("look")
    async with recording(canary, tmp_path) as here, here.client() as client:
        await client.call("canary__look")
    async with replaying(canary, tmp_path) as (again, _), again.client(principal=BOB) as client:
        reply = await client.request("tools/call", {"name": "canary__look", "arguments": {}})

    assert error_of(reply)["code"] == "not_recorded"


async def test_nobody_is_asked_about_what_a_person_answered_then(canary: Canary, tmp_path: Path) -> None:
    canary.tool("look")
    canary.tool("never")
    replies: list[list[JsonObject]] = []
    async with recording(canary, tmp_path, rules=ASK_A_PERSON) as here, here.client() as client:
        replies.append([])
        for tool, yes in (("canary__look", True), ("canary__never", False)):
            _, waiting = await client.start("tools/call", {"name": tool, "arguments": {"a": 1}})
            await here.until("approval_requested", count=1 if yes else 2)
            here.answer(yes)
            replies[0].append(await asyncio.wait_for(waiting, 30))
    async with replaying(canary, tmp_path) as (again, _), again.client() as client:
        replies.append(
            [
                await client.request("tools/call", {"name": tool, "arguments": {"a": 1}})
                for tool in ("canary__look", "canary__never")
            ]
        )
        assert again.gateway.status()["pending_approvals"] == 0

    assert replies[0] == replies[1]
    assert error_of(replies[1][1])["code"] == "approval_denied"


async def test_more_said_than_is_kept_is_not_given_again_in_part(canary: Canary, tmp_path: Path) -> None:
    async def chatter(call: Call) -> Answer:
        for number in range(5000):
            await call.link.progress(number, None, None)
        return said("done")

    canary.tool("chatter", chatter)
    async with recording(canary, tmp_path) as here, here.client() as client:
        await client.call("canary__chatter")
    async with replaying(canary, tmp_path) as (again, _), again.client() as client:
        reply = await client.request("tools/call", {"name": "canary__chatter", "arguments": {}})

    assert error_of(reply)["code"] == "not_recorded" and "more was said" in str(reply)


async def test_a_call_that_its_caller_took_back_waits_to_be_taken_back_again(canary: Canary, tmp_path: Path) -> None:
    started = asyncio.Event()

    async def hang(call: Call) -> Answer:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def take_back(here: LocalGateway, client: MemoryClient, begun: asyncio.Event | None) -> None:
        number, _ = await client.start("tools/call", {"name": "canary__hang", "arguments": {}})
        await (begun.wait() if begun else here.until("policy_decided"))
        await client.notify("notifications/cancelled", {"requestId": number})
        await here.until("tool_error")

    canary.tool("hang", hang)
    async with recording(canary, tmp_path) as here, here.client() as client:
        await take_back(here, client, started)
    async with replaying(canary, tmp_path) as (again, _), again.client() as client:
        await take_back(again, client, None)
        assert (await again.until("tool_error")).payload["code"] == "cancelled"  # type: ignore[index]


@pytest.mark.parametrize("keys", ["with bodies", "without"])
async def test_without_bodies_there_is_no_answer_to_give(canary: Canary, tmp_path: Path, keys: str) -> None:
    canary.tool("look")
    settings = FORGETFUL if keys == "without" else None
    async with recording(canary, tmp_path, settings=settings) as here, here.client() as client:
        await client.call("canary__look", {"n": 1})
    async with replaying(canary, tmp_path) as (again, _), again.client() as client:
        reply = await client.request("tools/call", {"name": "canary__look", "arguments": {"n": 1}})

    assert error_of(reply).get("code") == ("not_recorded" if keys == "without" else None)
    assert ("no sealed body" in str(reply)) == (keys == "without")


async def test_a_round_that_is_answered_otherwise_is_not_gone_through(canary: Canary, tmp_path: Path) -> None:
    async def rounds(call: Call) -> Answer | InputRequired:
        if call.round is None:
            return InputRequired(requests={"who": {"method": "roots/list", "params": {}}}, where="remote")
        return said("done")

    canary.tool("rounds", rounds)
    replies = []
    for opening, roots in ((recording, []), (replaying, [{"uri": "file:///other"}])):
        async with opening(canary, tmp_path) as opened:
            here: LocalGateway = opened if isinstance(opened, LocalGateway) else opened[0]
            async with here.client(capabilities={"roots": {}}) as client:
                asked = await client.call("canary__rounds")
                more = {"inputResponses": {"who": {"roots": roots}}, "requestState": asked["requestState"]}
                answered = await client.request("tools/call", {"name": "canary__rounds", "arguments": {}, **more})
                replies.append(answered)

    assert error_of(replies[0]) == {} and "answered otherwise" in str(replies[1])
