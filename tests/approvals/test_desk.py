"""The desk: how long a caller is kept, what wakes it, and what stands on record afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.call import Call, Question, Round
from omni_mcp.contracts.errors import (
    ApprovalDenied,
    ApprovalExpired,
    ApprovalPending,
    Conflict,
    LogUnavailable,
    NotAllowed,
    RateLimited,
)
from omni_mcp.contracts.events import RunEvent
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.approvals.desk import ApprovalDesk
from omni_mcp.engines.approvals.store import ApprovalStore
from omni_mcp.engines.runlog.store import SqliteRunLog

CallOf = Callable[..., Call]
OpenDesk = Callable[..., Any]
OpenStore = Callable[..., ApprovalStore]
RULES, VERSION = ("ask",), "sha256:policy"


def ask(desk: ApprovalDesk, call: Call, version: str = VERSION) -> asyncio.Task[Any]:
    return asyncio.create_task(desk.ask(call, RULES, version))


async def waiting(desk: ApprovalDesk, count: int = 1) -> list[Approval]:
    """Wait until *count* calls wait, and return the open questions."""
    while desk.pending < count:
        await desk.open_questions()
    return await desk.open_questions()


async def story(log: SqliteRunLog, run: str) -> list[tuple[str | None, str, Any]]:
    """Return (code, actor, decision) of the run's approval events."""
    events: list[RunEvent] = [event async for event in log.read(run)]
    found = [event for event in events if (event.code or "").startswith("approval_")]
    return [(event.code, event.actor, (event.payload or {}).get("decision")) for event in found]


async def test_a_yes_from_another_process_lets_the_call_through_once_and_is_on_record(
    open_desk: OpenDesk, open_store: OpenStore, call_of: CallOf, log: SqliteRunLog, run: str
) -> None:
    call = call_of()
    async with open_desk() as desk:
        task = ask(desk, call)
        asked = (await waiting(desk))[0]
        open_store().decide(asked.id, by="2000", approve=True, note="go on")

        facts = await task

    assert (facts.id, facts.by, facts.arguments_digest) == (asked.id, "2000", log.arguments_hmac(call.arguments))
    assert await story(log, run) == [
        ("approval_requested", "gateway", None),
        ("approval_decided", 'User::"2000"', "approved"),
        ("approval_used", "gateway", None),
    ]
    assert {event.call async for event in log.read(run, after=1)} == {call.id}


async def test_the_question_shows_masked_arguments_and_the_labels(open_desk: OpenDesk, call_of: CallOf) -> None:
    async with open_desk() as desk:
        task = ask(desk, call_of({"path": "x", "password": "abc", "text": "it is hunter2hunter2"}))
        asked = (await waiting(desk))[0]
        await desk.decide(asked.id, by="1000", approve=False, channel="console")
        with pytest.raises(ApprovalDenied):
            await task

    assert asked.arguments["path"] == "x"
    assert "hunter2hunter2" not in str(asked.arguments) and "abc" not in str(asked.arguments)
    assert asked.labels["destructive"] is True and asked.labels["side_effects"] == "non_idempotent"


async def test_a_no_refuses_the_call_and_the_same_call_is_asked_anew(
    open_desk: OpenDesk, call_of: CallOf, log: SqliteRunLog, run: str
) -> None:
    async with open_desk() as desk:
        first = ask(desk, call_of())
        asked = (await waiting(desk))[0]
        await desk.decide(asked.id, by="1000", approve=False, channel="command_line", note="not today")
        with pytest.raises(ApprovalDenied) as denied:
            await first
        with pytest.raises(Conflict):
            await desk.decide(asked.id, by="1000", approve=True, channel="command_line")

        second = ask(desk, call_of())
        again = (await waiting(desk))[0]
        second.cancel()

    assert denied.value.data == {"approval": asked.id}
    assert again.id != asked.id
    assert [code for code, _, _ in await story(log, run)] == [
        "approval_requested", "approval_decided", "approval_requested",
    ]  # fmt: skip


async def test_the_question_of_a_cancelled_call_is_withdrawn_unless_another_call_waits_for_it(
    open_desk: OpenDesk, open_store: OpenStore, call_of: CallOf, log: SqliteRunLog, run: str
) -> None:
    async with open_desk() as desk:
        first, second = ask(desk, call_of()), ask(desk, call_of())
        asked = (await waiting(desk, 2))[0]
        first.cancel()
        await ended(first)
        still = [one.id for one in await desk.open_questions()]
        second.cancel()
        await ended(second)
        while await desk.open_questions():
            await asyncio.sleep(0)
        with pytest.raises(Conflict):
            open_store().decide(asked.id, by="2000", approve=True)
        third = ask(desk, call_of())
        again = (await waiting(desk))[0]
        await desk.decide(again.id, by="2000", approve=True, channel="console")
        facts = await third

    assert still == [asked.id] and again.id != asked.id == open_store().get(asked.id).id
    assert facts.id == again.id
    assert [decision for _, _, decision in await story(log, run) if decision] == ["withdrawn", "approved"]


async def test_what_a_gateway_cancels_when_it_stops_stays_open_for_the_next_one(
    open_desk: OpenDesk, open_store: OpenStore, call_of: CallOf
) -> None:
    async with open_desk() as desk:
        task = ask(desk, call_of())
        asked = (await waiting(desk))[0]
        desk.leave_open()
        task.cancel()
        await ended(task)

    assert [one.id for one in open_store().open_questions()] == [asked.id]


async def ended(task: asyncio.Task[Any]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_when_the_wait_is_over_the_question_stays_open_and_a_later_yes_is_taken_without_waiting(
    open_desk: OpenDesk, open_store: OpenStore, call_of: CallOf
) -> None:
    async with open_desk(wait_s=0.05) as desk:
        with pytest.raises(ApprovalPending) as pending:
            await desk.ask(call_of(), RULES, VERSION)
        asked = (await desk.open_questions())[0]
        open_store().decide(asked.id, by="2000", approve=True)

        facts = await desk.ask(call_of(), RULES, VERSION)

        assert facts.id == asked.id
        with pytest.raises(ApprovalPending):  # used: the next one is another question
            await desk.ask(call_of(), RULES, VERSION)
    assert pending.value.data["approval"] == asked.id
    assert str(pending.value.data["expires_at"]).startswith("2026-09-21T")


async def test_the_rule_can_say_how_long_the_caller_is_kept(open_desk: OpenDesk, call_of: CallOf) -> None:
    async with open_desk(wait_s=1000) as desk:
        with pytest.raises(ApprovalPending):
            await desk.ask(call_of(question=Question(rules=RULES, wait_s=0.01)), RULES, VERSION)


async def test_one_changed_byte_of_the_arguments_is_another_question(
    open_desk: OpenDesk, open_store: OpenStore, call_of: CallOf
) -> None:
    async with open_desk(wait_s=0.05) as desk:
        with pytest.raises(ApprovalPending):
            await desk.ask(call_of({"text": "hello"}), RULES, VERSION)
        asked = (await desk.open_questions())[0]
        open_store().decide(asked.id, by="2000", approve=True)

        with pytest.raises(ApprovalPending) as pending:
            await desk.ask(call_of({"text": "hellp"}), RULES, VERSION)

    assert pending.value.data["approval"] != asked.id


async def test_a_changed_definition_is_another_question(
    open_desk: OpenDesk, open_store: OpenStore, call_of: CallOf
) -> None:
    changed = Entry(kind="tool", server="tools", name="write", definition={"description": "other"})
    async with open_desk(wait_s=0.05) as desk:
        with pytest.raises(ApprovalPending):
            await desk.ask(call_of(), RULES, VERSION)
        open_store().decide((await desk.open_questions())[0].id, by="2000", approve=True)

        with pytest.raises(ApprovalPending):
            await desk.ask(call_of(tool=changed), RULES, VERSION)


async def test_nobody_answers_in_time(
    open_desk: OpenDesk, call_of: CallOf, clock: Any, log: SqliteRunLog, run: str
) -> None:
    async with open_desk() as desk:
        task = ask(desk, call_of())
        await waiting(desk)
        clock.pass_s(899)
        assert len(await desk.open_questions()) == 1
        clock.pass_s(1)

        with pytest.raises(ApprovalExpired):
            await task

    assert await story(log, run) == [
        ("approval_requested", "gateway", None), ("approval_decided", "gateway", "expired"),
    ]  # fmt: skip


async def test_the_same_call_sent_twice_is_one_question_and_one_yes_runs_one_of_them(
    open_desk: OpenDesk, call_of: CallOf
) -> None:
    async with open_desk() as desk:
        tasks = [ask(desk, call_of()) for _ in range(2)]
        open_ones = await waiting(desk, 2)
        assert len(open_ones) == 1
        await desk.decide(open_ones[0].id, by="2000", approve=True, channel="command_line")

        done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)

        assert len(done) == 1
        assert done.pop().result().id == open_ones[0].id
        second = (await waiting(desk))[0]
        assert second.id != open_ones[0].id
        await desk.decide(second.id, by="2000", approve=True, channel="command_line")
        assert (await rest.pop()).id == second.id


async def test_fifty_calls_and_three_yeses_run_three_of_them(open_desk: OpenDesk, call_of: CallOf) -> None:
    ran: list[str] = []
    async with open_desk(wait_s=60) as desk:
        tasks = [ask(desk, call_of()) for _ in range(50)]
        await waiting(desk, 50)
        for _ in range(3):
            while not (open_ones := await desk.open_questions()):
                continue
            await desk.decide(open_ones[0].id, by="2000", approve=True, channel="command_line")
            while len([task for task in tasks if task.done()]) <= len(ran):
                await asyncio.wait([task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED)
            ran = [task.result().id for task in tasks if task.done()]
        await waiting(desk, 47)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    assert len(ran) == len(set(ran)) == 3


async def test_a_caller_that_leaves_leaves_its_question_open(open_desk: OpenDesk, call_of: CallOf) -> None:
    async with open_desk() as desk:
        task = ask(desk, call_of())
        asked = (await waiting(desk))[0]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        assert desk.pending == 0
        await desk.decide(asked.id, by="2000", approve=True, channel="command_line")
        assert (await desk.ask(call_of(), RULES, VERSION)).id == asked.id


async def test_open_questions_are_capped(open_desk: OpenDesk, call_of: CallOf) -> None:
    async with open_desk(wait_s=0.01, max_open_per_principal=2) as desk:
        for text in ("a", "b"):
            with pytest.raises(ApprovalPending):
                await desk.ask(call_of({"text": text}), RULES, VERSION)

        with pytest.raises(RateLimited) as limited:
            await desk.ask(call_of({"text": "c"}), RULES, VERSION)

    assert limited.value.data == {"retry_after_s": 60}


async def test_what_the_catalog_does_not_hold_is_asked_of_nobody(open_desk: OpenDesk, call_of: CallOf) -> None:
    async with open_desk() as desk:
        with pytest.raises(NotAllowed):
            await desk.ask(call_of(tool=None), RULES, VERSION)
        assert await desk.open_questions() == []


async def test_a_later_round_of_the_same_call_is_not_asked_again(open_desk: OpenDesk, call_of: CallOf) -> None:
    call = call_of()
    async with open_desk(wait_s=5) as desk:
        task = ask(desk, call)
        asked = (await waiting(desk))[0]
        await desk.decide(asked.id, by="2000", approve=True, channel="command_line")
        await task

        later = await desk.ask(replace(call, round=Round(number=2, intent_seq=3)), RULES, VERSION)

        assert later.id == asked.id


async def test_a_stopping_gateway_ends_the_waits_and_a_new_one_goes_on(
    open_desk: OpenDesk, open_store: OpenStore, call_of: CallOf, log: SqliteRunLog, run: str
) -> None:
    async with open_desk() as desk:
        task = ask(desk, call_of())
        asked = (await waiting(desk))[0]
    with pytest.raises(ApprovalPending):
        await task
    open_store().decide(asked.id, by="2000", approve=True)  # while nothing runs

    async with open_desk() as desk:
        assert (await desk.ask(call_of(), RULES, VERSION)).id == asked.id

    assert [code for code, _, _ in await story(log, run)] == [
        "approval_requested", "approval_decided", "approval_used",
    ]  # fmt: skip


async def test_a_crash_between_the_record_and_its_mark_records_no_decision_twice(
    open_desk: OpenDesk, open_store: OpenStore, call_of: CallOf, log: SqliteRunLog, run: str
) -> None:
    async with open_desk(wait_s=0.01) as desk:
        with pytest.raises(ApprovalPending):
            await desk.ask(call_of(), RULES, VERSION)
        asked = (await desk.open_questions())[0]
    store = open_store()
    store.decide(asked.id, by="2000", approve=False)
    async with open_desk():
        pass
    store._connection.execute("UPDATE approvals SET recorded = 0")  # as if the mark had been lost

    async with open_desk():
        pass

    assert [decision for _, _, decision in await story(log, run)] == [None, "denied"]
    assert store.unrecorded() == []


async def test_a_decision_of_a_run_that_is_gone_holds_up_no_other(
    open_desk: OpenDesk, open_store: OpenStore, call_of: CallOf, question: Any
) -> None:
    store = open_store()
    lost = store.claim(question(run="0199aaaa-0000-7000-8000-000000000000", arguments_digest="x")).approval
    store.decide(lost.id, by="2000", approve=True)

    async with open_desk() as desk:
        task = ask(desk, call_of())
        asked = (await waiting(desk))[0]
        store.decide(asked.id, by="2000", approve=True)
        assert (await task).id == asked.id


async def test_a_question_that_is_still_asked_goes_on_under_the_new_version(
    open_desk: OpenDesk, call_of: CallOf
) -> None:
    async with open_desk() as desk:
        task = ask(desk, call_of())
        asked = (await waiting(desk))[0]

        assert await desk.recheck("sha256:newer", lambda call: True, lambda asked: False) == ()

        kept = (await desk.open_questions())[0]
        assert (kept.id, kept.policy_version) == (asked.id, "sha256:newer")
        await desk.decide(asked.id, by="2000", approve=True, channel="command_line")
        assert (await task).id == asked.id


@pytest.mark.parametrize("now", [True, False])
async def test_a_question_that_is_asked_no_more_is_withdrawn_and_the_caller_told_to_send_it_again(
    open_desk: OpenDesk, call_of: CallOf, log: SqliteRunLog, run: str, now: bool
) -> None:
    async with open_desk() as desk:
        task = ask(desk, call_of())
        asked = (await waiting(desk))[0]

        if now:
            assert await desk.recheck("sha256:newer", lambda call: False, lambda asked: True) == (asked.id,)
        else:
            desk.recheck_soon("sha256:newer", lambda call: False, lambda asked: True)

        with pytest.raises(ApprovalExpired) as withdrawn:
            await task
        assert "changed" in withdrawn.value.detail
    assert "send it again" in withdrawn.value.message and withdrawn.value.data == {"approval": asked.id}
    assert (await story(log, run))[-1] == ("approval_decided", "gateway", "withdrawn")


async def test_a_question_nobody_waits_for_is_withdrawn_with_its_version(open_desk: OpenDesk, call_of: CallOf) -> None:
    async with open_desk(wait_s=0.01) as desk:
        for text, version in (("a", VERSION), ("b", "sha256:newer")):
            with pytest.raises(ApprovalPending):
                await desk.ask(call_of({"text": text}), RULES, version)
        old, new = await desk.open_questions()

        assert await desk.recheck("sha256:newer", lambda call: True, lambda asked: True) == (old.id,)
        assert [one.id for one in await desk.open_questions()] == [new.id]


async def test_a_question_nobody_waits_for_is_withdrawn_when_the_definition_it_is_about_is_gone(
    open_desk: OpenDesk, call_of: CallOf
) -> None:
    async with open_desk(wait_s=0.01) as desk:
        with pytest.raises(ApprovalPending):
            await desk.ask(call_of(), RULES, VERSION)
        (asked,) = await desk.open_questions()

        assert await desk.recheck(VERSION, lambda call: True, lambda one: one.id != asked.id) == (asked.id,)


class FullLog:
    """The run log on a disk that can be full."""

    def __init__(self, log: SqliteRunLog) -> None:
        self._log = log
        self.full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def append(self, run: str, draft: Any, **rest: Any) -> Any:
        return self if self.full else self._log.append(run, draft, **rest)

    async def durable(self) -> int:
        raise LogUnavailable("the disk is full")


async def test_a_question_that_cannot_be_recorded_is_not_asked(
    open_desk: OpenDesk, call_of: CallOf, log: SqliteRunLog
) -> None:
    full = FullLog(log)
    full.full = True
    async with open_desk(log=full) as desk:
        with pytest.raises(LogUnavailable):
            await desk.ask(call_of(), RULES, VERSION)

        assert await desk.open_questions() == []
        full.full = False


async def test_a_yes_that_cannot_be_recorded_lets_nothing_through_and_is_found_when_it_can(
    open_desk: OpenDesk, open_store: OpenStore, call_of: CallOf, log: SqliteRunLog, run: str
) -> None:
    full = FullLog(log)
    async with open_desk(log=full, wait_s=1) as desk:
        task = ask(desk, call_of())
        asked = (await waiting(desk))[0]
        full.full = True
        open_store().decide(asked.id, by="2000", approve=True)
        with pytest.raises((ApprovalPending, LogUnavailable)):
            await task
        full.full = False

        granted = None
        async with asyncio.timeout(30):
            while granted is None:
                with contextlib.suppress(ApprovalPending):
                    granted = await desk.ask(call_of(), RULES, VERSION)
        assert granted.id == asked.id

    assert [code for code, _, _ in await story(log, run)] == [
        "approval_requested", "approval_decided", "approval_used",
    ]  # fmt: skip


async def test_while_the_database_of_questions_is_locked_calls_are_refused_as_unavailable(
    open_desk: OpenDesk, call_of: CallOf, state_file: Path
) -> None:
    async with open_desk() as desk:
        other = sqlite3.connect(state_file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(LogUnavailable):
                await desk.ask(call_of(), ("ask",), "p1")
        finally:
            other.execute("ROLLBACK")
            other.close()
