"""Lists show what may be used, everything that reaches a target asks the policy, and refusals are on record."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest

from omni_mcp.contracts.errors import ApprovalPending, OutcomeUnknown, TimedOut
from omni_mcp.protocol.frames import Request, Response, frame_of
from omni_mcp.protocol.methods import METHODS
from omni_mcp.serving.session import Nowhere, Session
from tests.serving.edge_world import ANN, BOB, World, initialize, modern, request, tool


class Inbox:
    """An outlet that keeps what it gets."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def send(self, data: bytes) -> bool:
        self.messages.append(orjson.loads(data))
        return True


def connect(world: World, who: Any = ANN) -> Session:
    return world.edge.open(principal=who, profile="default", transport="memory", outlet=Inbox())


async def ask(world: World, session: Session, body: Any) -> Any:
    frame = frame_of(body)
    assert isinstance(frame, Request)
    return orjson.loads((await world.edge.begin(session, frame, session.outlet)).body)


async def handshaken(world: World, who: Any = ANN, version: str = "2025-11-25") -> Session:
    session = connect(world, who)
    await ask(world, session, initialize(version, capabilities={"elicitation": {}}))
    return session


async def test_a_list_shows_each_principal_only_what_it_may_use() -> None:
    world = World()
    world.policy.hidden = {"bob": {"talk", "note://a", "greet"}}
    for who, tools, resources, prompts in ((ANN, 7, 1, 1), (BOB, 6, 0, 0)):
        session = await handshaken(world, who)
        assert len((await ask(world, session, request("tools/list")))["result"]["tools"]) == tools
        assert len((await ask(world, session, request("resources/list")))["result"]["resources"]) == resources
        assert len((await ask(world, session, request("prompts/list")))["result"]["prompts"]) == prompts
    assert not world.log.codes(), "lists are counted, not recorded"


async def test_pages_hold_everything_once_and_in_one_order() -> None:
    world = World(page_size=250)
    world.catalog.all = [tool(f"n{number:04}") for number in range(601)]
    session = await handshaken(world)
    names: list[str] = []
    cursor: str | None = None
    pages = 0
    while True:
        params: Any = {"cursor": cursor} if cursor else {}
        result = (await ask(world, session, request("tools/list", params)))["result"]
        names += [item["name"] for item in result["tools"]]
        pages, cursor = pages + 1, result.get("nextCursor")
        if cursor is None:
            break
    assert pages == 3 and names == [f"t__n{number:04}" for number in range(601)]


@pytest.mark.parametrize("change", ["catalog", "policy", "principal", "method", "garbage", "flip"])
async def test_a_cursor_is_good_for_one_list_of_one_principal(change: str) -> None:
    world = World()
    world.catalog.all = [tool(f"n{number:04}") for number in range(300)]
    session = await handshaken(world)
    cursor = (await ask(world, session, request("tools/list")))["result"]["nextCursor"]
    method = "tools/list"
    if change == "catalog":
        world.catalog.version = "2"
    elif change == "policy":
        world.policy.version = "p2"
    elif change == "principal":
        session = await handshaken(world, BOB)
    elif change == "method":
        method = "prompts/list"
    elif change == "garbage":
        cursor = "AAAA"
    else:
        cursor = ("A" if cursor[0] != "A" else "B") + cursor[1:]
    answer = await ask(world, session, request(method, {"cursor": cursor}))
    assert answer["error"]["code"] == -32602 and "from the start" in answer["error"]["message"]


async def test_a_modern_list_says_how_long_it_holds_and_for_whom() -> None:
    world = World()
    world.catalog.all.append(tool("broken", schema={"type": "object", "x-mcp-header": "No place"}))
    result = (await ask(world, connect(world), modern("tools/list")))["result"]
    assert result["cacheScope"] == "private" and result["ttlMs"] > 0 and result["resultType"] == "complete"
    assert "t__broken" not in [item["name"] for item in result["tools"]], "a modern client would have to drop it"
    session = await handshaken(world)
    old = (await ask(world, session, request("tools/list")))["result"]
    assert "t__broken" in [item["name"] for item in old["tools"]]


async def test_what_is_forbidden_and_what_is_not_there_get_the_same_answer() -> None:
    world = World()
    world.policy.hidden = {"ann": {"talk", "note://a", "greet"}}
    session = await handshaken(world)
    for method, key, forbidden, missing in (
        ("tools/call", "name", "t__talk", "t__none"),
        ("resources/read", "uri", "note://a", "none://a"),
        ("prompts/get", "name", "p__greet", "p__none"),
        ("resources/subscribe", "uri", "note://a", "none://a"),
    ):
        for era in (request, modern):
            if era is modern and method == "resources/subscribe":
                continue
            one = scrubbed(await ask(world, session, era(method, {key: forbidden})), forbidden)
            other = scrubbed(await ask(world, session, era(method, {key: missing})), missing)
            assert one == other
    codes = {m: (await ask(world, session, b))["error"]["code"] for m, b in {
        "old": request("resources/read", {"uri": "none://a"}), "new": modern("resources/read", {"uri": "none://a"}),
    }.items()}  # fmt: skip
    assert codes == {"old": -32002, "new": -32602}


def scrubbed(answer: Any, name: str) -> str:
    """Without what is the client's own word, and without the call's id."""
    text = repr(answer).replace(name, "NAME")
    call = answer.get("result", {}).get("_meta", {}).get("io.omni-mcp/error", {}).get("call") or answer.get(
        "error", {}
    ).get("data", {}).get("io.omni-mcp/error", {}).get("call", "-")
    return text.replace(call, "CALL")


async def test_completion_asks_the_policy_about_its_target() -> None:
    world = World()
    session = await handshaken(world)
    body = request("completion/complete", {
        "ref": {"type": "ref/resource", "uri": "note://{id}"}, "argument": {"name": "id", "value": "a"},
    })  # fmt: skip
    assert (await ask(world, session, body))["result"]["completion"]["values"] == ["a!", "note://{id}"]
    world.policy.hidden = {"ann": {"note://{id}"}}
    refused = await ask(world, session, body)
    assert refused["error"]["code"] == -32002
    assert [draft.payload.method for _, draft in world.log.events] == ["completion/complete"]
    assert world.log.events[0][0] == session.run, "in the caller's own run"


@pytest.mark.parametrize(
    "ref", [{}, {"type": "ref/tool", "name": "x"}, {"type": "ref/prompt"}, {"type": "ref/resource", "uri": 1}]
)
async def test_a_completion_that_names_nothing_is_invalid(ref: Any) -> None:
    world = World()
    session = await handshaken(world)
    answer = await ask(
        world, session, request("completion/complete", {"ref": ref, "argument": {"name": "a", "value": ""}})
    )
    assert answer["error"]["code"] == -32602


async def test_with_an_empty_policy_no_method_of_any_era_reaches_a_target() -> None:
    """From the table itself, so that a new method cannot be forgotten."""
    world = World()
    world.policy.hidden = {"ann": {entry.name for entry in world.catalog.all}}
    fill = {"name": "t__echo", "uri": "note://a", "ref": {"type": "ref/prompt", "name": "p__greet"}, "level": "info",
            "argument": {"name": "who", "value": ""}, "notifications": {"resourceSubscriptions": ["note://a"]},
            "protocolVersion": "2025-11-25", "arguments": {}}  # fmt: skip
    for era in (request, modern):
        session = await handshaken(world)
        for method in METHODS.values():
            if method.direction == "request" and method.name != "subscriptions/listen":
                params = {p.name: fill[p.name] for p in method.params if p.name in fill}
                answer = await ask(world, session, era(method.name, params))
                lists = [value for value in answer.get("result", {}).values() if isinstance(value, list) and value]
                assert not lists or answer["result"].get("isError") or method.name == "server/discover", method.name
                assert "completion" not in answer.get("result", {})
        assert not session.subscriptions
    inbox = Inbox()
    listen = world.edge.begin(connect(world), Request("l", "subscriptions/listen", modern("x", fill)["params"]), inbox)
    while not inbox.messages:
        await asyncio.sleep(0)
    assert inbox.messages[0]["params"]["notifications"] == {}
    listen.cancel()
    assert all(call.name in ("t__echo", "note://a") for call in world.calls), (
        "calls go to the chain, which refused them"
    )
    assert "access_refused" in world.log.codes()


async def test_an_error_of_a_call_says_for_programs_whether_to_try_again_and_for_people_what_to_do() -> None:
    world = World()
    session = await handshaken(world)
    for error, code, retryable in (
        (ApprovalPending("a person has to answer", data={"approval": "A1"}), "approval_pending", True),
        (TimedOut("too slow", detail="internal detail"), "timeout", True),
        (OutcomeUnknown("nobody knows"), "outcome_unknown", False),
    ):

        async def fail(call: Any, error: Any = error) -> Any:
            raise error

        world.tools["echo"] = fail
        result = (await ask(world, session, request("tools/call", {"name": "t__echo"})))["result"]
        facts = result["_meta"]["io.omni-mcp/error"]
        assert result["isError"] and facts["code"] == code and facts["retryable"] is retryable
        assert facts["call"] == world.calls[-1].id
        assert code in result["content"][0]["text"] and "internal detail" not in repr(result)
    assert "approve A1" in (await _text_of_pending(world, session))


async def _text_of_pending(world: World, session: Session) -> str:
    async def pend(call: Any) -> Any:
        raise ApprovalPending("wait", data={"approval": "A1"})

    world.tools["echo"] = pend
    return str((await ask(world, session, request("tools/call", {"name": "t__echo"})))["result"]["content"][0]["text"])


@pytest.mark.parametrize("arguments", [{"who": 1}, {"who": None}, {"who": ["x"]}])
async def test_a_prompt_argument_that_is_no_string_is_invalid(arguments: Any) -> None:
    world = World()
    session = await handshaken(world)
    answer = await ask(world, session, request("prompts/get", {"name": "p__greet", "arguments": arguments}))
    assert answer["error"]["code"] == -32602 and not world.calls


@pytest.mark.parametrize("level", ["all", "INFO", "", "trace"])
async def test_an_unknown_log_level_is_invalid(level: str) -> None:
    world = World()
    session = await handshaken(world)
    assert (await ask(world, session, request("logging/setLevel", {"level": level})))["error"]["code"] == -32602


async def test_a_client_is_asked_only_what_its_version_and_capabilities_allow() -> None:
    world = World()
    for version, expected in (("2025-03-26", False), ("2025-06-18", True)):
        session = await handshaken(world, version=version)
        assert session.can_ask("elicitation/create") is expected
        assert not session.can_ask("sampling/createMessage") and not session.can_ask("tools/call")


async def test_modern_requests_join_the_run_of_their_trace_within_one_principal() -> None:
    world = World()
    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    ann, bob = connect(world), connect(world, BOB)
    for session, meta in (
        (ann, {}),
        (ann, {}),
        (ann, trace),
        (ann, trace),
        (bob, trace),
        (ann, {"traceparent": "junk"}),
    ):
        await ask(world, session, modern("tools/call", {"name": "t__echo"}, **meta))
    runs = [call.run for call in world.calls]
    assert runs[0] == runs[1] == runs[5] and runs[2] == runs[3]
    assert len({runs[0], runs[2], runs[4]}) == 3, "another principal's trace id opens no door"
    assert [made[3] for made in world.log.runs_made] == [None, "a" * 32, "a" * 32]


async def test_draining_ends_calls_with_their_outcome_and_takes_no_more() -> None:
    world = World()
    session = await handshaken(world)
    slow = world.edge.begin(session, Request(1, "tools/call", {"name": "t__slow"}), Nowhere())
    await asyncio.wait_for(world.started.wait(), 30)
    assert await world.edge.drain(timeout_s=0.01) == 1
    assert slow.cancelled() and world.cancelled == [world.calls[0].id]
    assert world.log.codes() == ["run_closed"]
    assert world.edge.open_sessions == 0 and world.edge.draining
    refused = await world.edge.begin(session, Request(2, "ping"), Nowhere())
    assert b"draining" in refused.body


async def test_a_tool_that_asks_without_end_is_ended_in_both_eras() -> None:
    world = World()

    async def insist(call: Any) -> Any:
        return await world.tool_round(replace(call, round=None))

    world.tools["round"] = insist
    session = await handshaken(world)
    asking = world.edge.begin(session, Request("h", "tools/call", {"name": "t__round"}), session.outlet)
    answered = 0
    while not asking.done():
        await asyncio.sleep(0)
        for message in session.outlet.messages[answered:]:  # type: ignore[attr-defined]
            answered += 1
            world.edge.take(session, Response(message["id"], result={"action": "accept"}))
    assert b"invalid_result" in (await asking).body and answered == 9

    capable: Any = {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}}
    state: Any = {}
    for _ in range(10):
        result = (await ask(world, connect(world), modern("tools/call", {"name": "t__round", **state}, **capable)))[
            "result"
        ]
        state = {"requestState": result.get("requestState"), "inputResponses": {"name": {"action": "accept"}}}
    assert "invalid_result" in result["content"][0]["text"]
    assert [error.code for _, error in world.ended] == ["invalid_result", "invalid_result"], (
        "both calls have an outcome"
    )
    assert len(world.calls) == 20 and len({call.id for call in world.calls}) == 2
