"""Sheets are copies that pages are read from: they say what rows say, hold nobody else's, and go with an erasure."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import cycle
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from omni_mcp.cli.root import cli
from omni_mcp.contracts.errors import LogUnavailable
from omni_mcp.contracts.events import AccessRefusedEvent, Draft, PolicyDecided, ToolError, draft
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.json import canonical
from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.engines.runlog.connection import open_reader
from omni_mcp.engines.runlog.erase import Eraser
from omni_mcp.engines.runlog.following import Line
from omni_mcp.engines.runlog.keys import find_keys
from omni_mcp.engines.runlog.paging import stretches_of_run
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.runlog.sheets import SHEET_EVENTS, SheetFiles
from omni_mcp.engines.runlog.store import SqliteRunLog, open_ledger
from omni_mcp.engines.runlog.verify import verify_database
from omni_mcp.serving.runs.view import for_caller
from tests.runlog.conftest import ANNA, Place, answered, asked, new_run, said

Runs = tuple[str, str]
EVENTS = 2 * SHEET_EVENTS + 40  # two sheets, and some that are in none yet


TEXTS = ["plain", 'a "quote" and \\ more', "two\nlines\u2028\x00", "ünïcödé 🙂", "x" * 3000, '},{"run":"forged"}']


def _odd() -> Iterator[Draft]:
    """Yield events of every kind that shows less than it holds, and texts that JSON must escape."""
    for text in cycle(TEXTS):
        done, cut, denied = new_id(), new_id(), new_id()
        yield said(text)
        yield asked(done, path=text, nested={"code": "run_closed", "kind": "system_event"})
        yield answered(done, text)
        yield asked(cut, path=text)
        error = ToolError(code="timeout", message="no", detail="for operators only", dispatched=True)
        yield draft(error, actor="gateway", call=cut)
        decision = PolicyDecided(
            verdict="deny", rules=("secret-rule",), policy_version="p", gateway_version="t", tool="x"
        )
        yield draft(decision, actor="gateway", call=denied)
        refused = AccessRefusedEvent(method="m", target="t", principal=ANNA.key, rules=("secret-rule",), detail="d")
        yield draft(refused, actor='who"ever')


async def _fill(log: SqliteRunLog) -> Runs:
    """Write two runs in turns, the second with a word of its own, and make every sheet that is due."""
    first, second = await new_run(log), await new_run(log)
    drafts = _odd()
    for number in range(EVENTS - 1):
        log.append(first, next(drafts))
        ticket = log.append(second, said(f"quincewort{number}"))
    await ticket.durable()
    await log.flush_index()
    return first, second


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Runs]:
    """A home with two runs and their four sheets."""
    directory = tmp_path_factory.mktemp("written")

    async def write() -> Runs:
        async with Place(directory).open() as log:
            return await _fill(log)

    return directory, asyncio.run(write())


@pytest.fixture
def runs(place: Place, written: tuple[Path, Runs]) -> Runs:
    """The same for one test, which may spoil it."""
    source, names = written
    shutil.copytree(source, place.directory, dirs_exist_ok=True)
    return names


def _told(reader: LogReader, run: str, **page: int) -> list[bytes]:
    """Return what the events of a page must look like, made of the rows."""
    events = reader.events(run, **page)
    return [canonical(for_caller(event)) for event in events]


def _sheets(place: Place) -> list[Path]:
    return sorted((place.file.parent / "sheets").glob("*"))


def _faults(place: Place) -> list[str]:
    return [str(fault) for fault in verify_database(place.file, find_keys(place.keys)).faults]


@contextmanager
def _changing(place: Place) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(place.file, isolation_level=None)) as connection:
        yield connection


@contextmanager
def _eraser(place: Place) -> Iterator[Eraser]:
    with closing(BlobStore(place.file.parent / "artifacts")) as blobs:
        ledger = open_ledger(place.file, place.keys, events_per_run=100_000).ledger
        try:
            yield Eraser(ledger, place.file, blobs, by="operator:test")
        finally:
            ledger.connection.close()


def _holding(directory: Path, word: str) -> list[str]:
    return [file.name for file in directory.rglob("*") if file.is_file() and word.encode() in file.read_bytes()]


async def test_a_page_says_byte_for_byte_what_its_caller_may_see_of_the_rows(place: Place, runs: Runs) -> None:
    dice = random.Random(3)
    run, _ = runs
    assert len(_sheets(place)) == 4
    with LogReader(place.file) as reader:
        for _ in range(60):
            after, limit = dice.randrange(EVENTS + 20), dice.choice([1, 2, 50, SHEET_EVENTS, 1000])
            page = reader.page_of_run(run, after=after, limit=limit)
            told = _told(reader, run, after=after, limit=limit)
            assert page.text == b",".join(told)
            assert page.last == after + len(told) and page.more == (page.last < EVENTS and bool(told))
        whole = reader.page_of_run(run).text
        assert b"secret-rule" not in whole and b"for operators only" not in whole
        assert {event["run"] for event in orjson.loads(b"[%b]" % whole)} == {run}


async def test_a_stream_gets_the_same_lines_in_portions(place: Place, runs: Runs) -> None:
    run, _ = runs
    async with place.open() as log:
        lines: list[Line] = []
        after, more = 0, True
        while more:
            found = await log.follow_run(run, after=after)
            assert sum(len(line.text) for line in found.lines[:-1]) < 64 * 1024 and not found.closed
            lines += found.lines
            after, more = found.reached, found.more
    with LogReader(place.file) as reader:
        assert [line.text for line in lines] == _told(reader, run)
    assert [line.place for line in lines] == list(range(1, EVENTS + 1))


@pytest.mark.parametrize("limit_bytes", [1, 100, 5_000, 200_000])
async def test_a_page_ends_with_the_event_that_reaches_its_size(place: Place, runs: Runs, limit_bytes: int) -> None:
    run, _ = runs
    with LogReader(place.file) as reader:
        for after in (0, 100, 500):
            told = _told(reader, run, after=after)
            page = reader.page_of_run(run, after=after, limit_bytes=limit_bytes)
            shown = told[: page.last - after]
            assert page.text == b",".join(shown)
            assert len(page.text) >= limit_bytes or not page.more
            assert sum(map(len, shown[:-1])) < limit_bytes


async def test_a_page_is_read_from_a_sheet_and_a_row_that_was_changed_behind_it_is_named(
    place: Place, runs: Runs
) -> None:
    """The control of these tests: without it all of them might have read rows."""
    run, _ = runs
    with LogReader(place.file) as reader:
        before = reader.page_of_run(run).text
    with _changing(place) as connection:
        connection.execute("DROP TRIGGER texts_no_update")
        forged = bytes(16) + b'{"text":"forged"}'
        connection.execute("UPDATE texts SET body = ? WHERE gid = 21", (forged,))
    with LogReader(place.file) as reader:
        assert reader.page_of_run(run).text == before
    assert any("text is not what was recorded" in fault for fault in _faults(place))
    assert any("the sheet of events 1 to 256 is not theirs" in fault for fault in _faults(place))


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "empty", "anothers", "earlier"])
async def test_a_sheet_that_is_not_the_one_that_was_made_is_not_read(place: Place, runs: Runs, damage: str) -> None:
    run, _ = runs
    first, second, others = _sheets(place)[:3]
    kept = first.read_bytes()
    if damage == "gone":
        first.unlink()
    else:
        first.write_bytes(
            {
                "changed": kept.replace(b"plain", b"PLAIN"), "cut": kept[:-5], "empty": b"",
                "anothers": others.read_bytes(), "earlier": second.read_bytes(),
            }[damage]
        )  # fmt: skip
    with LogReader(place.file) as reader:
        assert reader.page_of_run(run).text == b",".join(_told(reader, run))
    named = [fault for fault in _faults(place) if "the sheet of events 1 to 256" in fault and "db rebuild" in fault]
    assert len(named) == (damage != "gone")
    rebuilt = CliRunner(env={"OMNI_HOME": str(place.directory)}).invoke(cli, ["db", "rebuild"])
    assert rebuilt.exit_code == 0, rebuilt.output
    assert _faults(place) == [] and len(_sheets(place)) == 4


async def test_a_sheet_of_anothers_run_is_shown_to_nobody_even_if_the_list_names_it(place: Place, runs: Runs) -> None:
    run, _ = runs
    mine, _, others, _ = _sheets(place)
    mine.write_bytes(others.read_bytes())
    with _changing(place) as connection:
        connection.execute("UPDATE sheets SET digest = (SELECT digest FROM sheets WHERE run = 2 AND number = 0)")
    with LogReader(place.file) as reader:
        assert reader.page_of_run(run).text == b",".join(_told(reader, run))


async def test_after_an_erasure_no_sheet_and_no_remainder_of_one_holds_the_text(place: Place, runs: Runs) -> None:
    other, run = runs
    theirs = {path.name: path.read_bytes() for path in _sheets(place)[:2]}
    async with place.open() as log:
        orphan = place.file.parent / "sheets" / "2-1.part"
        orphan.write_bytes(b"quincewort of a crash")
        assert set(_holding(place.file.parent, "quincewort")) > {"2-0.sheet", "2-1.sheet", "2-1.part"}
        with _eraser(place) as eraser:
            eraser.erase(run, reason="asked for")
        assert _holding(place.file.parent, "quincewort") == []
        page = await log.page_of_run(run, after=0, limit=1000)
        shown = orjson.loads(b"[%b]" % page.text)
        assert [event["payload"] for event in shown[:-1]] == [None] * EVENTS
        assert {path.name: path.read_bytes() for path in _sheets(place)[:2]} == theirs
        await log.append(other, said("goes on")).durable()
        await log.flush_index()
        assert len(_sheets(place)) == 4 and _holding(place.file.parent, "quincewort") == []
    with LogReader(place.file) as reader:
        assert reader.page_of_run(run).text == b",".join(_told(reader, run))
    assert _faults(place) == []


async def test_a_call_that_is_erased_takes_its_own_sheet_and_no_other(place: Place) -> None:
    async with place.open() as log:
        run, call = await new_run(log), new_id()
        for number in range(300):
            log.append(run, said(f"before {number}"))
        log.append(run, asked(call, word="quincewort"))
        log.append(run, answered(call, "quincewort"))
        for number in range(300):
            log.append(run, said(f"behind {number}"))
        await log.append(run, said("the last")).durable()
        await log.flush_index()
        kept, gone = (path.read_bytes() for path in _sheets(place))
        with _eraser(place) as eraser:
            eraser.erase(run, call=call, reason="asked for")
        now = [path.read_bytes() for path in _sheets(place)]
        assert kept in now and gone not in now
        assert _holding(place.file.parent, "quincewort") == []
        page = await log.page_of_run(run, after=301, limit=2)
        assert [event["payload"] for event in orjson.loads(b"[%b]" % page.text)] == [None, None]


async def test_what_cannot_be_taken_away_is_not_said_to_be_erased(place: Place, runs: Runs) -> None:
    _, run = runs
    first = _sheets(place)[2]
    first.unlink()
    first.mkdir()  # in its place something that cannot be overwritten
    with _eraser(place) as eraser, pytest.raises(LogUnavailable):
        eraser.erase(run, reason="asked for")
    first.rmdir()
    with LogReader(place.file) as reader:
        assert b"quincewort7" in reader.page_of_run(run).text


async def test_the_digest_of_a_sheet_lets_nobody_guess_a_text_that_was_in_it(place: Place, runs: Runs) -> None:
    """Digests lie in rows that SQLite moves. Two sheets of the same events share none."""
    async with place.open() as log:
        (before, *_), text = _digests(place), _sheets(place)[0].read_bytes()
        await log.rebuild_projections()
        (after, *_), again = _digests(place), _sheets(place)[0].read_bytes()
    assert before != after
    assert len(text) == len(again) and text[-1000:] == again[-1000:]


def _digests(place: Place) -> list[bytes]:
    with _changing(place) as connection:
        return [digest for (digest,) in connection.execute("SELECT digest FROM sheets ORDER BY run, number")]


async def test_dropped_and_made_again_sheets_hold_the_same_bytes(place: Place, runs: Runs) -> None:
    run, other = runs
    async with place.open() as log:
        with _eraser(place) as eraser:
            eraser.erase(other, reason="asked for")
        await log.append(run, said("goes on")).durable()
        await log.flush_index()
        before = [(path.name, path.read_bytes()[100:]) for path in _sheets(place)]
        await log.rebuild_projections()
        assert [(path.name, path.read_bytes()[100:]) for path in _sheets(place)] == before


async def test_a_database_from_before_there_were_sheets_opens_and_gets_them(place: Place, runs: Runs) -> None:
    run, _ = runs
    _make_older(place)
    async with place.open() as log:
        await _until(lambda: len(_sheets(place)) == 4)
        page = await log.page_of_run(run, after=0, limit=1000)
    with LogReader(place.file) as reader:
        assert page.text == b",".join(_told(reader, run))
    assert _faults(place) == []


def test_a_database_from_before_there_were_sheets_is_verified_as_it_is(place: Place, runs: Runs) -> None:
    _make_older(place)
    assert _faults(place) == []


def _make_older(place: Place) -> None:
    shutil.rmtree(place.file.parent / "sheets")
    with _changing(place) as connection:
        for table in ("sheets", "word_filters", "filtered"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("DELETE FROM schema_migrations WHERE version > 3")
        connection.execute("PRAGMA user_version = 3")


async def test_texts_that_are_too_large_to_be_read_at_once_make_no_sheet_though_little_of_them_is_shown(
    place: Place,
) -> None:
    async with place.open() as log:
        run = await new_run(log)
        for _ in range(SHEET_EVENTS):
            refused = AccessRefusedEvent(method="m", target="t", principal=ANNA.key, detail="d" * 17_000)
            ticket = log.append(run, draft(refused, actor="gateway"))
        await ticket.durable()
        await log.flush_index()
        page = await log.page_of_run(run, after=0, limit=1000)
    assert not (place.file.parent / "sheets").exists()
    with LogReader(place.file) as reader:
        assert page.text == b",".join(_told(reader, run))
    assert _faults(place) == []


async def test_no_more_large_rows_are_read_at_once_than_a_page_has_room_for(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log)
        for _ in range(20):
            ticket = log.append(run, said("x" * 100_000))
        await ticket.durable()
    with closing(open_reader(place.file)) as connection:
        stretches = list(stretches_of_run(connection, SheetFiles(place.file), run, after=1))
    assert [len(stretch.seqs) for stretch in stretches] == [1] * 20


def test_files_that_are_gone_are_struck_off_in_one_commit(place: Place) -> None:
    """A start of a large log whose sheets were left out of its backup must not wait for the disk once for each."""
    place.file.parent.mkdir()
    open_ledger(place.file, place.keys, events_per_run=100_000).ledger.connection.close()
    with _changing(place) as connection:
        rows = [(run, 0, b"a digest of a file that is gone, so") for run in range(500)]
        connection.executemany("INSERT INTO sheets VALUES (?, ?, ?)", rows)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        SheetFiles(place.file).sweep(connection)
        _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        assert connection.execute("SELECT count(*) FROM sheets").fetchone() == (0,)
    assert pages < 100


async def test_a_start_that_cannot_clear_up_says_so_in_words(place: Place, runs: Runs) -> None:
    (place.file.parent / "sheets" / "77-0.sheet").mkdir()
    with pytest.raises(LogUnavailable) as refused:
        async with place.open():
            pass

    assert "77-0.sheet" in refused.value.detail


def test_a_page_of_no_events_has_none(place: Place, runs: Runs) -> None:
    with LogReader(place.file) as reader:
        page = reader.page_of_run(runs[0], after=7, limit=0)
    assert (page.text, page.last, page.more) == (b"", 7, True)


async def test_a_start_clears_files_without_a_name_and_makes_again_what_is_gone(place: Place, runs: Runs) -> None:
    lost, kept, *_ = _sheets(place)
    lost.unlink()
    (place.file.parent / "sheets" / "77-0.sheet").write_bytes(b"left by a crash")
    (place.file.parent / "sheets" / "1-1.part").write_bytes(b"left by a crash")
    content = kept.read_bytes()
    async with place.open():
        assert _holding(place.file.parent, "left by a crash") == []
        await _until(lambda: lost in _sheets(place))
    assert len(_sheets(place)) == 4 and kept.read_bytes() == content


async def test_a_log_that_is_never_idle_gets_its_sheets_too(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log)
        for _ in range(SHEET_EVENTS):
            log.append(run, said("first"))
        async with asyncio.timeout(30):
            while not (place.file.parent / "sheets").is_dir():
                await log.append(run, said("next")).durable()


async def test_events_that_are_too_large_for_a_sheet_are_read_from_rows(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log)
        for _ in range(SHEET_EVENTS):
            log.append(run, said("large " * 1000))
        await log.append(run, said("the last")).durable()
        await log.flush_index()
    assert not (place.file.parent / "sheets").exists()
    with LogReader(place.file) as reader:
        page = reader.page_of_run(run, limit_bytes=10**9)
        assert page.text == b",".join(_told(reader, run)) and not page.more
    assert _faults(place) == []


async def _until(is_so: object) -> None:
    async with asyncio.timeout(30):
        while not is_so():  # type: ignore[operator]
            await asyncio.sleep(0.01)
