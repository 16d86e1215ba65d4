"""What was allowed when a call came must still be allowed when it runs, and what ran is never said not to have run."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from omni_mcp.chain.slots import FairSlots
from omni_mcp.cli.root import cli
from omni_mcp.config import ApprovalSettings, LimitSettings, Settings
from omni_mcp.contracts.call import Answer, Call, InputRequired, Principal, Result
from omni_mcp.contracts.manifest import Labels, Limits
from omni_mcp.serving.states import SHARE_BYTES, STATE_LIMIT_BYTES
from omni_mcp.testing import ALLOW_ALL, Canary, LocalGateway, error_of, local_gateway
from tests.waiting import until

QUESTION = {
    "method": "elicitation/create",
    "params": {"mode": "form", "message": "Sure?", "requestedSchema": {"type": "object", "properties": {}}},
}
YES = {"sure": {"action": "accept", "content": {}}}
CAN_ELICIT: dict[str, Any] = {"elicitation": {}}


class Tool:
    """Asks in its first round, and can be made to hold its slot."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()

    async def __call__(self, call: Call) -> Result:
        if call.arguments.get("hold"):
            self.begun.set()
            await self.let_go.wait()
        elif call.round is None and call.arguments.get("ask"):
            return InputRequired(requests={"sure": QUESTION}, state={"step": 1})
        return Answer(body={"content": [], "isError": False}, where="remote")


async def person(here: LocalGateway, *words: str) -> Any:
    environment = {"OMNI_HOME": str(here.home.config)}
    result = await asyncio.to_thread(CliRunner().invoke, cli, ["approvals", *words, "--json"], env=environment)
    assert result.exit_code == 0, result.output
    return orjson.loads(result.stdout)


@pytest.mark.parametrize("how", ["cancels", "leaves"])
async def test_nobody_is_asked_any_more_about_a_call_whose_client_cancels_it_or_leaves(
    how: str, tmp_path: Path
) -> None:
    tool, canary = Tool(), Canary(tmp_path / "touched")
    canary.tool("wipe", tool, labels=Labels(read_only=False, destructive=True), schema={"type": "object"})
    async with local_gateway(ALLOW_ALL, canary=canary, directory=tmp_path, cells=False) as here:
        async with here.client(version="2025-11-25") as client:
            request, _ = await client.start("tools/call", {"name": "canary__wipe", "arguments": {}})
            await here.until("approval_requested")
            [asked] = await person(here, "list")
            if how == "cancels":
                await client.notify("notifications/cancelled", {"requestId": request})
                await here.until("approval_decided")
        decided = await here.until("approval_decided")
        left = await person(here, "list")

    assert decided.payload is not None and decided.payload["approval"] == asked["id"]
    assert (decided.payload["decision"], left) == ("withdrawn", [])
    assert canary.touched == []


async def test_a_standing_grant_revoked_while_a_call_waits_for_its_slot_lets_nothing_run(
    tmp_path: Path,
) -> None:
    tool, canary = Tool(), Canary(tmp_path / "touched")
    labels = Labels(read_only=False, destructive=True)
    canary.tool("wipe", tool, labels=labels, limits=Limits(concurrency=1), schema={"type": "object"})
    settings = Settings(approvals=ApprovalSettings(wait_s=0))
    async with local_gateway(ALLOW_ALL, settings=settings, canary=canary, directory=tmp_path, cells=False) as here:
        async with here.client() as client:
            assert error_of(await client.call("canary__wipe"))["code"] == "approval_pending"
            given = await person(here, "grant", "canary__wipe", "--user", "ann", "--expires", "7d", "--yes")
            await until(lambda: here.gateway.status()["standing_grants"] == 1)
            first = asyncio.create_task(client.call("canary__wipe", {"hold": True}))
            await tool.begun.wait()
            second = asyncio.create_task(client.call("canary__wipe"))
            await here.until("policy_decided", count=3)
            await person(here, "revoke", str(given["id"]))
            await until(lambda: here.gateway.status()["standing_grants"] == 0)
            tool.let_go.set()
            await first
            assert error_of(await second)["code"] == "policy_denied"
    assert canary.touched == ["tool canary__wipe"]


async def test_a_later_round_is_not_counted_against_the_rate_of_calls(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "touched")
    canary.tool("asks", Tool(), schema={"type": "object"})
    settings = Settings(limits=LimitSettings(calls_per_minute=1))
    async with local_gateway(ALLOW_ALL, settings=settings, canary=canary, cells=False) as here:
        async with here.client(capabilities=CAN_ELICIT) as client:
            asked = await client.call("canary__asks", {"ask": True})
            answer = await client.request("tools/call", again(asked))
            assert not answer["result"].get("isError")


def again(asked: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": "canary__asks", "arguments": {"ask": True}, "requestState": asked["requestState"],
        "inputResponses": YES, **changes,
    }  # fmt: skip


async def test_a_later_round_that_is_cancelled_before_its_slot_is_recorded_as_dispatched(tmp_path: Path) -> None:
    tool, canary = Tool(), Canary(tmp_path / "touched")
    canary.tool("asks", tool, limits=Limits(concurrency=1), schema={"type": "object"})
    async with (
        local_gateway(ALLOW_ALL, canary=canary, cells=False) as here,
        here.client(capabilities=CAN_ELICIT) as client,
    ):
        asked = await client.call("canary__asks", {"ask": True})
        await client.start("tools/call", {"name": "canary__asks", "arguments": {"hold": True}})
        await tool.begun.wait()
        number, _ = await client.start("tools/call", again(asked))
        await here.until("policy_decided", count=3)
        await client.notify("notifications/cancelled", {"requestId": number})
        ended = await here.end_of(next(iter(await here.outcomes())))
        tool.let_go.set()
    assert (ended.payload or {})["code"] == "cancelled"
    assert (ended.payload or {})["dispatched"], "its first round ran"


@pytest.mark.parametrize("response", ["yes", None, [1], 5])
async def test_a_response_that_is_no_object_is_refused_and_can_be_mended(tmp_path: Path, response: object) -> None:
    canary = Canary(tmp_path / "touched")
    canary.tool("asks", Tool(), schema={"type": "object"})
    async with (
        local_gateway(ALLOW_ALL, canary=canary, cells=False) as here,
        here.client(capabilities=CAN_ELICIT) as client,
    ):
        asked = await client.call("canary__asks", {"ask": True})
        refused = await client.request("tools/call", again(asked, inputResponses={"sure": response}))
        assert refused["error"]["code"] == -32602
        assert "result" in await client.request("tools/call", again(asked))


@pytest.mark.parametrize("state", [{"n": 2**70}, "\ud800", b"bytes", {1: 2}, orjson.loads("[" * 300 + "]" * 300)])
async def test_a_call_whose_state_cannot_be_kept_is_over_and_says_whose_fault_it_is(
    tmp_path: Path, state: object
) -> None:
    async def asks(call: Call) -> Result:
        return InputRequired(requests={"sure": QUESTION}, state=state)

    canary = Canary(tmp_path / "touched")
    canary.tool("asks", asks)
    async with (
        local_gateway(ALLOW_ALL, canary=canary, cells=False) as here,
        here.client(capabilities=CAN_ELICIT) as client,
    ):
        error = error_of(await client.call("canary__asks"))
        assert error["code"] == "invalid_result"
        await here.end_of(error["call"])
        assert await here.outcomes() == {error["call"]: ["tool_error:invalid_result"]}


async def test_who_lets_many_calls_wait_is_told_to_answer_some_and_others_are_not_held_up(tmp_path: Path) -> None:
    async def asks(call: Call) -> Result:
        if call.round is not None:
            return Answer(body={"content": [], "isError": False}, where="remote")
        return InputRequired(requests={"sure": QUESTION}, state="x" * (STATE_LIMIT_BYTES - 4096))

    canary = Canary(tmp_path / "touched")
    canary.tool("asks", asks, schema={"type": "object"})
    fitting = SHARE_BYTES // STATE_LIMIT_BYTES
    async with (
        local_gateway(ALLOW_ALL, canary=canary, cells=False) as here,
        here.client(capabilities=CAN_ELICIT) as client,
    ):
        asked = [await client.call("canary__asks", {"ask": True}) for _ in range(fitting)]
        refused = error_of(await client.call("canary__asks"))
        async with here.client(capabilities=CAN_ELICIT, principal=Principal(kind="User", id="bob")) as other:
            assert "requestState" in await other.call("canary__asks")
        assert "result" in await client.request("tools/call", again(asked[0]))
        assert "requestState" in await client.call("canary__asks")
        ended = await here.end_of(refused["call"])
    assert refused["code"] == (ended.payload or {})["code"] == "outcome_unknown"


async def test_cancelling_one_request_does_not_lose_the_answer_of_another_that_waits_for_the_same_run(
    tmp_path: Path,
) -> None:
    canary = Canary(tmp_path / "touched")
    canary.tool("one")
    async with local_gateway(ALLOW_ALL, canary=canary, directory=tmp_path, cells=False) as here:
        async with here.client() as client, here.client() as other:
            lock = sqlite3.connect(here.home.log_file, isolation_level=None, timeout=5)
            lock.execute("BEGIN IMMEDIATE")
            number, _ = await client.start("tools/call", {"name": "canary__one", "arguments": {}})
            _, answer = await other.start("tools/call", {"name": "canary__one", "arguments": {}})
            await asyncio.sleep(0.1)
            await client.notify("notifications/cancelled", {"requestId": number})
            await asyncio.sleep(0.05)
            lock.execute("ROLLBACK")
            lock.close()
            assert "result" in await asyncio.wait_for(answer, 30)


async def test_one_principal_never_holds_every_place() -> None:
    places = FairSlots(3, share=2)
    let_go = asyncio.Event()
    holding: list[str] = []

    async def hold(who: str) -> None:
        async with places.taken(who):
            holding.append(who)
            await let_go.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(hold("bob"))
        group.create_task(hold("ann"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sorted(holding) == ["ann", "bob", "bob"]
        let_go.set()
    assert len(holding) == 6
    assert places.idle
