"""The handshake era over HTTP: sessions belong to who opened them, and an answer survives a lost connection."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import orjson
import pytest

from tests.serving.edge_world import World, initialize, request


async def opened(http: httpx2.AsyncClient, version: str = "2025-11-25", **capabilities: Any) -> dict[str, str]:
    answer = await http.post("/mcp", json=initialize(version, capabilities=capabilities))
    assert answer.status_code == 200, answer.text
    return {"Mcp-Session-Id": answer.headers["mcp-session-id"], "MCP-Protocol-Version": version}


async def call(
    http: httpx2.AsyncClient, session: dict[str, str], name: str, *, id: Any = 1, **params: Any
) -> httpx2.Response:
    body = request("tools/call", {"name": f"t__{name}", **params}, id=id)
    return await http.post("/mcp", json=body, headers=session)


async def test_every_version_of_the_era_is_agreed_on_and_an_unknown_one_gets_the_newest() -> None:
    async with World().direct() as http:
        for asked in ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "1.0"):
            answer = await http.post("/mcp", json=initialize(asked))
            wanted = asked if asked != "1.0" else "2025-11-25"
            assert answer.json()["result"]["protocolVersion"] == wanted
            assert ("completions" in answer.json()["result"]["capabilities"]) == (wanted != "2024-11-05")


async def test_a_request_that_cannot_be_taken_is_answered_as_a_request_and_the_session_goes_on() -> None:
    body = b'{"method":"tools/call","params":{"name":"t__echo","arguments":{"n":%d}},"jsonrpc":"2.0","id":4}' % 10**20
    async with World().direct() as http:
        session = await opened(http)
        headers = {**session, "Content-Type": "application/json"}
        refused = await http.post("/mcp", content=body, headers=headers)
        nobodys = await http.post("/mcp", content=body.replace(b'"id":4', b'"id":null'), headers=headers)
        after = await call(http, session, "echo")

    assert refused.status_code == 200
    assert (refused.json()["id"], refused.json()["error"]["code"]) == (4, -32700)
    assert (nobodys.status_code, nobodys.json()["id"]) == (400, None)
    assert "result" in after.json()


async def test_session_ids_are_long_random_and_never_the_same() -> None:
    async with World().direct() as http:
        ids = {(await opened(http))["Mcp-Session-Id"] for _ in range(20)}
    assert len(ids) == 20 and all(len(found) >= 32 for found in ids), "24 random bytes are 192 bits"


async def test_without_a_session_nothing_is_served() -> None:
    world = World()
    async with world.direct() as http:
        none = await http.post("/mcp", json=request("tools/list"))
        wrong = await http.post("/mcp", json=request("tools/list"), headers={"Mcp-Session-Id": "x" * 32})
        stream = await http.get("/mcp")
        end = await http.delete("/mcp")
    assert [a.status_code for a in (none, wrong, stream, end)] == [400, 404, 400, 400]
    assert "initialize" in none.json()["error"]["message"]


async def test_another_principal_finds_no_session_for_any_http_method() -> None:
    """The answer is the same as for a session that is not there."""
    world = World()
    async with world.direct() as http:
        session = await opened(http)
        stolen = {**session, "Authorization": "Bearer bob-token"}
        missing = {**stolen, "Mcp-Session-Id": "y" * 32}
        for method in ("GET", "DELETE", "POST"):
            body: Any = {"json": request("tools/list")} if method == "POST" else {}
            theirs = await http.request(method, "/mcp", headers=stolen, **body)
            nobodys = await http.request(method, "/mcp", headers=missing, **body)
            assert theirs.status_code == 404 and theirs.json() == nobodys.json()
        assert (await http.post("/mcp/tools", json=request("tools/list"), headers=session)).status_code == 404
        assert (await http.post("/mcp", json=request("tools/list"), headers=session)).status_code == 200


async def test_a_session_is_one_run_and_ends_with_it() -> None:
    world = World()
    async with world.direct() as http:
        session = await opened(http)
        await call(http, session, "echo")
        await call(http, session, "echo")
        assert (await http.delete("/mcp", headers=session)).status_code == 204
        assert (await call(http, session, "echo")).status_code == 404
    assert len(world.log.runs_made) == 1
    assert {found.run for found in world.calls} == {world.log.runs_made[0][0]}
    assert world.log.codes()[:1] == ["run_closed"]
    assert world.log.runs_made[0][2] == {"name": "test", "version": "1", "era": "handshake", "protocol": "2025-11-25",
                                         "transport": "http"}  # fmt: skip


async def test_a_session_that_opened_while_the_log_was_broken_gets_its_run_with_its_first_call() -> None:
    world = World()
    async with world.direct() as http:
        world.log.broken = True
        session = await opened(http)
        refused = (await call(http, session, "echo")).json()["result"]
        world.log.broken = False
        served = (await call(http, session, "echo")).json()["result"]
    assert refused["isError"] and "log_unavailable" in refused["content"][0]["text"]
    assert served["structuredContent"] == {"value": {}}
    assert len(world.calls) == 1


async def test_there_are_only_so_many_sessions() -> None:
    world = World(sessions=2)
    async with world.direct() as http:
        first = await opened(http)
        await opened(http)
        refused = await http.post("/mcp", json=initialize())
        assert refused.status_code == 503
        await http.delete("/mcp", headers=first)
        await opened(http)


async def test_an_idle_session_ends_and_one_with_a_call_under_way_does_not() -> None:
    world = World(session_idle_s=0.1)
    async with world.client() as http:
        while not world.started.is_set():  # a slow machine may end the session before the call is made
            slow = asyncio.create_task(call(http, await opened(http), "slow"))
            begun = asyncio.create_task(world.started.wait())
            await asyncio.wait({slow, begun}, return_when=asyncio.FIRST_COMPLETED)
        await opened(http)
        while len(world.log.runs_made) - world.log.codes().count("run_closed") > 1:
            await world.log.next()
        world.release.set()
        assert "done" in (await slow).text
    assert world.log.events[0][1].payload.reason == "idle"


async def test_a_lost_connection_is_no_cancel_and_the_answer_can_be_fetched() -> None:
    """MCP 2025-11-25, basic/transports: "disconnection SHOULD NOT be interpreted as the client cancelling"."""
    world = World()
    async with world.client() as http:
        session = await opened(http)
        body = request("tools/call", {"name": "t__slow"}, id="lost")
        async with http.stream("POST", "/mcp", json=body, headers=session) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("id:"):
                    event_id = line[3:].strip()
                    break
        world.release.set()
        async with http.stream("GET", "/mcp", headers={**session, "Last-Event-ID": event_id}) as again:
            answer = await next_event(again.aiter_lines())
    assert answer["id"] == "lost" and answer["result"]["structuredContent"] == {"value": "done"}
    assert world.cancelled == []


async def test_events_after_the_last_one_seen_come_again_and_no_others() -> None:
    world = World()
    async with world.client() as http:
        session = await opened(http)
        body = request("tools/call", {"name": "t__talk", "_meta": {"progressToken": 5}})
        async with http.stream("POST", "/mcp", json=body, headers=session) as stream:
            text = (await stream.aread()).decode()
        ids = [line[3:].strip() for line in text.splitlines() if line.startswith("id:")]
    stream_name = ids[0].partition("-")[0]
    assert ids == [f"{stream_name}-{n}" for n in range(len(ids))], "numbered from the priming event on"
    assert text.startswith("id:") and "retry:" in text.partition("data: {")[0]


async def test_versions_before_the_priming_event_do_not_get_one() -> None:
    async with World().client() as http:
        session = await opened(http, "2025-06-18")
        body = request("tools/call", {"name": "t__talk", "_meta": {"progressToken": 5}})
        text = (await http.post("/mcp", json=body, headers=session)).text
    first = next(line for line in text.splitlines() if line.startswith("data:"))
    assert orjson.loads(first[5:])["method"] == "notifications/progress"


@pytest.mark.parametrize("event_id", ["", "x", "1-", "-1", "99-3", "s-x", "1-99999999999999999999", "../1-1"])
async def test_an_event_id_that_is_not_ours_opens_the_standing_stream(event_id: str) -> None:
    world = World()
    async with world.client() as http:
        session = await opened(http)
        await http.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=session)
        async with http.stream("GET", "/mcp", headers={**session, "Last-Event-ID": event_id}) as stream:
            lines = stream.aiter_lines()
            assert (await anext(lines)).startswith("id: s-")
            world.changes.lists_changed(["tools"])
            assert (await next_event(lines))["method"] == "notifications/tools/list_changed"


async def test_a_new_get_stream_takes_over_from_the_old_one() -> None:
    world = World()
    async with world.client() as http:
        session = await opened(http)
        await http.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=session)
        async with http.stream("GET", "/mcp", headers=session) as old:
            old_lines = old.aiter_lines()
            await anext(old_lines)
            async with http.stream("GET", "/mcp", headers=session) as new:
                new_lines = new.aiter_lines()
                await anext(new_lines)
                async with asyncio.timeout(30):
                    assert not [line async for line in old_lines if line.startswith("data: {")], "the old one ended"
                world.changes.lists_changed(["prompts"])
                assert (await next_event(new_lines))["method"] == "notifications/prompts/list_changed"


async def test_a_cancel_stops_the_call_and_ends_its_answer() -> None:
    world = World()
    async with world.client() as http:
        session = await opened(http)
        slow = asyncio.create_task(call(http, session, "slow", id=9))
        await asyncio.wait_for(world.started.wait(), 30)
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 9}}
        assert (await http.post("/mcp", json=note, headers=session)).status_code == 202
        assert "-32800" in (await slow).text
    assert world.cancelled == [world.calls[0].id]


async def test_one_session_cannot_cancel_the_call_of_another_with_the_same_id() -> None:
    world = World()
    async with world.client() as http:
        mine, other = await opened(http), await opened(http)
        slow = asyncio.create_task(call(http, mine, "slow", id=9))
        await asyncio.wait_for(world.started.wait(), 30)
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 9}}
        await http.post("/mcp", json=note, headers=other)
        world.release.set()
        assert "done" in (await slow).text
    assert world.cancelled == []


async def test_two_requests_under_way_with_one_id_are_told_apart_by_refusing_the_second() -> None:
    world = World()
    async with world.client() as http:
        session = await opened(http)
        slow = asyncio.create_task(call(http, session, "slow", id=9))
        await asyncio.wait_for(world.started.wait(), 30)
        second = await call(http, session, "echo", id=9)
        world.release.set()
        assert "done" in (await slow).text
    assert (second.status_code, second.json()["error"]["code"]) == (400, -32600)


async def test_deleting_a_session_cancels_its_calls() -> None:
    world = World()
    async with world.client() as http:
        session = await opened(http)
        slow = asyncio.create_task(call(http, session, "slow"))
        await asyncio.wait_for(world.started.wait(), 30)
        await http.delete("/mcp", headers=session)
        assert "-32800" in (await slow).text
    assert world.cancelled == [world.calls[0].id]


async def test_a_question_goes_over_the_answer_of_its_call_and_the_reply_comes_by_post() -> None:
    world = World()
    async with world.client() as http:
        session = await opened(http, elicitation={})
        body = request("tools/call", {"name": "t__ask"}, id="q")
        async with http.stream("POST", "/mcp", json=body, headers=session) as stream:
            lines = stream.aiter_lines()
            question = await next_event(lines)
            reply = {"jsonrpc": "2.0", "id": question["id"], "result": {"action": "decline"}}
            stranger = await opened(http)
            await http.post("/mcp", json={**reply, "result": {"action": "accept"}}, headers=stranger)
            assert (await http.post("/mcp", json=reply, headers=session)).status_code == 202
            answer = await next_event(lines)
    assert question["method"] == "elicitation/create"
    assert answer["result"]["structuredContent"] == {"value": {"action": "decline"}}, (
        "the stranger's answer went nowhere"
    )


async def test_batches_exist_in_one_version_only() -> None:
    batch = [request("tools/call", {"name": "t__echo", "arguments": {"n": n}}, id=n) for n in range(3)]
    world = World()
    async with world.client() as http:
        old = await opened(http, "2025-03-26")
        answer = await http.post("/mcp", json=[*batch, {"jsonrpc": "2.0", "method": "x"}, 5], headers=old)
        plain = await http.post("/mcp", json=batch, headers={**old, "Accept": "application/json"})
        silent = await http.post("/mcp", json=[{"jsonrpc": "2.0", "method": "x"}], headers=old)
        empty = await http.post("/mcp", json=[], headers=old)
        long = await http.post("/mcp", json=[{"jsonrpc": "2.0", "method": "x"}] * 101, headers=old)
        new = await opened(http)
        refused = await http.post("/mcp", json=batch, headers=new)
    found = [orjson.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert sorted(m["id"] for m in found if m["id"] is not None) == [0, 1, 2]
    assert [m["error"]["code"] for m in found if m["id"] is None] == [-32600]
    assert sorted(m["id"] for m in plain.json()) == [0, 1, 2]
    assert silent.status_code == 202
    assert [a.status_code for a in (empty, long, refused)] == [400, 400, 400]
    assert len({c.id for c in world.calls}) == 6, "each member is its own call"


async def test_a_result_of_this_era_has_nothing_of_the_other() -> None:
    async with World().direct() as http:
        session = await opened(http)
        for method, params in (
            ("tools/list", {}),
            ("resources/read", {"uri": "note://a"}),
            ("prompts/get", {"name": "p__greet"}),
        ):
            result = (await http.post("/mcp", json=request(method, params), headers=session)).json()["result"]
            assert not {"resultType", "ttlMs", "cacheScope", "_meta"} & set(result)


async def test_modern_methods_are_not_found_in_a_session() -> None:
    async with World().direct() as http:
        session = await opened(http)
        for method in ("server/discover", "subscriptions/listen", "tasks/list"):
            answer = await http.post("/mcp", json=request(method), headers=session)
            assert answer.json()["error"]["code"] == -32601


async def next_event(lines: Any) -> Any:
    async with asyncio.timeout(30):
        async for line in lines:
            if line.startswith("data:") and line[5:].strip():
                return orjson.loads(line[5:])
    raise AssertionError("the stream ended")
