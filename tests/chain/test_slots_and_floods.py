"""A call that waits for its slot runs only if it may run then; nobody's queue is in another's way, or in the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from omni_mcp.chain.slots import FairSlots
from omni_mcp.config import LimitSettings, Settings
from omni_mcp.contracts.call import Answer, Call, Result
from omni_mcp.contracts.errors import RateLimited
from omni_mcp.contracts.events import RunEvent
from omni_mcp.contracts.manifest import Limits
from omni_mcp.testing import ALLOW_ALL, ANN, Canary, LocalGateway, error_of, local_gateway

NOTHING = '@id("nothing") forbid (principal, action, resource in Omni::Server::"canary");'


class Gate:
    """A tool that says when it has begun and ends when it is let go."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()

    async def __call__(self, call: Call) -> Result:
        self.begun.set()
        await self.let_go.wait()
        return Answer(body={"content": [], "isError": False}, where="remote")


async def test_a_call_that_waits_for_a_slot_while_its_permission_goes_does_not_run(tmp_path: Path) -> None:
    gate, canary = Gate(), Canary(tmp_path / "touched")
    canary.tool("slow", gate, limits=Limits(concurrency=1))
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        first = asyncio.create_task(client.call("canary__slow"))
        await gate.begun.wait()
        second = asyncio.create_task(client.call("canary__slow"))
        await here.until("policy_decided", count=2)
        here.write_policy(NOTHING, "nothing.cedar")
        await here.gateway.reload()
        gate.let_go.set()

        assert not (await first).get("isError")
        assert error_of(await second)["code"] == "policy_denied"
    assert canary.touched == ["tool canary__slow"]


async def test_a_free_slot_goes_to_who_waits_in_turn_and_not_to_the_longest_queue() -> None:
    slots, order = FairSlots(1), list[str]()

    async def work(who: str) -> None:
        async with slots.taken(who):
            order.append(who)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for who in ("bob", "bob", "bob", "bob", "ann", "eve"):
            group.create_task(work(who))

    assert order == ["bob", "bob", "ann", "eve", "bob", "bob"]
    assert slots.idle


async def test_who_leaves_the_queue_takes_no_slot_along() -> None:
    slots = FairSlots(1, wait_s=0.01)
    async with slots.taken("ann"):
        with pytest.raises(RateLimited):
            async with slots.taken("bob"):
                raise AssertionError("there was no slot")
        leaving = asyncio.create_task(_hold(slots))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait({leaving})
    async with slots.taken("eve"):
        pass
    assert slots.idle


async def _hold(slots: FairSlots) -> None:
    async with slots.taken("x"):
        return


async def test_a_flood_of_refused_calls_is_counted_and_not_kept(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "touched")
    canary.tool("one")
    settings = Settings(limits=LimitSettings(calls_per_minute=5))
    async with local_gateway(ALLOW_ALL, settings=settings, canary=canary, cells=False) as here, here.client() as client:
        answers = [await client.call("canary__one", {"text": "x" * 1000}) for _ in range(60)]
        refused = [error_of(answer) for answer in answers[5:]]
        await here.until("request_rejected")  # nobody waits for it to be on disk
        events = [event async for event in _events(here)]

    assert {error["code"] for error in refused} == {"rate_limited"}
    kept = [event for event in events if event.kind == "tool_call"]
    assert len(kept) < 20, "what is refused for its number does not fill the log"
    assert any(event.code == "request_rejected" for event in events), "it is on record that there was a flood"


async def _events(here: LocalGateway) -> AsyncIterator[RunEvent]:
    for run in await here.gateway.log.runs(limit=100):
        async for event in here.gateway.log.read(run["id"]):
            yield event


async def test_what_is_read_of_the_log_is_not_kept_a_second_time(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "touched")
    canary.tool("one")
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client(principal=ANN) as client:
        await client.call("canary__one", {"text": "quince-4471"})
        [run] = [r["id"] for r in await here.gateway.log.runs(principal=ANN.key)]
        read = await client.call("runs__read", {"run": run})
        found = await client.call("runs__search", {"query": "quince-4471"})
        assert "quince-4471" in str(read)
        assert "quince-4471" in str(found)
        kept = [event async for event in _events(here) if event.run != run]
    assert all("quince-4471" not in str(event.payload) for event in kept)


async def test_a_search_does_not_tell_what_the_caller_may_not_see(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "touched")
    canary.tool("secretly")
    rules = '@id("runs") permit (principal, action, resource in Omni::Server::"runs");'
    async with local_gateway(rules, canary=canary, cells=False) as here, here.client(principal=ANN) as client:
        await client.call("canary__secretly")
        await client.call("canary__missing")
        for words in ("no accepted definition", "no rule matched", "mcp_remote", "entities"):
            found = await client.call("runs__search", {"query": words})
            assert found["structuredContent"]["events"] == [], words


async def test_where_a_principal_has_no_room_left_its_large_answer_is_given_and_the_record_holds_its_digest(
    tmp_path: Path,
) -> None:
    async def large(call: Call) -> Result:
        return Answer(
            body={"content": [{"type": "text", "text": call.id + "x" * 700_000}], "isError": False}, where="remote"
        )

    canary = Canary(tmp_path / "touched")
    canary.tool("large", large)
    canary.tool("larger", large, limits=Limits(output_limit_bytes=1024))
    settings = Settings(limits=LimitSettings(artifact_bytes_per_principal=1 << 20))
    async with local_gateway(ALLOW_ALL, settings=settings, canary=canary, cells=False) as here, here.client() as client:
        answers = [await client.call("canary__large", {"n": n}) for n in range(3)]
        refused = await client.call("canary__larger")
        outcomes = [event async for event in _events(here) if event.kind == "tool_result"]

    assert all(len(answer["content"][0]["text"]) > 700_000 for answer in answers)
    assert error_of(refused)["code"] == "invalid_result"
    payloads = [event.payload or {} for event in outcomes]
    assert [bool(payload["artifact"]) for payload in payloads] == [True, False, False]
    assert all(payload["result"]["digest"].startswith("sha256:") for payload in payloads[1:])


async def test_a_slot_is_taken_at_once_only_where_one_is_free_for_that_principal() -> None:
    slots = FairSlots(2, share=1)
    assert slots.take_now("ann")
    assert not slots.take_now("ann"), "her share is one"
    assert slots.take_now("bob")
    assert not slots.take_now("cid"), "none is left"
    waiting = asyncio.create_task(slots.take("cid"))
    await asyncio.sleep(0)
    slots.give_back("bob")
    await waiting
    for who in ("ann", "cid"):
        slots.give_back(who)
    assert slots.idle
