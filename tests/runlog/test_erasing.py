"""Erasure: the text is in no byte of the data directory, every link still verifies, and a rebuild changes nothing."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from omni_mcp.contracts.errors import LogUnavailable, NotFound
from omni_mcp.contracts.events import ArtifactStored, draft
from omni_mcp.contracts.ids import new_id
from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.engines.runlog.bodies import DIRECTORY
from omni_mcp.engines.runlog.erase import Eraser
from omni_mcp.engines.runlog.keys import find_keys
from omni_mcp.engines.runlog.projections import digest_of_projections
from omni_mcp.engines.runlog.retiring import BYTES_TOGETHER, erased_together
from omni_mcp.engines.runlog.store import SqliteRunLog, open_ledger, rebuild_projections
from omni_mcp.engines.runlog.verify import Tombstone, verify_database
from tests.runlog.conftest import ANNA, Place, answered, asked, new_run, said, texts

DAY_S = 86_400


@contextmanager
def _eraser(place: Place, blobs: BlobStore, later_s: float = 0) -> Iterator[Eraser]:
    """What the command line makes: a second connection with a ledger of its own."""
    ledger = open_ledger(place.file, place.keys, events_per_run=100_000).ledger
    try:
        yield Eraser(
            ledger, place.file, blobs, by="operator:test", now_ns=lambda: time.time_ns() + int(later_s * 1_000_000_000)
        )
    finally:
        ledger.connection.close()


@pytest.fixture
def blobs(place: Place) -> Iterator[BlobStore]:
    (place.directory / "data").mkdir(exist_ok=True)
    store = BlobStore(place.directory / "data" / "artifacts")
    yield store
    store.close()


def _files_with(directory: Path, text: str) -> list[str]:
    """Return the files that hold *text*, or any of its words, whatever the case."""
    needles = [word.encode() for word in text.split()]
    found: list[str] = []
    for file in directory.rglob("*"):
        content = file.read_bytes().lower() if file.is_file() else b""
        found.extend(f"{file.name}: {needle.decode()}" for needle in needles if needle in content)
    return found


async def _fill(log: SqliteRunLog, words: list[str], runs: int = 6, events: int = 60) -> list[str]:
    """Write interleaved runs with texts of all sizes, so that pages split and cells move; run 0 holds the words."""
    dice = random.Random(1)
    names = [await new_run(log, title=f"about {words[0]}" if not number else "about nothing") for number in range(runs)]
    for number in range(events):
        for at, run in enumerate(names):
            filler = "lorem " * dice.choice([1, 20, 120, 400, 1500])
            text = f"{filler} {words[number % len(words)]} {filler[: dice.randrange(200)]}" if at == 0 else filler
            log.append(run, said(text))
        await log.append(names[-1], said("end of round")).durable()
    return names


async def test_after_an_erasure_no_byte_is_left_and_everything_still_verifies(place: Place, blobs: BlobStore) -> None:
    """Source: docs/run-log.md, "Erasing". Beside an open gateway, as the command line does it."""
    words = [f"zyxw{number}vuts" for number in range(20)]
    secret = " ".join(words)
    async with place.open() as log:
        names = await _fill(log, words)
        large, small = secret.encode() * 1000, secret.encode()
        for data in (large, small):
            reference = blobs.put(data, media_type="text/plain", owner=ANNA.key, run=names[0], name=f"{len(data)}.txt")
            stored = ArtifactStored(**reference.model_dump())
            await log.append(names[0], draft(stored, actor="gateway")).durable()
        await log.flush_index()
        await log.append(names[0], said(f"not indexed yet {secret}")).durable()
        assert len(await log.search(words[3])) == 4
        assert _files_with(place.directory, secret)

        with _eraser(place, blobs) as eraser:
            done = eraser.erase(names[0], reason="asked for")
        assert (done.runs, done.events, len(done.artifacts), done.wal_truncated) == ([names[0]], 64, 2, True)
        assert _files_with(place.directory, secret) == []
        assert await log.search(words[3]) == []
        assert len(await log.search("lorem", run=names[1], limit=100)) == 60

        report = verify_database(place.file, find_keys(place.keys))
        assert (report.faults, report.erased) == ([], [Tombstone(names[0], seq, 65) for seq in range(1, 65)])
        assert await log.append(names[0], said("goes on")).durable() == 66
        await log.append(names[1], said("elsewhere too")).durable()
        facts = await log.get_run(names[0])
        assert (facts["title"], facts["principal"], facts["erased"]) == (None, None, 64)

    ledger = open_ledger(place.file, place.keys, events_per_run=100_000).ledger
    ledger.index()
    before = digest_of_projections(ledger.connection)
    rebuild_projections(ledger)
    assert digest_of_projections(ledger.connection) == before
    ledger.connection.close()
    assert _files_with(place.directory, secret) == []
    assert verify_database(place.file, find_keys(place.keys)).ok


async def test_run_after_run_can_be_erased_however_their_pages_were_split(place: Place, blobs: BlobStore) -> None:
    """Cells that SQLite moved to another page leave their old bytes behind; no text may ever be in such a cell."""
    dice = random.Random(7)
    async with place.open() as log:
        names = [await new_run(log, title=f"title{number}zz") for number in range(12)]
        for number in range(150):
            for at, run in enumerate(names):
                log.append(run, said(f"marker{at}zz " + f"lorem{number} " * dice.choice([1, 5, 30, 100, 900])))
            await log.append(names[0], said("end of round")).durable()
        await log.flush_index()
        with _eraser(place, blobs) as eraser:
            for at in dice.sample(range(12), 12):
                eraser.erase(names[at], reason="asked for")
                assert _files_with(place.directory, f"marker{at}zz title{at}zz") == []
    assert verify_database(place.file, find_keys(place.keys)).ok


async def test_erasing_one_call_leaves_its_neighbours_and_keeps_artifacts_that_others_name(
    place: Place, blobs: BlobStore
) -> None:
    async with place.open() as log:
        run, mine, other = await new_run(log), new_id(), new_id()
        own = blobs.put(b"mine alone", media_type="text/plain", owner=ANNA.key, run=run)
        shared = blobs.put(b"shared", media_type="text/plain", owner=ANNA.key, run=run)
        for call, references in ((mine, (own, shared)), (other, (shared,))):
            log.append(run, asked(call, path=f"path-of-{call}"))
            for reference in references:
                log.append(run, draft(ArtifactStored(**reference.model_dump()), actor="gateway", call=call))
            await log.append_outcome(run, answered(call, f"answer-of-{call}")).durable()
        with _eraser(place, blobs) as eraser:
            done = eraser.erase(run, call=mine, reason="asked for")
            with pytest.raises(NotFound):
                eraser.erase(run, call=new_id(), reason="no such call")
            with pytest.raises(NotFound):
                eraser.erase(new_id(), reason="no such run")
        assert (done.events, done.artifacts) == (4, [own.sha256])
        assert _files_with(place.directory, f"path-of-{mine} answer-of-{mine}") == []
        assert [event.payload is None for event in await log.find_call(mine)] == [True] * 4
        assert [event.payload is None for event in await log.find_call(other)] == [False] * 3
        assert blobs.get(shared.sha256, owner=ANNA.key)[1] == b"shared"
        calls = {event.kind for event in await log.search(f"answer-of-{other}")}
        assert calls == {"tool_result"}
    report = verify_database(place.file, find_keys(place.keys))
    assert (report.ok, [tombstone.seq for tombstone in report.erased]) == (True, [2, 3, 4, 5])


async def test_an_open_call_stays_open_when_its_text_is_erased(place: Place, blobs: BlobStore) -> None:
    async with place.open() as log:
        run, call = await new_run(log), new_id()
        await log.append(run, asked(call)).durable()
        with _eraser(place, blobs) as eraser:
            assert eraser.erase(run, reason="asked for").still_open == [call]
        assert await log.append_outcome(run, answered(call), parent=2).durable() == 4
        with _eraser(place, blobs) as eraser:
            assert eraser.erase(run, reason="asked for").still_open == []


async def test_retention_erases_old_runs_once_and_says_so_in_the_gateways_run(place: Place, blobs: BlobStore) -> None:
    async with place.open() as log:
        old, waiting = await new_run(log), await new_run(log)
        await log.append(old, said("old story")).durable()
        await log.append(waiting, asked(new_id())).durable()
        with _eraser(place, blobs) as eraser:
            assert eraser.retention(older_than_s=DAY_S, older_than="1d").runs == []
        with _eraser(place, blobs, later_s=2 * DAY_S) as eraser:
            assert eraser.retention(older_than_s=DAY_S, older_than="1d").runs == [old]
            assert eraser.retention(older_than_s=DAY_S, older_than="1d").runs == []
        assert await texts(log, old) == []
        own = next(run for run in await log.runs() if run["kind"] == "gateway")
        events = [event async for event in log.read(own["id"])]
        assert [event.code or event.kind for event in events] == ["run_created", "retention_run"]
        assert events[-1].payload == {
            "code": "retention_run", "older_than": "1d", "runs": 1, "events": 2, "artifacts": 0
        }  # fmt: skip
        await log.append(own["id"], said("the gateway goes on in the same chain")).durable()
    assert verify_database(place.file, find_keys(place.keys)).ok


async def test_an_erasure_of_a_call_that_was_killed_before_its_files_were_gone_ends_the_second_time(
    place: Place, blobs: BlobStore
) -> None:
    """Its events are empty already; only the sealed file of one is still there."""
    async with place.open() as log:
        run, call = await new_run(log), new_id()
        seq = await log.append(run, asked(call)).durable()
        [gid] = [event.gid async for event in log.read(run) if event.seq == seq]
        with _eraser(place, blobs) as eraser:
            eraser.erase(run, call=call, reason="asked for")
        left_behind = place.file.parent / DIRECTORY / f"{gid}.sealed"
        left_behind.parent.mkdir(mode=0o700, exist_ok=True)
        left_behind.write_bytes(b"sealed with a key that is still there")
        with _eraser(place, blobs) as eraser:
            done = eraser.erase(run, call=call, reason="asked for again")
        assert not left_behind.exists() and done.events == 0
        erasures = [event async for event in log.read(run) if event.code == "erased"]
        assert len(erasures) == 1, "there was nothing more to say"


async def test_retention_on_a_log_that_lost_a_table_says_so_in_words(place: Place, blobs: BlobStore) -> None:
    async with place.open() as log:
        await new_run(log)
    with _eraser(place, blobs, later_s=2 * DAY_S) as eraser:
        with closing(sqlite3.connect(place.file)) as connection:
            connection.execute("ALTER TABLE texts RENAME TO gone")
        with pytest.raises(LogUnavailable):
            eraser.retention(older_than_s=DAY_S, older_than="1d")


async def test_retention_fills_the_search_tables_once_for_many_runs(place: Place, blobs: BlobStore) -> None:
    async with place.open() as log:
        runs = [await new_run(log) for _ in range(20)]
        for run in runs:
            await log.append(run, said(f"an old story of {run}")).durable()
        for number in range(140):  # so much that there is a table
            await log.append(runs[number % 20], said("filler")).durable()
        kept = await new_run(log)
        await log.append(kept, asked(new_id())).durable()
        assert len(await log.search("story", limit=50)) == 20
        statements: list[str] = []
        with _eraser(place, blobs, later_s=2 * DAY_S) as eraser:
            eraser._connection.set_trace_callback(statements.append)
            assert sorted(eraser.retention(older_than_s=DAY_S, older_than="1d").runs) == sorted(runs)
        assert sum(one.startswith("DROP TABLE IF EXISTS search_") for one in statements) == 1
        assert await log.search("story", limit=50) == []
        for run in runs:
            assert await texts(log, run) == []
            assert [event.code async for event in log.read(run)][-1] == "erased"
    assert verify_database(place.file, find_keys(place.keys)).ok


def test_runs_are_erased_together_up_to_a_bound_and_a_large_one_alone() -> None:
    connection = sqlite3.connect(":memory:")
    connection.executescript(
        "CREATE TABLE run_keys (run INTEGER PRIMARY KEY, id TEXT);"
        "CREATE TABLE events (gid INTEGER PRIMARY KEY, run INTEGER, erased_by INTEGER);"
        "CREATE TABLE texts (gid INTEGER PRIMARY KEY, body BLOB)"
    )
    sizes = {"a": 3, "b": 2, "large": BYTES_TOGETHER + 1, "c": 1, "d": BYTES_TOGETHER - 1, "e": 1}
    for number, (run, size) in enumerate(sizes.items()):
        connection.execute("INSERT INTO run_keys VALUES (?, ?)", (number, run))
        connection.execute("INSERT INTO events VALUES (?, ?, NULL)", (number, number))
        connection.execute("INSERT INTO texts VALUES (?, zeroblob(?))", (number, size))
    assert list(erased_together(connection, list(sizes))) == [["a", "b"], ["large"], ["c", "d"], ["e"]]
    connection.close()


async def test_a_text_that_vanished_without_an_erasure_on_record_is_named(place: Place, blobs: BlobStore) -> None:
    async with place.open() as log:
        run = await new_run(log)
        await log.append(run, said("first")).durable()
        with _eraser(place, blobs) as eraser:
            eraser.erase(run, reason="asked for")
        await log.append(run, said("second")).durable()
    ledger = open_ledger(place.file, place.keys, events_per_run=100_000).ledger
    ledger.connection.create_function("omni_mcp_may_erase", 0, lambda: 1)
    ledger.connection.execute("UPDATE texts SET body = zeroblob(length(body)) WHERE gid = 4")
    ledger.connection.execute("UPDATE events SET erased_by = 3 WHERE seq = 4")
    ledger.connection.close()
    report = verify_database(place.file, find_keys(place.keys))
    assert [(fault.run, fault.seq) for fault in report.faults if fault.seq] == [(run, 4)]
