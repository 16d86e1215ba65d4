"""Promise 11: what is changed behind the log's back is named. Each test does what an intruder could."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from omni_mcp.contracts.errors import LogCorrupt, LogUnavailable
from omni_mcp.contracts.events import NO_BODY, RunEvent, chain_hash, header_bytes, payload_digest
from omni_mcp.engines.runlog.keys import find_keys
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.runlog.verify import Report, verify_database
from tests.runlog.conftest import Place, new_run, said

Vandal = Callable[[sqlite3.Connection], object]


async def _filled(place: Place) -> tuple[str, str]:
    async with place.open() as log:
        first, second = await new_run(log), await new_run(log)
        for number in range(4):
            for run in (first, second):
                await log.append(run, said(f"text {number}")).durable()
    return first, second


def _unguarded(file: Path) -> sqlite3.Connection:
    """Open the file as an intruder does who has dropped the triggers."""
    connection = sqlite3.connect(file, isolation_level=None)
    for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    return connection


def _report(place: Place, *, with_key: bool = True) -> Report:
    return verify_database(place.file, find_keys(place.keys) if with_key else None)


def _named(report: Report) -> set[tuple[str, int]]:
    return {(fault.run, fault.seq) for fault in report.faults if fault.run}


async def test_an_untouched_log_verifies(place: Place) -> None:
    await _filled(place)
    report = _report(place)
    assert (report.ok, report.runs, report.events, report.heads_checked) == (True, 2, 10, True)
    assert _report(place, with_key=False).heads_checked is False


async def test_an_event_that_is_read_is_a_whole_and_valid_one(place: Place) -> None:
    first, _ = await _filled(place)
    with LogReader(place.file) as log:
        for event in log.events(first):
            again = RunEvent.model_validate(event.model_dump())
            assert again == event and again.model_dump_json() == event.model_dump_json()
            assert event.model_fields_set == set(RunEvent.model_fields)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET actor = 'x'",
        "UPDATE events SET erased_by = 9",
        "UPDATE texts SET body = zeroblob(length(body))",
        "UPDATE texts SET body = X'00'",
        "DELETE FROM texts",
        "INSERT OR REPLACE INTO texts VALUES (1, X'00')",
        "DELETE FROM events",
        "DELETE FROM events WHERE seq = 5",
        "INSERT OR REPLACE INTO events SELECT run, seq, gid, at_ns, v, kind, code, 'x', call, parent, privacy,"
        " erased_by, payload_digest, body_digest, prev, hash FROM events WHERE seq = 2 AND run = 1",
        "INSERT OR REPLACE INTO events SELECT run, 99, gid, at_ns, v, kind, code, 'x', call, parent, privacy,"
        " erased_by, payload_digest, body_digest, prev, hash FROM events WHERE seq = 2 AND run = 1",
        "UPDATE run_keys SET id = 'x' WHERE run = 1",
        "INSERT OR REPLACE INTO run_keys VALUES (1, 'x')",
        "DELETE FROM run_keys",
    ],
)
async def test_any_other_program_is_refused_changes(place: Place, statement: str) -> None:
    await _filled(place)
    connection = sqlite3.connect(place.file)
    with pytest.raises(sqlite3.Error, match=r"append-only|omni_mcp_may_erase"):
        connection.execute(statement)
    connection.close()
    assert _report(place).ok


@pytest.mark.parametrize(
    "assignment",
    [
        "actor = 'somebody else'", "at_ns = at_ns + 1", "kind = 'assistant_message'", "parent = 1", "call = 'x'",
        "privacy = '[\"$.x\"]'", "prev = zeroblob(32)", "hash = zeroblob(32)", "payload_digest = zeroblob(32)",
        "body_digest = randomblob(32)", "erased_by = 1", "v = 2", "privacy = 'no json'",
    ],
)  # fmt: skip
async def test_a_changed_event_is_named(place: Place, assignment: str) -> None:
    first, _ = await _filled(place)
    connection = _unguarded(place.file)
    connection.execute(f"UPDATE events SET {assignment} WHERE run = 1 AND seq = 3")
    connection.close()
    for with_key in (True, False):
        assert (first, 3) in _named(_report(place, with_key=with_key))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE texts SET body = CAST(replace(CAST(body AS TEXT), 'text', 'lies') AS BLOB) WHERE gid = {gid}",
        "UPDATE texts SET body = zeroblob(length(body)) WHERE gid = {gid}",
        "UPDATE texts SET body = randomblob(8) WHERE gid = {gid}",
        "DELETE FROM texts WHERE gid = {gid}",
    ],
)
async def test_a_changed_text_is_named(place: Place, statement: str) -> None:
    first, _ = await _filled(place)
    connection = _unguarded(place.file)
    (gid,) = connection.execute("SELECT gid FROM events WHERE run = 1 AND seq = 3").fetchone()
    connection.execute(statement.format(gid=gid))
    connection.close()
    for with_key in (True, False):
        assert _named(_report(place, with_key=with_key)) == {(first, 3)}


async def test_a_deleted_event_is_named_even_without_the_key(place: Place) -> None:
    first, _ = await _filled(place)
    connection = _unguarded(place.file)
    connection.execute("DELETE FROM events WHERE run = 1 AND seq = 3")
    connection.close()
    assert _named(_report(place, with_key=False)) == {(first, 3)}


async def test_reordered_events_are_named(place: Place) -> None:
    first, _ = await _filled(place)
    connection = _unguarded(place.file)
    for old, new in ((3, 99), (4, 3), (99, 4)):
        connection.execute("UPDATE events SET seq = ? WHERE run = 1 AND seq = ?", (new, old))
    connection.close()
    assert {(first, 3), (first, 4)} <= _named(_report(place, with_key=False))


async def test_a_truncated_run_is_named_though_its_head_was_put_back(place: Place) -> None:
    """The head of an earlier moment is authentic; the global head still counts what came after it."""
    async with place.open() as log:
        run = await new_run(log)
        await log.append(run, said("kept")).durable()
        with closing(sqlite3.connect(place.file)) as connection:
            earlier = connection.execute("SELECT count, hash, mac FROM heads WHERE run = 1").fetchone()
        await log.append(run, said("to be forgotten")).durable()
    connection = _unguarded(place.file)
    connection.execute("DELETE FROM events WHERE run = 1 AND seq = 3")
    connection.execute("UPDATE heads SET count = ?, hash = ?, mac = ?", earlier)
    connection.close()
    assert any("global number 3" in fault.what for fault in _report(place).faults)


async def test_the_cut_off_end_of_a_run_is_named_event_by_event(place: Place) -> None:
    first, _ = await _filled(place)
    connection = _unguarded(place.file)
    connection.execute("DELETE FROM events WHERE run = 1 AND seq > 3")
    connection.close()
    assert {(first, 4), (first, 5)} <= _named(_report(place, with_key=False))


async def test_a_whole_run_that_is_gone_is_noticed(place: Place) -> None:
    await _filled(place)
    connection = _unguarded(place.file)
    for table in ("events", "heads", "runs", "run_keys"):
        connection.execute(f"DELETE FROM {table} WHERE run = 2")
    connection.close()
    assert any("global number" in fault.what for fault in _report(place).faults)


async def test_a_chain_that_was_rewritten_with_new_heads_fails_for_whoever_holds_the_key(place: Place) -> None:
    first, _ = await _filled(place)
    connection = _unguarded(place.file)
    _rewrite_last_event(connection, first)
    connection.close()
    named = _report(place)
    assert not named.ok
    assert any("does not fit the key" in fault.what for fault in named.faults)


def _rewrite_last_event(connection: sqlite3.Connection, run: str) -> None:
    """Forge the last event of run 1 so that every link holds, and both heads' hashes with it; the key is not there."""
    row = connection.execute(
        "SELECT seq, at_ns, v, kind, code, actor, call, parent, prev, gid FROM events "
        "WHERE run = 1 ORDER BY seq DESC LIMIT 1"
    ).fetchone()
    seq, at_ns, v, kind, code, actor, call, parent, prev, gid = row
    salt = bytes(16)
    payload = b'{"author":null,"model":null,"text":"forged"}'
    digest = payload_digest(salt, payload)
    header = header_bytes(
        v=v, run=run, seq=seq, at_ns=at_ns, kind=kind, code=code, actor=actor, call=call, parent=parent, privacy=()
    )
    forged = chain_hash(prev, header, digest, NO_BODY)
    connection.execute("UPDATE texts SET body = ? WHERE gid = ?", (salt + payload, gid))
    connection.execute(
        "UPDATE events SET payload_digest = ?, hash = ? WHERE run = 1 AND seq = ?", (digest, forged, seq)
    )
    connection.execute("UPDATE heads SET hash = ? WHERE run = 1", (forged,))
    rolling = bytes(32)
    for (event_hash,) in connection.execute("SELECT hash FROM events ORDER BY gid"):
        rolling = hashlib.sha256(rolling + event_hash).digest()
    connection.execute("UPDATE global_head SET hash = ?", (rolling,))


async def test_a_gateway_does_not_write_to_a_log_whose_end_was_cut_off(place: Place) -> None:
    await _filled(place)
    connection = _unguarded(place.file)
    connection.execute("DELETE FROM events WHERE gid = 10")
    connection.close()
    with pytest.raises(LogCorrupt, match="does not end where its head says"):
        async with place.open():
            pass


async def test_a_run_that_was_cut_short_takes_no_more_events_while_others_do(place: Place) -> None:
    first, second = await _filled(place)
    connection = _unguarded(place.file)
    connection.execute("DELETE FROM events WHERE run = 1 AND seq > 3")
    connection.close()
    async with place.open() as log:
        with pytest.raises(LogUnavailable):
            await log.append(first, said("more")).durable()
        assert await log.append(second, said("more")).durable() == 6
