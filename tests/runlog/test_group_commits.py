"""Events of many callers share commits, and no caller can hold up the events of others. Source: docs/run-log.md."""

from __future__ import annotations

import asyncio
import time

import pytest

from omni_mcp.contracts.errors import Conflict
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.json import canonical
from omni_mcp.engines.runlog.keys import find_keys
from omni_mcp.engines.runlog.ledger import Ledger
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.runlog.search_index import text_of
from omni_mcp.engines.runlog.store import SqliteRunLog
from omni_mcp.engines.runlog.verify import verify_database
from tests.runlog.conftest import Place, answered, asked, decided, failed, new_run, said

CALLERS, EACH = 16, 20


def _commits(ledger: Ledger) -> int:
    return ledger.commits


async def test_callers_that_append_again_at_once_share_commits(place: Place) -> None:
    async with place.open() as log:
        runs = [await new_run(log) for _ in range(CALLERS)]

        async def speak(run: str) -> list[int]:
            return [await log.append(run, said(f"number {number}")).durable() for number in range(EACH)]

        before = await log._writer.call(_commits)
        assert await asyncio.gather(*map(speak, runs)) == [list(range(2, EACH + 2))] * CALLERS
        assert EACH <= await log._writer.call(_commits) - before <= CALLERS * EACH / 4
    assert verify_database(place.file, find_keys(place.keys)).ok


async def test_a_lone_caller_gets_a_commit_for_each_event(log: SqliteRunLog) -> None:
    run = await new_run(log)
    before = await log._writer.call(_commits)
    for number in range(EACH):
        await log.append(run, said(f"number {number}")).durable()
    assert EACH <= await log._writer.call(_commits) - before < 1.5 * EACH


async def test_events_that_are_queued_without_a_wait_between_them_share_a_commit(log: SqliteRunLog) -> None:
    run = await new_run(log)
    before = await log._writer.call(_commits)
    for number in range(EACH):
        asking, _, answer = log.append(run, asked(f"c{number}")), log.append(run, decided(f"c{number}")), said("done")
        await asking.durable()
        await log.append(run, answer).durable()
    commits = await log._writer.call(_commits) - before
    assert commits < 2.5 * EACH  # the log may have had work of its own meanwhile; each by itself would be 3 * EACH


async def test_the_first_event_after_a_rest_reaches_the_disk_while_its_caller_blocks_the_loop(
    log: SqliteRunLog, place: Place
) -> None:
    """Whatever hangs the gateway, what it was asked is on record."""
    run = await new_run(log)
    await log.flush_index()  # nothing is left to do that would wake the writer by itself
    for _ in range(EACH):
        await log.last_gid()  # it has the time to go to sleep
    with LogReader(place.file) as reader:
        before, deadline = reader.last_gid(), time.monotonic() + 5
        log.append(run, asked("c"))
        while reader.last_gid() == before:  # on purpose without giving the loop a turn
            assert time.monotonic() < deadline


async def test_the_first_event_after_a_long_rest_reaches_the_disk_while_its_caller_blocks_the_loop(
    log: SqliteRunLog, place: Place
) -> None:
    run = await new_run(log)
    await log.flush_index()
    async with asyncio.timeout(30):
        while not log._writer._sleeps:  # until then it looks by itself now and then
            await log.last_gid()
    with LogReader(place.file) as reader:
        before, deadline = reader.last_gid(), time.monotonic() + 30
        log.append(run, asked("c"))
        while reader.last_gid() == before:  # on purpose without giving the loop a turn
            assert time.monotonic() < deadline


async def test_what_is_queued_reaches_the_disk_while_a_caller_blocks_the_loop(log: SqliteRunLog, place: Place) -> None:
    """The writer lets callers that were just told have their turn; one that does not give it back is not waited for."""
    run = await new_run(log)
    with LogReader(place.file) as reader:
        for number in range(10):
            await log.append(run, said("told")).durable()
            ticket = log.append(run, said("queued"))
            deadline = time.monotonic() + 5
            while reader.last_gid() < 2 * number + 3:  # on purpose without giving the loop a turn
                assert time.monotonic() < deadline
            assert await ticket.durable() == 2 * number + 3


async def test_calls_are_counted_and_have_one_outcome_whatever_groups_they_fell_into(place: Place) -> None:
    calls = [new_id() for _ in range(6)]
    async with place.open() as log:
        run = await new_run(log)
        alone, together, left = calls[:2], calls[2:4], calls[4:]
        for call in alone:
            await log.append(run, asked(call)).durable()
            await log.append_outcome(run, answered(call)).durable()
        tickets = [log.append(run, draft) for call in together for draft in (asked(call), failed(call))]
        tickets += [log.append(run, asked(call)) for call in left]
        await asyncio.gather(*(ticket.durable() for ticket in tickets))
        facts = await log.get_run(run)
        assert (facts["calls"], facts["open_calls"]) == (6, 2)
        await log.rebuild_projections()
        assert await log.get_run(run) == facts
    async with place.open() as log:
        for call in alone + together:
            with pytest.raises(Conflict):
                await log.append_outcome(run, answered(call)).durable()
        for call in left:
            await log.append_outcome(run, answered(call)).durable()
        facts = await log.get_run(run)
        assert (facts["calls"], facts["open_calls"]) == (6, 0)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"name": "a b", "inner": {"other": ["c", "d"]}}, ["a", "b", "c", "d"]),
        ({"n": [1, -2, 3.5, 1e30], "flags": [True, False, None]}, ["1", "-2", "3.5", "1e+30"]),
        ({"said": 'he: "so" \\ there', "end": "back\\"}, ["he:", '"so"', "\\", "there", "back\\"]),
        ({"colon": ":first", ":name": "x", "quote": '":'}, [":first", "x", '":']),
        ({"lines": "one\ntwo\tthree\u0000four\u0001five"}, ["one", "two", "three", "four", "five"]),
        ("only a text", ["only", "a", "text"]),
    ],
)
def test_the_words_of_a_payload_are_its_strings_and_numbers_without_their_names(
    value: object, words: list[str]
) -> None:
    assert sorted(text_of(canonical(value)).split()) == sorted(words)


@pytest.mark.parametrize("damaged", [b"", b"\\", b'"', b'{"a":"b', b'{"a":"b\\', b"\xff\xfe", b'"""":"'])
def test_a_payload_that_somebody_damaged_has_some_words_and_no_error(damaged: bytes) -> None:
    assert isinstance(text_of(damaged), str)
