"""Threads group runs: each lists its own and no other, in order, whichever way its runs came about."""

from __future__ import annotations

from pathlib import Path

import pytest

from omni_mcp.engines.state.database import open_state
from omni_mcp.engines.state.threads import StoredThreads
from omni_mcp.testing import BOB, MemoryClient, error_of
from tests.api.world import Api, api_world

META = "io.omni-mcp/thread"


async def made(world: Api, title: str = "t") -> str:
    return str((await world.ann.post("/api/threads", json={"title": title})).json()["id"])


async def runs_of(world: Api, thread: str, **params: str) -> list[str]:
    answer = await world.ann.get(f"/api/threads/{thread}/runs", params=params)
    return [run["id"] for run in answer.json()["items"]]


async def test_two_threads_list_their_own_runs_only_in_order(world: Api) -> None:
    one, two = await made(world, "one"), await made(world, "two")
    begun: dict[str, list[str]] = {one: [], two: []}
    for thread in (one, two, one, one, two):
        run = (await world.ann.post("/api/runs", json={"thread": thread})).json()
        assert run["thread"] == thread
        begun[thread].append(run["id"])
    await world.ann.post("/api/runs", json={})
    assert await runs_of(world, one) == begun[one]
    assert await runs_of(world, two) == begun[two]


async def test_the_runs_of_a_thread_come_in_pages(world: Api) -> None:
    thread, begun, got, cursor = await made(world), [], [], None
    for _ in range(5):
        begun.append((await world.ann.post("/api/runs", json={"thread": thread})).json()["id"])
    while True:
        params = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = (await world.ann.get(f"/api/threads/{thread}/runs", params=params)).json()
        got += [run["id"] for run in page["items"]]
        if (cursor := page["next"]) is None:
            break
    assert got == begun


async def test_modern_requests_join_a_thread_by_their_meta(world: Api) -> None:
    thread = await made(world)
    async with world.here.client(version="2026-07-28") as client:
        await client.call("canary__echo")
        for _ in range(2):
            await client.call("canary__echo", _meta={META: thread})
    (run,) = await runs_of(world, thread)
    calls = [event for event in await world.here.events() if event.run == run and event.kind == "tool_call"]
    assert len(calls) == 2, "the same thread goes on in the same run, and the call without one is in another"


async def test_a_session_joins_a_thread_by_the_meta_of_its_handshake(world: Api) -> None:
    thread = await made(world)
    client = MemoryClient(world.here.gateway, version="2025-11-25")
    asked = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    assert "result" in await client.request("initialize", {**asked, "_meta": {META: thread}})
    assert await runs_of(world, thread) == [client.run]
    await client.leave()


async def test_a_thread_that_is_not_ones_own_is_not_joined(world: Api) -> None:
    thread = await made(world)
    before = await runs_of(world, thread)
    async with world.here.client(principal=BOB) as bob:
        answers = [
            await bob.request("tools/call", {"name": "canary__echo", "arguments": {}, "_meta": {META: name}})
            for name in (thread, "01a1fef5-34cf-71a7-bc4f-d6125575a242", 7)
        ]
    assert [error_of(answer).get("code") for answer in answers] == ["not_found", "not_found", "invalid_request"]
    assert answers[0]["error"]["message"] == answers[1]["error"]["message"]
    assert await runs_of(world, thread) == before


async def test_a_call_by_the_api_joins_a_thread(world: Api) -> None:
    thread = await made(world)
    sent = {"name": "canary__echo", "thread": thread}
    first = (await world.ann.post("/api/calls", json=sent)).json()["run"]
    assert (await world.ann.post("/api/calls", json=sent)).json()["run"] == first
    assert await runs_of(world, thread) == [first]
    assert (await world.ann.post("/api/calls", json={**sent, "run": first})).status_code == 400


async def test_a_thread_that_is_forgotten_is_gone_and_its_runs_are_not(world: Api) -> None:
    thread = await made(world, "a private name")
    run = (await world.ann.post("/api/runs", json={"thread": thread})).json()["id"]
    assert (await world.ann.delete(f"/api/threads/{thread}")).status_code == 204
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/runs")):
        assert (await world.ann.request(method, f"/api/threads/{thread}{path}")).status_code == 404
    assert (await world.ann.get(f"/api/runs/{run}")).json()["thread"] == thread


async def test_threads_are_bounded_for_each_principal(tmp_path: Path) -> None:
    async with api_world(tmp_path) as world:
        here = world.here
        threads = StoredThreads(open_state(here.home.state_file), here.gateway._engines.masker, limit=2)
        try:
            for owner in ("ann", "ann", "bob"):
                await threads.create(owner, "default", "t")
            with pytest.raises(Exception, match="you have 2 threads"):
                await threads.create("ann", "default", "one too many")
            assert len(await threads.list(principal="ann", limit=10)) == 2
        finally:
            await threads.close()


@pytest.mark.parametrize("title", ["", "x" * 201, 1, None, ["x"]])
async def test_a_title_that_is_none_is_refused(title: object, world: Api) -> None:
    assert (await world.ann.post("/api/threads", json={"title": title})).status_code == 400
