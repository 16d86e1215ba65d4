"""Threads group runs: each lists its own and no other, in order, whichever way its runs came about."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import pytest

from omni_mcp.contracts.ports import Masker
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


class Plain:
    """No secret is registered."""

    def mask_text(self, text: str) -> str:
        return text

    def mask_bytes(self, data: bytes) -> bytes:
        return data

    def mask_json(self, value: Any) -> Any:
        return value


def bytes_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


async def test_no_title_that_was_forgotten_stays_where_rows_moved_from(tmp_path: Path) -> None:
    """Titles of all lengths, of three principals, forgotten in any order."""
    tmp_path.chmod(0o700)
    dice = random.Random(10)
    store = StoredThreads(open_state(tmp_path / "state.db"), cast(Masker, Plain()))
    made: dict[int, tuple[str, str]] = {}
    for number in range(150):
        who, title = f"User::{dice.randrange(3)}", f"diagnosis-{number}-" + "x" * dice.randrange(180)
        made[number] = (await store.create(who, "p", title)).id, who
    order = list(made)
    dice.shuffle(order)
    for number in order[:75]:
        await store.forget(made[number][0], principal=made[number][1])
    everything = bytes_in(tmp_path)
    left = [number for number in range(150) if b"diagnosis-%d-" % number in everything]
    assert left == sorted(order[75:])
    for number in order[75:]:
        thread, who = made[number]
        assert (await store.get(thread, principal=who)).title.startswith(f"diagnosis-{number}-")
    await store.close()


async def test_threads_of_an_earlier_version_are_brought_over_without_what_was_forgotten(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    old = open_state(tmp_path / "state.db")
    old.execute(
        "CREATE TABLE threads (id TEXT PRIMARY KEY, principal TEXT NOT NULL, project TEXT NOT NULL, "
        "title TEXT NOT NULL, created_at_ns INTEGER NOT NULL) WITHOUT ROWID"
    )
    old.execute("CREATE INDEX threads_by_principal ON threads (principal, id)")
    for number in range(60):
        name = f"{'gone' if number % 2 else 'stays'}-{number}-" + "y" * (number * 37 % 200)
        old.execute("INSERT INTO threads VALUES (?, 'User::1', 'p', ?, ?)", (f"id{number:03}", name, number))
    old.execute("DELETE FROM threads WHERE created_at_ns % 2")
    old.close()
    for _ in range(2):
        store = StoredThreads(open_state(tmp_path / "state.db"), cast(Masker, Plain()))
        found = await store.list(principal="User::1", limit=100)
        assert [(one.id, one.title.split("-")[:2], one.created_at_ns) for one in reversed(found)] == [
            (f"id{number:03}", ["stays", str(number)], number) for number in range(0, 60, 2)
        ]
        await store.close()
    assert b"gone-" not in bytes_in(tmp_path)
