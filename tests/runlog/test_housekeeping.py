"""What a busy log leaves behind is cleared up beside it, in small pieces, and a search finds what it found before.

Source: docs/run-log.md, "How an event gets there".
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing

import pytest

from omni_mcp.contracts.events import PolicyDecided, told_by
from omni_mcp.contracts.json import canonical
from omni_mcp.engines.runlog.compare import projection_faults
from omni_mcp.engines.runlog.keys import find_keys
from omni_mcp.engines.runlog.search_index import text_of
from omni_mcp.engines.runlog.signal import Signal
from omni_mcp.engines.runlog.store import open_ledger
from omni_mcp.engines.runlog.verify import verify_database
from tests.runlog.conftest import Place, new_run, said

LIMIT_S = 30.0
PIECES = 40


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not true():
            await asyncio.sleep(0.01)


async def test_what_a_busy_log_writes_moves_into_its_file_before_a_commit_has_to_do_it(place: Place) -> None:
    """SQLite by itself would wait until its write-ahead log holds the 4,096 pages that the gateway allows it."""
    async with place.open() as log:
        run = await new_run(log)
        before = place.file.stat().st_size
        for number in range(150):
            await log.append(run, said(f"number {number} " + "x" * 3000)).durable()
        await _until(lambda: place.file.stat().st_size > before + 150 * 3000 / 2)
        assert place.file.with_name("runlog.db-wal").stat().st_size < 4096 * 4096
    assert verify_database(place.file, find_keys(place.keys)).ok


async def test_a_log_that_cannot_be_moved_meanwhile_is_written_nevertheless(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log)
        with closing(sqlite3.connect(place.file, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM events").fetchone()  # holds what it sees, so nothing behind it moves
            for number in range(150):
                assert await log.append(run, said(f"number {number}")).durable() == number + 2
            reader.execute("ROLLBACK")
        assert log.healthy and not log.problems
    assert verify_database(place.file, find_keys(place.keys)).ok


async def test_a_search_table_that_fills_commit_by_commit_lies_in_few_pieces(place: Place) -> None:
    """A word is looked up in each of them. Nobody merges on the way but who writes, and it a little at a time."""
    async with place.open() as log:
        run = await new_run(log)
        for at in range(0, 8000, 100):
            tickets = [log.append(run, said(f"word{number} and word{number % 700}")) for number in range(at, at + 100)]
            await tickets[-1].durable()
        await log.flush_index()
        with closing(sqlite3.connect(place.file)) as connection:
            pieces = connection.execute("SELECT count(DISTINCT segid) FROM search_0_idx").fetchone()[0]
        assert 1 <= pieces <= PIECES
        assert [event.payload["text"] for event in await log.search("word7999")] == ["word7999 and word299"]  # type: ignore[index]
        assert len(await log.search("word699", limit=50)) == 11
    assert projection_faults(place.file) == []


async def test_a_log_of_an_earlier_program_whose_tables_merge_by_themselves_goes_on(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log)
        await log.append(run, said("persimmon")).durable()
        await log.flush_index()
    ledger = open_ledger(place.file, place.keys, events_per_run=100_000).ledger
    for name, value in (("automerge", 4), ("crisismerge", 16), ("usermerge", 4)):  # what SQLite begins with
        ledger.connection.execute("INSERT INTO search_0 (search_0, rank) VALUES (?, ?)", (name, value))
    ledger.connection.close()
    async with place.open() as log:
        for number in range(600):
            await log.append(run, said(f"quince {number}")).durable()
        await log.flush_index()
        assert len(await log.search("persimmon")) == 1
        assert len(await log.search("quince", limit=1000)) == 600
    assert projection_faults(place.file) == []


@pytest.mark.parametrize(
    "request_told",
    [
        {},
        {"context": {"args_bytes": 7, "args_digest": "hmac-sha256:00ff", "egress_hosts": []}},
        {"context": {"args_bytes": 7, "egress_hosts": ["a.example", "12"]}, "entities": [{"attrs": {"n": 3}}]},
        {"args_bytes": 1, "egress_hosts": 2, "inner": {"args_bytes": 3, "egress_hosts": 4}},
        {"egress_hosts": 1, "zzz": {"args_bytes": "last"}},
        {"context": {"args_bytes": 'say "args_bytes":', "egress_hosts": '"egress_hosts":'}},
        {"context": {"args_bytes": 1, "between": "args_bytes", "egress_hosts": "egress_hosts"}},
        {"context": {"args_bytes": 1, "egress_hosts": []}, "long": ["x" * 5000, 5]},
    ],
)
def test_a_decision_has_the_words_that_any_other_event_has(request_told: dict[str, object]) -> None:
    """Its words are put together from stretches that earlier decisions had too, and twice are the same words."""
    decided = PolicyDecided(verdict="allow", policy_version="p1", gateway_version="test", request=request_told)
    payload = canonical(told_by(decided))
    other = payload.replace(b'{"approval":', b'{"advice":', 1)  # nobody's event, so read from end to end
    assert text_of(payload) == text_of(other) == text_of(payload)


def test_a_signal_that_is_set_twice_wakes_once_and_one_that_is_not_set_times_out() -> None:
    signal = Signal()
    signal.set()
    signal.set()
    assert signal.wait(LIMIT_S)
    assert not signal.wait(0)
    threading.Timer(0, signal.set).start()
    assert signal.wait(None)
