"""Promises 2 and 4: a log that cannot be written refuses, loses nothing acknowledged, and recovers by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from omni_mcp.contracts.errors import LogCorrupt, LogUnavailable
from omni_mcp.contracts.events import RoundAsked, draft
from omni_mcp.contracts.ids import new_id
from omni_mcp.engines.runlog.guards import SCHEMA
from omni_mcp.engines.runlog.keys import HEAD_KEY_FILE, find_keys
from omni_mcp.engines.runlog.projections import digest_of_projections
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.runlog.verify import verify_database
from omni_mcp.engines.runlog.writer import QUEUE_EVENTS
from omni_mcp.migrations import Migration, migrate, read_migrations
from tests.runlog.conftest import Place, answered, asked, decided, failed, new_run, said, texts

LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


async def test_a_locked_log_refuses_after_two_seconds_and_recovers(place: Place) -> None:
    async with place.open() as log:
        run, call = await new_run(log), new_id()
        await log.append(run, asked(call)).durable()
        locker = subprocess.Popen(
            [sys.executable, "-c", LOCKER, str(place.file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert locker.stdout is not None and locker.stdin is not None
        await asyncio.to_thread(locker.stdout.readline)
        began = time.monotonic()
        event, outcome = log.append(run, said("refused")), log.append_outcome(run, answered(call), parent=2)
        for ticket in (event, outcome):
            with pytest.raises(LogUnavailable) as refusal:
                await ticket.durable()
        assert time.monotonic() - began > 1.5
        assert "locked" in refusal.value.detail and "locked" not in refusal.value.message
        locker.stdin.close()
        locker.stdout.close()
        await asyncio.to_thread(locker.wait)
        assert await log.append(run, said("accepted")).durable() == 4
        assert [event.kind async for event in log.read(run)][1:] == ["tool_call", "tool_result", "user_message"]
    assert verify_database(place.file, find_keys(place.keys)).ok


async def test_a_full_disk_refuses_whole_groups_and_recovers(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log)
        pages = await log._writer.call(lambda ledger: ledger.connection.execute("PRAGMA page_count").fetchone()[0])
        await log._writer.call(
            lambda ledger: ledger.connection.execute(f"PRAGMA max_page_count = {pages + 5}").fetchone()
        )
        tickets = [log.append(run, said(f"{number} " + "x" * 20_000)) for number in range(20)]
        results = await asyncio.gather(*(ticket.durable() for ticket in tickets), return_exceptions=True)
        refused = [result for result in results if isinstance(result, LogUnavailable)]
        written = [result for result in results if isinstance(result, int)]
        assert refused and len(refused) + len(written) == 20
        assert len(await texts(log, run)) == len(written)
        await log._writer.call(lambda ledger: ledger.connection.execute("PRAGMA max_page_count = 1000000").fetchone())
        assert await log.append(run, said("room again")).durable() == len(written) + 2
    assert verify_database(place.file, find_keys(place.keys)).ok


async def test_a_full_queue_refuses_at_once_and_what_was_queued_is_written(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log)
        tickets = [log.append(run, said("x")) for _ in range(QUEUE_EVENTS * 2)]
        results = await asyncio.gather(*(ticket.durable() for ticket in tickets), return_exceptions=True)
        written = sum(isinstance(result, int) for result in results)
        assert all(isinstance(result, int | LogUnavailable) for result in results)
        assert (await log.get_run(run))["last_seq"] == written + 1 >= QUEUE_EVENTS


KILLED = """
import asyncio, sys
from pathlib import Path
from omni_mcp.engines.runlog.store import open_run_log
from omni_mcp.engines.secrets.masking import SecretMasker
from tests.runlog.conftest import new_run, said

async def main() -> None:
    place = Path(sys.argv[1])
    opened = open_run_log(place / "runlog.db", keys=place / "secrets", masker=SecretMasker({}), gateway_version="t")
    async with opened as log:
        run = await new_run(log)
        async def write(writer: int) -> None:
            number = 0
            while True:
                seq = await log.append(run, said(f"{writer}:{number}")).durable()
                print(run, seq, f"{writer}:{number}", flush=True)
                number += 1
        await asyncio.gather(*(write(writer) for writer in range(8)))

asyncio.run(main())
"""


async def test_after_kill_9_every_acknowledged_event_is_there_and_the_chain_holds(place: Place) -> None:
    place.file.parent.mkdir()
    root = str(Path(__file__).resolve().parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(place.file.parent)], stdout=subprocess.PIPE, text=True, cwd=root,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert child.stdout is not None
    lines = [await asyncio.to_thread(child.stdout.readline) for _ in range(400)]
    child.send_signal(signal.SIGKILL)
    rest, _ = await asyncio.to_thread(child.communicate)
    acknowledged = [line.split() for line in lines + rest.splitlines() if line.count(" ") == 2 and ":" in line]
    assert len(acknowledged) >= 400
    async with place.open() as log:
        run = acknowledged[0][0]
        on_disk = {event.seq: event.payload async for event in log.read(run, limit=100_000)}
        for _, seq, text in acknowledged[:-1]:  # the last line may be cut
            assert on_disk[int(seq)]["text"] == text  # type: ignore[index]
        assert list(on_disk) == list(range(1, len(on_disk) + 1))
        assert await log.append(run, said("after")).durable() == len(on_disk) + 1
        assert len(await log.search("after")) == 1
    assert verify_database(place.file, find_keys(place.keys)).ok


async def test_calls_that_a_crash_left_open_get_outcome_unknown_which_says_whether_they_can_have_run(
    place: Place,
) -> None:
    calls = {name: new_id() for name in ("asked", "denied", "allowed", "waiting", "done")}
    async with place.open() as log:
        run = await new_run(log)
        for call in calls.values():
            await log.append(run, asked(call)).durable()
        log.append(run, decided(calls["denied"], "deny"))
        for name in ("allowed", "waiting"):
            log.append(run, decided(calls[name]))
        asks = RoundAsked(round=1, requests={}, expires_at="2999-01-01T00:00:00Z")
        log.append(run, draft(asks, actor="gateway", call=calls["waiting"]))
        await log.append_outcome(run, answered(calls["done"])).durable()
    async with place.open() as log:
        assert await log.recover_orphans() == [calls[name] for name in ("asked", "denied", "allowed", "waiting")]
        outcomes = {name: (await log.find_call(call))[-1] for name, call in calls.items()}
        unknown = {name: event.payload or {} for name, event in outcomes.items() if event.kind == "tool_error"}
        found = {name: payload["dispatched"] for name, payload in unknown.items()}
        assert found == {"asked": False, "denied": False, "allowed": True, "waiting": True}
        assert {payload["code"] for payload in unknown.values()} == {"outcome_unknown"}
        assert outcomes["asked"].parent == 2
        assert (await log.get_run(run))["open"] is False
        assert await log.recover_orphans() == []


async def test_a_damaged_database_is_refused_with_a_hint_and_left_as_it_is(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log)
        for _ in range(50):
            await log.append(run, said("x" * 500)).durable()
    whole = place.file.read_bytes()
    for damage in (
        b"not a database" + whole[14:],
        whole[:4096] + os.urandom(len(whole) - 4096),
        whole[: len(whole) // 2],
    ):
        place.file.write_bytes(damage)
        with pytest.raises(LogCorrupt) as refusal:
            async with place.open():
                pass
        assert "never delete the file" in refusal.value.detail.lower() or "audit verify" in refusal.value.detail
        assert place.file.read_bytes()[:4096] == damage[:4096]


async def test_a_missing_database_or_key_is_never_made_anew_in_silence(place: Place) -> None:
    async with place.open() as log:
        await new_run(log)
    key = place.keys / HEAD_KEY_FILE
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.file.stat().st_mode) == 0o600
    kept = key.read_bytes()
    key.unlink()
    with pytest.raises(LogCorrupt, match="key of the run log is missing"):
        async with place.open():
            pass
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    with pytest.raises(LogCorrupt, match="does not fit its key"):
        async with place.open():
            pass
    key.write_bytes(kept)
    key.chmod(0o644)
    with pytest.raises(LogCorrupt, match="readable by others"):
        async with place.open():
            pass
    key.chmod(0o600)
    place.file.unlink()
    with pytest.raises(LogCorrupt, match="the run log is missing"):
        async with place.open():
            pass
    assert not place.file.exists()


async def test_projections_that_are_rebuilt_are_the_same_and_repair_a_damaged_one(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log, title="a title")
        for number in range(30):
            call = new_id()
            log.append(run, asked(call, number=number))
            await log.append_outcome(run, failed(call) if number % 2 else answered(call)).durable()
        await log.append(run, asked(new_id())).durable()
        await log.flush_index()
        before = await log._writer.call(_digest)
        await log.rebuild_projections()
        assert await log._writer.call(_digest) == before
        await log._writer.call(lambda ledger: ledger.connection.execute("DELETE FROM open_calls"))
        await log._writer.call(lambda ledger: ledger.connection.execute("UPDATE runs SET project = 'forged'"))
        assert await log._writer.call(_digest) != before
        await log.rebuild_projections()
        assert await log._writer.call(_digest) == before
        assert await log.append(run, said("goes on")).durable() == 63


def _digest(ledger: object) -> str:
    return digest_of_projections(ledger.connection)  # type: ignore[attr-defined]


async def test_migrations_are_checked_and_a_newer_database_is_refused(place: Place) -> None:
    async with place.open() as log:
        await new_run(log)
    connection = sqlite3.connect(place.file, isolation_level=None)
    steps = read_migrations(SCHEMA)
    more = (*steps, Migration(version=len(steps) + 1, name="more", sql="CREATE TABLE more (id INTEGER);\n"))
    assert (migrate(connection, more), migrate(connection, more)) == (1, 0)
    with pytest.raises(LogCorrupt, match="newer version"):
        migrate(connection, steps)
    changed = (Migration(version=1, name=steps[0].name, sql=steps[0].sql + "-- changed\n"), *more[1:])
    with pytest.raises(LogCorrupt, match="not the one"):
        migrate(connection, changed)
    broken = (*more, Migration(version=len(more) + 1, name="broken", sql="CREATE TABLE half (id);\nSELECT nonsense;\n"))
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, broken)
    assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'half'").fetchone() == (0,)
    connection.close()
    with pytest.raises(LogCorrupt, match="newer version"):
        async with place.open():
            pass


async def test_a_reader_in_another_connection_follows_the_log_and_cannot_write(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log)
        with LogReader(place.file) as reader:
            stop = threading.Event()
            tail = reader.tail(run, after=0, stop=stop)
            assert (await asyncio.to_thread(next, tail)).kind == "run_created"
            coming = asyncio.create_task(asyncio.to_thread(next, tail))
            await log.append(run, said("new")).durable()
            assert (await coming).seq == 2
            stop.set()
            tail.close()
            assert reader.run_id("last") == reader.run_id(run[:13]) == run
            with pytest.raises(sqlite3.OperationalError):
                reader._connection.execute("DELETE FROM runs")
