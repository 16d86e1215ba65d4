"""However a call ends, its record has one beginning, one end, and between them what docs/call-chain.md says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from omni_mcp.config import ApprovalSettings, LimitSettings, Settings
from omni_mcp.contracts.call import Answer, Call, InputRequired, Principal, Result
from omni_mcp.contracts.errors import SandboxUnavailable, UpstreamUnavailable
from omni_mcp.contracts.manifest import Labels, Limits
from omni_mcp.testing import ALLOW_ALL, Canary, LocalGateway, MemoryClient, error_of, local_gateway
from tests.databases import locked

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALLOWED = ["tool_call", "policy_decided:allow"]
ASKED = ["tool_call", "policy_decided:ask", "approval_requested"]
DANGEROUS = Labels(destructive=True, egress=False)
QUESTION = {"method": "elicitation/create", "params": {
    "mode": "form", "message": "Sure?", "requestedSchema": {"type": "object", "properties": {}}}}  # fmt: skip
BOB_AT_WORK = Principal(kind="User", id="bob", project="work")
CAPABLE: dict[str, Any] = {"elicitation": {}}
RULES = ALLOW_ALL + '@id("no") forbid (principal, action, resource == Omni::Tool::"canary__forbidden");'


def text(value: str, **more: Any) -> Answer:
    return Answer(body={"content": [{"type": "text", "text": value}], **more}, where="remote")


STARTED = asyncio.Event()


async def forever(call: Call) -> Result:
    if call.name == "canary__forever":
        STARTED.set()
    await asyncio.Event().wait()
    raise AssertionError("nothing sets it")


async def breaks(call: Call) -> Result:
    raise RuntimeError("a fault of the engine")


async def unavailable(call: Call) -> Result:
    raise SandboxUnavailable("not here")


async def gone(call: Call) -> Result:
    raise UpstreamUnavailable("the server is gone")


async def fails(call: Call) -> Result:
    return text("it did not work", isError=True)


async def promises_more(call: Call) -> Result:
    return text("x", structuredContent={"n": "no number"})


async def says_what_json_cannot(call: Call) -> Result:
    return text("x", structuredContent={"n": object()})


async def names_an_artifact_that_is_none(call: Call) -> Result:
    return Answer(body={"content": []}, artifacts=({"sha256": "short"},), where="remote")


async def asks(call: Call) -> Result:
    if call.round is None:
        return InputRequired(requests={"sure": QUESTION}, state={"step": 1})
    return text("thank you")


def a_canary(file: Path) -> Canary:
    """A server whose tools end in every way there is."""
    canary = Canary(file)
    canary.tool("answers", schema={"type": "object", "properties": {"n": {"type": "integer"}}})
    canary.tool("forbidden")
    canary.tool("fails", fails)
    canary.tool("forever", forever)
    canary.tool("late", forever, limits=Limits(timeout_s=0.05))
    canary.tool("breaks", breaks)
    canary.tool("unavailable", unavailable)
    canary.tool("gone", gone)
    canary.tool("unfit", promises_more, definition={"outputSchema": {
        "type": "object", "properties": {"n": {"type": "integer"}}}})  # fmt: skip
    canary.tool("unsayable", says_what_json_cannot)
    canary.tool("misnamed", names_an_artifact_that_is_none)
    canary.tool("asks", asks)
    canary.tool("dangerous", labels=DANGEROUS, schema={"type": "object", "properties": {"n": {"type": "integer"}}})
    canary.tool("homeless", binding="openapi_proxy")
    return canary


def quick(**limits: Any) -> Settings:
    """Nobody is kept waiting for a person."""
    return Settings(approvals=ApprovalSettings(wait_s=0), limits=LimitSettings(**limits))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalGateway]:
    canary = a_canary(tmp_path_factory.mktemp("world") / "touched")
    async with local_gateway(RULES, canary=canary, settings=quick(), cells=False) as here:
        yield here
        assert await here.outcomes()
        for call in await here.outcomes():
            await here.end_of(call)
        assert {call: ends for call, ends in (await here.outcomes()).items() if len(ends) != 1} == {}


async def last_call(here: LocalGateway) -> str:
    """Return the id of the newest call."""
    return [event.call or "" for event in await here.events() if event.kind == "tool_call"][-1]


ENDS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("answers", {}, [*ALLOWED, "tool_result"]),
    ("fails", {}, [*ALLOWED, "tool_result"]),
    ("forbidden", {}, ["tool_call", "policy_decided:deny", "tool_error:policy_denied"]),
    ("missing", {}, ["tool_call", "policy_decided:deny", "tool_error:policy_denied"]),
    ("answers", {"n": "one"}, [*ALLOWED, "tool_error:invalid_arguments"]),
    ("late", {}, [*ALLOWED, "tool_error:timeout"]),
    ("breaks", {}, [*ALLOWED, "tool_error:internal"]),
    ("unavailable", {}, [*ALLOWED, "tool_error:sandbox_unavailable"]),
    ("gone", {}, [*ALLOWED, *["attempt_failed"] * 2, "tool_error:upstream_unavailable"]),
    ("unfit", {}, [*ALLOWED, "tool_error:invalid_result"]),
    ("unsayable", {}, [*ALLOWED, "tool_error:internal"]),
    ("misnamed", {}, [*ALLOWED, "tool_error:internal"]),
    ("homeless", {}, [*ALLOWED, "tool_error:sandbox_unavailable"]),
    ("dangerous", {"n": "one"}, ["tool_call", "policy_decided:ask", "tool_error:invalid_arguments"]),
    ("dangerous", {"n": 1}, [*ASKED, "tool_error:approval_pending"]),
]


@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
@pytest.mark.parametrize(("tool", "arguments", "words"), ENDS, ids=lambda value: str(value)[:40])
async def test_a_call_leaves_these_events_in_this_order(
    tool: str, arguments: dict[str, Any], words: list[str], version: str, here: LocalGateway
) -> None:
    if tool == "dangerous" and version == "2026-07-28":
        arguments = {**arguments, "era": version}  # a question of its own
    async with here.client(version=version) as client:
        reply = await client.request("tools/call", {"name": f"canary__{tool}", "arguments": arguments})
    call = await last_call(here)
    assert await here.words(call) == words
    told = error_of(reply).get("code", "tool_result")
    assert words[-1].endswith(told), "the client hears what is on record"
    payload = (await here.events(call=call))[-1].payload or {}
    if words[-1] == "tool_result":
        assert payload["is_error"] is (tool == "fails") is reply["result"]["isError"]
    else:
        assert payload["dispatched"] is (tool in ("late", "breaks", "gone", "unfit", "unsayable", "misnamed"))


async def test_an_approved_call_runs_once_and_its_record_tells_who_let_it(here: LocalGateway) -> None:
    async with here.client() as client:
        asked = await client.call("canary__dangerous", {"n": 10})
        assert error_of(asked)["code"] == "approval_pending"
        here.answer(True)
        assert not (await client.call("canary__dangerous", {"n": 10}))["isError"]
        approved = await last_call(here)
        again = await client.call("canary__dangerous", {"n": 10})
    assert await here.words(approved) == [
        "tool_call", "policy_decided:ask", "approval_used", "policy_decided:allow", "tool_result"
    ]  # fmt: skip
    assert error_of(again)["code"] == "approval_pending", "one approval, one call"
    here.answer(False)


async def test_a_yes_to_some_arguments_is_no_yes_to_others_or_to_another_principal(here: LocalGateway) -> None:
    async with here.client() as client:
        await client.call("canary__dangerous", {"n": 20})
        here.answer(True)
        other = await client.call("canary__dangerous", {"n": 21})
        assert error_of(other)["code"] == "approval_pending"
        here.answer(False)
        assert not (await client.call("canary__dangerous", {"n": 20}))["isError"]


async def test_a_denied_call_is_over_and_the_next_one_is_asked_about_anew(tmp_path: Path) -> None:
    canary = a_canary(tmp_path / "touched")
    async with local_gateway(RULES, canary=canary, cells=False) as here, here.client() as client:
        _, reply = await client.start("tools/call", {"name": "canary__dangerous", "arguments": {}})
        await here.until("approval_requested")
        here.answer(False)
        assert error_of(await asyncio.wait_for(reply, 30))["code"] == "approval_denied"
        _, reply = await client.start("tools/call", {"name": "canary__dangerous", "arguments": {}})
        await here.until("approval_requested", count=2)
        assert canary.touched == []
        here.answer(True)
        assert not (await asyncio.wait_for(reply, 30))["result"]["isError"]
        assert canary.touched == ["tool canary__dangerous"]
        calls = list(await here.outcomes())
        assert await here.words(calls[0]) == [*ASKED, "approval_decided:denied", "tool_error:approval_denied"]
        assert await here.words(calls[1]) == [
            *ASKED, "approval_decided:approved", "approval_used", "policy_decided:allow", "tool_result"
        ]  # fmt: skip


async def test_a_question_that_nobody_answers_in_time_expires(tmp_path: Path) -> None:
    rules = ALLOW_ALL + (
        '@id("soon") @approval("required") @ttl("1s") forbid (principal, action, resource == '
        'Omni::Tool::"canary__asks") unless { context has approval };'
    )
    canary = a_canary(tmp_path / "touched")
    async with local_gateway(rules, canary=canary, cells=False) as here, here.client() as client:
        result = await client.call("canary__asks")
        assert error_of(result)["code"] == "approval_expired"
        assert (await here.words(error_of(result)["call"]))[-2:] == [
            "approval_decided:expired", "tool_error:approval_expired"
        ]  # fmt: skip
        assert canary.touched == []


async def test_a_call_that_is_cancelled_after_dispatch_says_so(here: LocalGateway) -> None:
    async with here.client() as client:
        number, _ = await client.start("tools/call", {"name": "canary__forever", "arguments": {}})
        await asyncio.wait_for(STARTED.wait(), 30)
        await client.notify("notifications/cancelled", {"requestId": number})
    call = await last_call(here)
    end = await here.end_of(call)
    assert await here.words(call) == [*ALLOWED, "tool_error:cancelled"]
    assert (end.payload or {})["dispatched"] is True


async def test_a_call_that_is_cancelled_while_a_person_is_asked_never_ran(tmp_path: Path) -> None:
    canary = a_canary(tmp_path / "touched")
    async with local_gateway(RULES, canary=canary, cells=False) as here:
        async with here.client(version="2025-11-25") as client:
            await client.start("tools/call", {"name": "canary__dangerous", "arguments": {}})
            await here.until("approval_requested")
        call = await last_call(here)
        event = await here.until("tool_error")
        assert (event.call, (event.payload or {})["code"], (event.payload or {})["dispatched"]) == (
            call, "cancelled", False
        )  # fmt: skip
        assert canary.touched == []


async def test_a_call_of_two_rounds_has_two_intents_and_one_outcome(here: LocalGateway) -> None:
    async with here.client(capabilities=CAPABLE) as client:
        asked = await client.call("canary__asks")
        given = {"sure": {"action": "accept", "content": {}}}
        done = await client.call("canary__asks", requestState=asked["requestState"], inputResponses=given)
    assert done["content"][0]["text"] == "thank you"
    assert await here.words(await last_call(here)) == [
        *ALLOWED, "round_asked", "round_answered", "policy_decided:allow", "tool_result"
    ]  # fmt: skip


async def test_an_older_client_is_asked_directly_and_leaves_the_same_record(here: LocalGateway) -> None:
    said: list[str] = []

    def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
        said.append(params["message"])
        return {"action": "accept", "content": {}}

    async with here.client(version="2025-11-25", capabilities=CAPABLE, answer=answer) as client:
        assert (await client.call("canary__asks"))["content"][0]["text"] == "thank you"
    assert said == ["Sure?"]
    assert await here.words(await last_call(here)) == [
        *ALLOWED, "round_asked", "round_answered", "policy_decided:allow", "tool_result"
    ]  # fmt: skip


@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
async def test_a_client_that_cannot_be_asked_ends_the_call(version: str, here: LocalGateway) -> None:
    async with here.client(version=version) as client:
        reply = await client.request("tools/call", {"name": "canary__asks", "arguments": {}})
    assert "error" in reply or error_of(reply)["code"] == "outcome_unknown"
    await here.end_of(await last_call(here))
    assert await here.words(await last_call(here)) == [*ALLOWED, "round_asked", "tool_error:outcome_unknown"]


async def test_a_caller_who_does_not_come_back_leaves_an_unknown_outcome(tmp_path: Path) -> None:
    canary = a_canary(tmp_path / "touched")
    async with local_gateway(RULES, canary=canary, settings=quick(round_ttl_s=0.05), cells=False) as here:
        async with here.client(capabilities=CAPABLE) as client:
            asked = await client.call("canary__asks")
            await here.until("tool_error")
            late = await client.request(
                "tools/call", {"name": "canary__asks", "arguments": {}, "requestState": asked["requestState"]}
            )
        assert "error" in late
        assert len(canary.touched) == 1
        assert list((await here.outcomes()).values()) == [["tool_error:outcome_unknown"]]


async def test_after_a_restart_an_open_round_is_over_and_its_state_good_for_nothing(tmp_path: Path) -> None:
    canary = a_canary(tmp_path / "touched")
    async with (
        local_gateway(RULES, canary=canary, directory=tmp_path, cells=False) as here,
        here.client(capabilities=CAPABLE) as client,
    ):
        asked = await client.call("canary__asks")
    async with local_gateway(RULES, canary=canary, directory=tmp_path, cells=False) as here:
        async with here.client(capabilities=CAPABLE) as client:
            late = await client.request(
                "tools/call", {"name": "canary__asks", "arguments": {}, "requestState": asked["requestState"]}
            )
        assert "error" in late
        assert len(canary.touched) == 1
        assert list((await here.outcomes()).values()) == [["tool_error:outcome_unknown"]]


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["answering", "asking"])
async def test_if_the_log_locks_up_around_a_call_it_does_not_run_or_its_outcome_is_unknown_for_now(
    tool: str, tmp_path: Path
) -> None:
    canary = Canary(tmp_path / "touched")
    locks: list[Any] = []

    async def lock_then_end(call: Call) -> Result:
        locks.append(lock := locked(log_file))
        await asyncio.to_thread(lock.__enter__)
        return text("done") if tool == "answering" else InputRequired(requests={"sure": QUESTION})

    canary.tool("locks", lock_then_end)
    canary.tool("answers")
    async with local_gateway(RULES, canary=canary, cells=False) as here, here.client(capabilities=CAPABLE) as client:
        log_file = here.home.log_file
        during = await client.call("canary__locks")
        refused = await client.call("canary__answers") if tool == "answering" else None
        locks[0].__exit__(None, None, None)
        assert error_of(during)["code"] == "outcome_unknown"
        assert refused is None or error_of(refused)["code"] == "log_unavailable"
        assert canary.touched == ["tool canary__locks"]
        assert not (await client.call("canary__answers"))["isError"], "it serves again without a restart"
        await here.until("tool_result", count=2 if tool == "answering" else 1)
        ends = [ends for call, ends in (await here.outcomes()).items() if call == error_of(during)["call"]]
        assert ends == [["tool_result" if tool == "answering" else "tool_error:outcome_unknown"]]


async def test_a_principal_over_its_rate_is_refused_on_record_and_others_are_not(tmp_path: Path) -> None:
    canary = a_canary(tmp_path / "touched")
    async with local_gateway(RULES, canary=canary, settings=quick(calls_per_minute=2), cells=False) as here:
        async with here.client() as client:
            codes = [error_of(await client.call("canary__answers")).get("code") for _ in range(3)]
        assert codes == [None, None, "rate_limited"]
        async with here.client(principal=BOB_AT_WORK) as other:
            assert not (await other.call("canary__answers"))["isError"]
        assert sorted(ends[0] for ends in (await here.outcomes()).values()) == [
            "tool_error:rate_limited", "tool_result", "tool_result", "tool_result"
        ]  # fmt: skip
        assert len(canary.touched) == 3


@pytest.mark.parametrize(
    ("limits", "other_is_served"), [({"pending_per_principal": 1}, True), ({"pending_in_all": 1}, False)]
)
async def test_calls_beyond_the_cap_on_pending_ones_are_refused(
    limits: dict[str, int], other_is_served: bool, tmp_path: Path
) -> None:
    canary = a_canary(tmp_path / "touched")
    settings = Settings(limits=LimitSettings(**limits))
    async with (
        local_gateway(RULES, canary=canary, settings=settings, cells=False) as here,
        here.client() as client,
        here.client(principal=BOB_AT_WORK) as other,
    ):
        await waiting_for_a_person(here, client)
        assert error_of(await client.call("canary__answers"))["code"] == "rate_limited"
        assert (error_of(await other.call("canary__answers")) == {}) is other_is_served
        here.answer(False)
        await here.until("tool_error", count=2 if other_is_served else 3)
        assert error_of(await client.call("canary__answers")) == {}


async def waiting_for_a_person(here: LocalGateway, client: MemoryClient) -> asyncio.Future[dict[str, Any]]:
    """Start a call that waits at the desk."""
    _, reply = await client.start("tools/call", {"name": "canary__dangerous", "arguments": {}})
    await here.until("approval_requested")
    return reply


async def test_a_freeze_stops_a_call_that_was_approved_and_spares_other_projects(tmp_path: Path) -> None:
    canary = a_canary(tmp_path / "touched")
    async with (
        local_gateway(RULES, canary=canary, cells=False) as here,
        here.client() as client,
        here.client(principal=BOB_AT_WORK) as other,
    ):
        reply = await waiting_for_a_person(here, client)
        here.gateway.freeze.set(frozenset({"default"}))
        here.answer(True)
        assert error_of(await asyncio.wait_for(reply, 30))["code"] == "frozen"
        assert canary.touched == []
        assert not (await other.call("canary__answers"))["isError"]
        here.gateway.freeze.set(frozenset())
        assert not (await client.call("canary__answers"))["isError"]
