"""The modern era over HTTP: headers equal the body, streams only when there is something to stream, closing cancels."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import orjson
import pytest

from tests.serving.edge_world import MODERN, World, modern, modern_headers

REMOVED = ["initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe", "tasks/get",
           "tasks/list", "tasks/cancel", "tasks/result", "tasks/update", "unknown/method",
           "tools/call\x00"]  # fmt: skip


async def send(http: httpx2.AsyncClient, body: Any, **headers: str | None) -> httpx2.Response:
    wanted = {**modern_headers(body), **headers}
    return await http.post("/mcp", json=body, headers={k: v for k, v in wanted.items() if v is not None})


@pytest.mark.parametrize("method", REMOVED)
async def test_a_method_that_the_version_does_not_have_is_a_404(method: str) -> None:
    async with World().direct() as http:
        answer = await send(http, modern(method), **({"Mcp-Method": "tools/call"} if "\x00" in method else {}))
    if "\x00" in method:
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32020)
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, -32601)


@pytest.mark.parametrize(
    ("headers", "code"),
    [({"Mcp-Name": "t__talk"}, -32020), ({"Mcp-Method": "tools/list"}, -32020), ({"Mcp-Name": None}, -32020),
     ({"Mcp-Method": None}, -32020), ({"MCP-Protocol-Version": "2999-01-01"}, -32022),
     ({"MCP-Protocol-Version": None}, -32020), ({"MCP-Protocol-Version": "2025-11-25"}, -32020),
     ({"Mcp-Name": "=?base64?dF9fZWNobw==?="}, None)],
)  # fmt: skip
async def test_headers_that_contradict_the_body_call_nothing(headers: dict[str, str], code: int | None) -> None:
    world = World()
    async with world.direct() as http:
        answer = await send(http, modern("tools/call", {"name": "t__echo"}), **headers)
    if code is None:
        assert answer.status_code == 200
    else:
        assert (answer.status_code, answer.json()["error"]["code"], answer.json()["id"]) == (400, code, 1)
        assert not world.calls
        assert "request_rejected" in world.log.codes()


async def test_declared_parameter_headers_are_held_to_the_arguments() -> None:
    world = World()
    async with world.direct() as http:
        body = modern("tools/call", {"name": "t__routed", "arguments": {"region": "eu"}})
        world.tools["routed"] = world.tool_echo
        assert (await send(http, body, **{"Mcp-Param-Region": "eu"})).status_code == 200
        for headers in ({"Mcp-Param-Region": "us"}, {}):
            answer = await send(http, body, **headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32020)
    assert len(world.calls) == 1


@pytest.mark.parametrize("meta", [{}, {"_meta": 1}, {"_meta": {}},
                                  {"_meta": {"io.modelcontextprotocol/protocolVersion": MODERN}},
                                  {"_meta": {"io.modelcontextprotocol/clientCapabilities": {}}},
                                  {"_meta": {"io.modelcontextprotocol/protocolVersion": MODERN,
                                             "io.modelcontextprotocol/clientCapabilities": []}}])  # fmt: skip
async def test_a_request_without_its_envelope_is_invalid(meta: Any) -> None:
    async with World().direct() as http:
        body = {"jsonrpc": "2.0", "id": "x", "method": "tools/list", "params": meta}
        answer = await send(http, body)
    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["id"]) == (400, -32602, "x")


async def test_a_quick_answer_is_json_and_one_with_news_is_a_stream() -> None:
    async with World().direct() as http:
        quick = await send(http, modern("tools/call", {"name": "t__echo"}))
        told = await send(http, modern("tools/call", {"name": "t__talk"}, progressToken="p"))
        deaf = await send(http, modern("tools/call", {"name": "t__talk"}, progressToken="p"), Accept="application/json")
    assert quick.headers["content-type"] == "application/json"
    assert told.headers["content-type"] == "text/event-stream"
    messages = events(told.text)
    assert [message["params"]["progress"] for message in messages[:-1]] == [1, 2, 3]
    assert messages[-1]["result"]["structuredContent"] == {"value": "talked"}
    assert "id:" not in told.text, "this era has nothing to resume"
    assert deaf.headers["content-type"] == "application/json" and deaf.json()["result"]["resultType"] == "complete"


async def test_log_messages_come_only_at_the_level_that_the_request_names() -> None:
    async with World().direct() as http:
        silent = await send(http, modern("tools/call", {"name": "t__talk"}))
        loud = await send(
            http, modern("tools/call", {"name": "t__talk"}, **{"io.modelcontextprotocol/logLevel": "debug"})
        )
        wrong = await send(
            http, modern("tools/call", {"name": "t__talk"}, **{"io.modelcontextprotocol/logLevel": "all"})
        )
    assert silent.headers["content-type"] == "application/json"
    assert [m["params"]["level"] for m in events(loud.text)[:-1]] == ["debug", "warning"]
    assert wrong.json()["error"]["code"] == -32602


async def test_closing_the_answer_cancels_the_call_and_only_that_call() -> None:
    world = World()
    async with world.client() as http:
        other = asyncio.create_task(send(http, modern("tools/call", {"name": "t__slow"}, id="same")))
        await asyncio.wait_for(world.started.wait(), 30)
        world.started.clear()
        given_up = asyncio.create_task(send(http, modern("tools/call", {"name": "t__slow"}, id="same")))
        await asyncio.wait_for(world.started.wait(), 30)
        given_up.cancel()
        await asyncio.wait_for(world.stopped.wait(), 30)
        world.release.set()
        assert (await other).json()["result"]["structuredContent"] == {"value": "done"}
    assert world.cancelled == [world.calls[1].id]


async def test_a_notification_is_taken_and_dropped_but_its_version_must_be_known() -> None:
    note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    async with World().direct() as http:
        taken = await http.post("/mcp", json=note, headers={"MCP-Protocol-Version": MODERN})
        refused = await http.post("/mcp", json=note, headers={"MCP-Protocol-Version": "2999-01-01"})
    assert (taken.status_code, taken.content) == (202, b"")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, -32022)


async def test_a_client_that_takes_neither_form_is_told_so() -> None:
    async with World().direct() as http:
        assert (await send(http, modern("tools/list"), Accept="text/html")).status_code == 406
        listen = modern("subscriptions/listen", {"notifications": {}})
        assert (await send(http, listen, Accept="application/json")).status_code == 406


async def test_a_listen_stream_acknowledges_first_and_ends_with_a_result_when_the_gateway_stops() -> None:
    world = World()
    async with world.client() as http:
        body = modern("subscriptions/listen", {"notifications": {"toolsListChanged": True}}, id="sub")
        async with http.stream("POST", "/mcp", json=body, headers=modern_headers(body)) as stream:
            lines = stream.aiter_lines()
            first = await next_event(lines)
            assert first["method"] == "notifications/subscriptions/acknowledged"
            assert first["params"]["notifications"] == {"toolsListChanged": True}
            world.changes.lists_changed(["tools", "prompts"])
            second = await next_event(lines)
            assert second["method"] == "notifications/tools/list_changed"
            assert await world.edge.drain(timeout_s=1.0) == 0
            last = await next_event(lines)
        stamp = "io.modelcontextprotocol/subscriptionId"
        assert {m["params"]["_meta"][stamp] for m in (first, second)} == {"sub"}
        assert last["id"] == "sub" and last["result"]["_meta"][stamp] == "sub"
        refused = await send(http, modern("tools/list"))
    assert "draining" in refused.json()["error"]["message"]


ROUND = modern("tools/call", {"name": "t__round", "arguments": {"a": 1}},
               **{"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}})  # fmt: skip


def answered_round(state: str, **changes: Any) -> Any:
    responses = {"name": {"action": "accept", "content": {}}, "extra": {"action": "accept"}}
    params = {**ROUND["params"], "requestState": state, "inputResponses": responses, **changes}
    return {**ROUND, "id": 2, "params": params}


async def test_a_round_is_the_same_call_and_gets_only_the_answers_that_were_asked_for() -> None:
    world = World()
    async with world.direct() as http:
        asked = (await send(http, ROUND)).json()["result"]
        done = (await send(http, answered_round(asked["requestState"]))).json()["result"]
    assert asked["resultType"] == "input_required" and list(asked["inputRequests"]) == ["name"]
    assert done["structuredContent"]["value"]["round"] == 2
    assert list(done["structuredContent"]["value"]["got"]) == ["name"]
    assert world.calls[0].id == world.calls[1].id and world.calls[0].run == world.calls[1].run


async def test_a_state_is_used_once() -> None:
    world = World()
    async with world.direct() as http:
        asked = (await send(http, ROUND)).json()["result"]
        await send(http, answered_round(asked["requestState"]))
        again = await send(http, answered_round(asked["requestState"]))
    assert (again.status_code, again.json()["error"]["code"]) == (400, -32602)
    assert len(world.calls) == 2


async def test_a_state_is_good_for_nothing_else() -> None:
    """Other arguments, another tool, another principal, another profile, a changed byte, too late: one answer."""
    world = World()
    async with world.direct() as http:
        state = (await send(http, ROUND)).json()["result"]["requestState"]
        tries = [
            answered_round(state, arguments={"a": 2}),
            answered_round(state, name="t__echo"),
            answered_round(state[:-2] + ("AA" if state[-2:] != "AA" else "BB")),
            answered_round("eyJhcHByb3ZlZCI6dHJ1ZX0"),
        ]
        answers = [await send(http, body) for body in tries]
        answers.append(await send(http, answered_round(state), Authorization="Bearer bob-token"))
        body = answered_round(state)
        answers.append(await http.post("/mcp/tools", json=body, headers=modern_headers(body)))
        world.policy.version = "p2"
        answers.append(await send(http, answered_round(state)))
        world.policy.version = "p1"
        world.now_ns += 2 * 10**9
        answers.append(await send(http, answered_round(state)))
        world.now_ns -= 2 * 10**9
        assert (await send(http, answered_round(state))).status_code == 200, "none of the tries used it up"
    assert {(a.status_code, a.json()["error"]["code"], a.json()["error"]["message"]) for a in answers} == {
        (400, -32602, "requestState is not valid; send the request again without it")
    }  # fmt: skip
    assert len(world.calls) == 2


async def test_64_clients_with_the_same_id_each_get_their_own_answer() -> None:
    """Sessions, outlets and replies are never found by the client's id alone."""
    world = World()
    names = asyncio.Event()
    waiting = 0

    async def meet(call: Any) -> Any:
        nonlocal waiting
        waiting += 1
        if waiting == 64:
            names.set()
        await names.wait()
        await call.link.progress(1, None, str(call.arguments["who"]))
        return await world.tool_echo(call)

    world.tools["echo"] = meet
    async with world.direct() as http:
        answers = await asyncio.gather(
            *(send(http, modern("tools/call", {"name": "t__echo", "arguments": {"who": n}}, id=1, progressToken=1))
              for n in range(64))
        )  # fmt: skip
    for n, answer in enumerate(answers):
        progress, reply = events(answer.text)
        assert progress["params"]["message"] == str(n)
        assert reply["result"]["structuredContent"] == {"value": {"who": n}}


def events(text: str) -> list[Any]:
    return [orjson.loads(line[5:]) for line in text.splitlines() if line.startswith("data:") and line[5:].strip()]


async def next_event(lines: Any) -> Any:
    async with asyncio.timeout(30):
        async for line in lines:
            if line.startswith("data:") and line[5:].strip():
                return orjson.loads(line[5:])
    raise AssertionError("the stream ended")
