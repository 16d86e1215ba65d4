"""What every implementation of the port `RunLog` promises. `open_log` is all that this file knows of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import Conflict, NotFound, OmniError, QuotaExceeded
from omni_mcp.contracts.events import Message, RunClosed, draft
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.ports import RunLog
from tests.runlog.conftest import ANNA, SECRET, Place, answered, asked, decided, failed, said

Opened = AbstractAsyncContextManager[RunLog]


@pytest.fixture
def open_log(place: Place) -> Callable[..., Opened]:
    """A factory of opened logs; opening again gives the same record."""
    return place.open


async def _run(log: RunLog) -> str:
    return await log.create_run(kind="session", principal=ANNA, actor=ANNA.key, client={"name": "test"})


async def test_positions_grow_by_one_and_reading_resumes_after_any_of_them(open_log: Callable[..., Opened]) -> None:
    async with open_log() as log:
        run = await _run(log)
        tickets = [log.append(run, said(f"message {n}")) for n in range(5)]
        assert [await ticket.durable() for ticket in tickets] == [2, 3, 4, 5, 6]
        events = [event async for event in log.read(run, after=3)]
        assert [(event.seq, event.payload) for event in events] == [
            (seq, {"text": f"message {seq - 2}", "author": None, "model": None}) for seq in (4, 5, 6)
        ]
        assert [event.seq async for event in log.read(run, after=1, limit=2)] == [2, 3]


async def test_what_was_acknowledged_is_there_after_reopening(open_log: Callable[..., Opened]) -> None:
    async with open_log() as log:
        run = await _run(log)
        await log.append(run, said("kept")).durable()
    async with open_log() as log:
        assert [event.kind async for event in log.read(run)] == ["run_created", "user_message"]
        assert await log.append(run, said("next")).durable() == 3


async def test_many_writers_get_positions_without_gaps_and_events_keep_the_order_of_each(
    open_log: Callable[..., Opened],
) -> None:
    async with open_log() as log:
        run = await _run(log)

        async def write(writer: int) -> None:
            for number in range(20):
                await log.append(run, said(f"{writer} {number}")).durable()

        await asyncio.gather(*(write(writer) for writer in range(10)))
        events = [event async for event in log.read(run, after=1)]
        assert [event.seq for event in events] == list(range(2, 202))
        assert len({event.gid for event in events}) == 200
        for writer in range(10):
            mine = [
                event.payload["text"]
                for event in events
                if event.payload and event.payload["text"].startswith(f"{writer} ")
            ]
            assert mine == [f"{writer} {number}" for number in range(20)]


async def test_a_child_names_the_position_of_its_parent_though_both_were_appended_at_once(
    open_log: Callable[..., Opened],
) -> None:
    async with open_log() as log:
        run = await _run(log)
        parent = log.append(run, said("first"))
        child = log.append(run, said("second"), parent=parent)
        assert await child.durable() == 3
        assert [event.parent async for event in log.read(run)] == [None, None, 2]


async def test_an_unknown_run_refuses_the_event_and_everything_that_follows_from_it(
    open_log: Callable[..., Opened],
) -> None:
    async with open_log() as log:
        run = await _run(log)
        parent = log.append(new_id(), said("nowhere"))
        child = log.append(run, said("orphan"), parent=parent)
        for ticket in (parent, child):
            with pytest.raises(NotFound):
                await ticket.durable()
        assert [event.seq async for event in log.read(run)] == [1]


async def test_a_call_has_exactly_one_outcome(open_log: Callable[..., Opened]) -> None:
    async with open_log() as log:
        run, call = await _run(log), new_id()
        log.append(run, asked(call))
        assert await log.append_outcome(run, answered(call)).durable() == 3
        for second in (answered(call), failed(call)):
            with pytest.raises(Conflict):
                await log.append_outcome(run, second).durable()
        with pytest.raises(Conflict):
            await log.append_outcome(run, answered(new_id())).durable()
        assert [event.kind for event in await log.find_call(call)] == ["tool_call", "tool_result"]


async def test_two_outcomes_in_one_group_leave_one(open_log: Callable[..., Opened]) -> None:
    async with open_log() as log:
        run, call = await _run(log), new_id()
        tickets = [log.append(run, asked(call)), *(log.append_outcome(run, answered(call)) for _ in range(3))]
        results = await asyncio.gather(*(ticket.durable() for ticket in tickets), return_exceptions=True)
        assert results[:2] == [2, 3]
        assert [type(result) for result in results[2:]] == [Conflict, Conflict]


async def test_the_quota_refuses_events_once_it_is_reached_but_never_outcomes(open_log: Callable[..., Opened]) -> None:
    async with open_log(events_per_run=3) as log:
        run, call = await _run(log), new_id()
        log.append(run, asked(call))
        await log.append(run, decided(call)).durable()
        for _ in range(3):
            with pytest.raises(QuotaExceeded):
                await log.append(run, said("too much")).durable()
        await log.append_outcome(run, answered(call)).durable()
        await log.append(run, draft(RunClosed(reason="client_left"), actor="gateway")).durable()
    async with open_log(events_per_run=3) as log:
        with pytest.raises(QuotaExceeded):
            await log.append(run, said("still too much")).durable()
        found = [event.code or event.kind async for event in log.read(run)]
    assert found == ["run_created", "tool_call", "policy_decided", "quota_exceeded", "tool_result", "run_closed"]


async def test_secrets_are_masked_before_they_are_recorded_and_the_places_are_named(
    open_log: Callable[..., Opened],
) -> None:
    async with open_log() as log:
        run, call = await _run(log), new_id()
        await log.append(run, asked(call, note=f"use {SECRET} now", password="hunter2")).durable()
        event = (await log.find_call(call))[0]
    assert event.payload is not None
    assert event.payload["arguments"] == {"note": "use [masked:staple] now", "password": "[masked]"}
    assert event.privacy == ("$.arguments.note", "$.arguments.password")


async def test_what_is_changed_after_the_append_does_not_change_the_record(open_log: Callable[..., Opened]) -> None:
    async with open_log() as log:
        run, call, arguments = await _run(log), new_id(), {"list": [1]}
        ticket = log.append(run, asked(call, **arguments))
        arguments["list"].append(2)
        await ticket.durable()
        assert (await log.find_call(call))[0].payload["arguments"] == {"list": [1]}  # type: ignore[index]


async def test_values_that_canonical_json_cannot_hold_are_recorded_as_text(open_log: Callable[..., Opened]) -> None:
    async with open_log() as log:
        run, call = await _run(log), new_id()
        await log.append(run, asked(call, big=2**70, half="\ud800")).durable()
        event = (await log.find_call(call))[0]
    assert event.payload is not None
    assert event.payload["arguments"] == {"big": str(2**70), "half": "\\ud800"}


async def test_runs_are_listed_newest_first_and_only_those_of_the_asker(open_log: Callable[..., Opened]) -> None:
    async with open_log() as log:
        first, second = await _run(log), await _run(log)
        bert = Principal(kind="User", id="bert")
        other = await log.create_run(kind="goal", principal=bert, actor=bert.key, client={}, title="elsewhere")
        call = new_id()
        await log.append(second, asked(call)).durable()
        assert [run["id"] for run in await log.runs()] == [other, second, first]
        assert [run["id"] for run in await log.runs(principal=ANNA.key)] == [second, first]
        assert [run["id"] for run in await log.runs(limit=1, before=second)] == [first]
        facts = await log.get_run(second)
        assert (facts["kind"], facts["last_seq"], facts["open"], facts["calls"]) == ("session", 2, True, 1)
        await log.append(second, draft(RunClosed(reason="client_left"), actor="gateway")).durable()
        assert (await log.get_run(second))["open"] is False
        with pytest.raises(NotFound):
            await log.get_run("none")


async def test_a_subscriber_that_wants_some_runs_only_hears_of_no_other(open_log: Callable[..., Opened]) -> None:
    async with open_log() as log:
        wanted, other = await _run(log), await _run(log)
        heard = log.subscribe(lambda run, quiet: run == wanted and not quiet)
        await log.append(other, said("loud")).durable()
        await log.append(wanted, said("hush"), quiet=True).durable()
        await log.append(wanted, said("loud")).durable()
        assert await anext(heard) == (wanted, 3, False)
    with pytest.raises(StopAsyncIteration):
        await anext(heard)


async def test_subscribers_hear_of_each_commit_and_can_tell_quiet_ones(open_log: Callable[..., Opened]) -> None:
    async with open_log() as log:
        run = await _run(log)
        heard = log.subscribe()
        await log.append(run, said("loud")).durable()
        assert await anext(heard) == (run, 2, False)
        await log.append(run, said("hush"), quiet=True).durable()
        assert await anext(heard) == (run, 3, True)
        await log.append(run, said("hush"), quiet=True).durable()
        await log.append(run, said("loud")).durable()
        assert await anext(heard) == (run, 5, False)
    with pytest.raises(StopAsyncIteration):
        await anext(heard)


async def test_the_hash_of_arguments_depends_on_a_key_that_stays(open_log: Callable[..., Opened]) -> None:
    async with open_log() as log:
        first = log.arguments_hmac({"b": 1, "a": 2})
        assert first == log.arguments_hmac({"a": 2, "b": 1}) != log.arguments_hmac({"a": 2})
    async with open_log() as log:
        assert log.arguments_hmac({"a": 2, "b": 1}) == first


async def _found(log: RunLog, query: str, run: str | None = None, principal: str | None = None) -> list[int]:
    return [event.seq for event in await log.search(query, run=run, principal=principal, limit=50)]


async def test_search_finds_every_word_newest_first_whether_indexed_yet_or_not(open_log: Callable[..., Opened]) -> None:
    async with open_log() as log:
        run = await _run(log)
        for text in ("the red fox", "a red hen", "the RED fox again"):
            await log.append(run, said(text)).durable()
        assert await _found(log, "red fox") == [4, 2]
    async with open_log() as log:
        await log.append(run, said("one more red fox")).durable()
        assert await _found(log, "fox red") == [5, 4, 2]
        assert await _found(log, "red wolf") == []
        assert await _found(log, "text") == []  # names of fields are no words of the text
        other = await _run(log)
        await log.append(other, said("fox")).durable()
        assert await _found(log, "fox", run=other) == [2]
        assert await _found(log, "fox", principal="nobody") == []


@pytest.mark.parametrize(
    "query",
    [
        '"',
        "c++",
        "a AND",
        "NEAR(",
        "-",
        "*",
        "it's",
        "x:y",
        "(",
        "emoji 🦊",
        "🦊",
        "\0",
        "\ud800",
        "^a",
        "{a b}",
        "",
        "x" * 10_000,
    ],
)
async def test_any_text_is_a_query(open_log: Callable[..., Opened], query: str) -> None:
    async with open_log() as log:
        run = await _run(log)
        await log.append(run, said("nothing of it")).durable()
        assert 2 not in await _found(log, query)


async def test_ten_thousand_characters_of_words_must_all_match(open_log: Callable[..., Opened]) -> None:
    words = [f"w{number}" for number in range(2000)]
    async with open_log() as log:
        run = await _run(log)
        await log.append(run, said(" ".join(words))).durable()
        assert await _found(log, " ".join(words)) == [2]
        assert await _found(log, " ".join([*words, "missing"])) == []


async def test_words_without_letters_are_found_in_the_text_itself(open_log: Callable[..., Opened]) -> None:
    async with open_log() as log:
        run = await _run(log)
        for text in ("written in c++ today", "written in c today", "fox 🦊 seen", 'he said "so"\nand left'):
            await log.append(run, said(text)).durable()
        assert await _found(log, "🦊") == [4]
        assert await _found(log, "🦊 fox") == [4]
        assert await _found(log, "so and") == [5]
        assert set(await _found(log, "c++ written")) >= {2}


async def test_a_payload_that_is_no_payload_fails_its_own_ticket_only(open_log: Callable[..., Opened]) -> None:
    async with open_log() as log:
        run = await _run(log)
        broken = draft(Message.model_construct(text=object()), actor="x", kind="user_message")  # type: ignore[arg-type]
        bad, good = log.append(run, broken), log.append(run, said("fine"))
        with pytest.raises(OmniError):
            await bad.durable()
        assert await good.durable() == 2
