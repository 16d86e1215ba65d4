"""Filters only say where a word cannot be: with them a search finds the same, looks into less, and forgets as well."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from omni_mcp.contracts.errors import OmniError
from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.engines.runlog.compare import projection_faults
from omni_mcp.engines.runlog.connection import open_reader, translated
from omni_mcp.engines.runlog.erase import Eraser
from omni_mcp.engines.runlog.finding import Finder
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.runlog.search_index import Query, digest_of_shard, refill_shards
from omni_mcp.engines.runlog.store import open_ledger, rebuild_projections
from omni_mcp.engines.runlog.word_filters import (
    SLICE_BYTES,
    SLICES,
    WORDS_LIMIT,
    WordSieve,
    filter_of,
    made,
    make,
    stored,
)
from tests.bench.log_fill import LONG_AGO, NOW_AND_THEN, fill
from tests.runlog.conftest import Place, new_run, said

EVENTS = 33_000  # a full table of the index and the beginning of a second
WORDS = {
    LONG_AGO: 8, NOW_AND_THEN: 1, LONG_AGO.upper(): 8, "médlarium": 8, "files_read": 50, "list every": 50, "nosuch": 0,
    "files nosuch": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with many events, and a filter for each full table, made by a gateway that had nothing else to do."""
    place = Place(tmp_path_factory.mktemp("written"))
    place.file.parent.mkdir()
    fill(place.file, place.keys, EVENTS)

    async def idle() -> None:
        async with place.open():
            with _changing(place) as connection:
                async with asyncio.timeout(60):
                    while made(connection) != [0]:
                        await asyncio.sleep(0.01)

    asyncio.run(idle())
    return place.directory


@pytest.fixture
def full(place: Place, written: Path) -> Place:
    """The same for one test, which may spoil it."""
    shutil.copytree(written, place.directory, dirs_exist_ok=True)
    return place


@contextmanager
def _changing(place: Place) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(place.file, isolation_level=None)) as connection:
        yield connection


def _found(place: Place, word: str) -> list[int]:
    with closing(open_reader(place.file)) as connection:
        finder = Finder(connection, lambda run: None, in_vain=0)
        try:
            return [event.gid for event in finder.find(Query(word), principal=None, run=None, limit=50)]
        except sqlite3.Error as error:
            raise translated(error, place.file) from error


def test_a_search_finds_the_same_with_filters_and_without(full: Place) -> None:
    with_filters = {word: _found(full, word) for word in WORDS}
    with _changing(full) as connection:
        connection.execute("DELETE FROM filtered")
    assert {word: _found(full, word) for word in WORDS} == with_filters
    assert {word: len(found) for word, found in with_filters.items()} == WORDS


@pytest.mark.long
def test_a_full_table_is_merged_into_one_piece_and_finds_the_same(full: Place) -> None:
    """It was filled commit by commit; an idle gateway joined what that left."""
    with _changing(full) as connection:
        assert _pieces(connection) == 1
        there = digest_of_shard(connection, "search_0")
        refill_shards(connection, [1])  # as an erasure does it
        assert _pieces(connection) > 1 and digest_of_shard(connection, "search_0") == there
    found = {word: _found(full, word) for word in WORDS}
    ledger = open_ledger(full.file, full.keys, events_per_run=100_000).ledger
    ledger.make_copies()
    assert _pieces(ledger.connection) == 1 and made(ledger.connection) == [0]
    assert digest_of_shard(ledger.connection, "search_0") == there
    ledger.connection.close()
    assert {word: _found(full, word) for word in WORDS} == found


def _pieces(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(DISTINCT segid) FROM search_0_idx").fetchone()[0])


async def test_a_table_without_the_word_is_not_looked_into(full: Place) -> None:
    """A broken table says who looks into it."""
    async with full.open() as log:
        await log.append(await new_run(log), said("persimmon")).durable()
        await log.flush_index()
    with _changing(full) as connection:
        connection.execute("UPDATE search_0_data SET block = CAST('not what it was' AS BLOB)")
    assert len(_found(full, "persimmon")) == 1
    with _changing(full) as connection:
        connection.execute("DELETE FROM filtered")
    with pytest.raises(OmniError):
        _found(full, "persimmon")


def test_an_erased_word_is_in_no_filter_and_no_remainder_of_one(full: Place) -> None:
    with LogReader(full.file) as reader:
        asked = next(event for event in reader.events_since(0, limit=50) if event.kind == "tool_call")
    word = str(asked.call).rpartition("-")[2]  # in this call and its answer only
    assert _sieve(full, word)
    ledger = open_ledger(full.file, full.keys, events_per_run=100_000).ledger
    with closing(BlobStore(full.file.parent / "artifacts")) as blobs:
        Eraser(ledger, full.file, blobs, by="operator:test").erase(asked.run, call=asked.call, reason="asked for")
    assert made(ledger.connection) == []
    assert not any(any(bits) for (bits,) in ledger.connection.execute("SELECT bits FROM word_filters").fetchall())
    ledger.make_copies()
    assert made(ledger.connection) == [0] and not _sieve(full, word)
    assert stored(ledger.connection, 0) == filter_of(ledger.connection, "search_0")
    ledger.connection.close()


def _sieve(place: Place, word: str) -> bool:
    with _changing(place) as connection:
        return WordSieve(connection, [word]).may_have(0)


async def test_a_filter_that_hides_the_words_of_its_table_is_named(place: Place) -> None:
    async with place.open() as log:
        await log.append(await new_run(log), said("persimmon")).durable()
        await log.flush_index()
    with _changing(place) as connection:
        make(connection, 0)  # as it is made of a full table
    assert projection_faults(place.file) == []
    with _changing(place) as connection:
        connection.execute("UPDATE word_filters SET bits = zeroblob(length(bits))")
    named = [what.partition(";")[0] for _, what in projection_faults(place.file)]
    assert named == ["the filter of events 1 to 32767 is not theirs"]


@pytest.mark.long
def test_what_hides_a_word_is_named_and_a_rebuild_mends_it(full: Place) -> None:
    with _changing(full) as connection:
        before = stored(connection, 0)
        connection.execute("UPDATE word_filters SET bits = zeroblob(length(bits)) WHERE id < 40")
    named = [what for _, what in projection_faults(full.file)]
    assert [what.partition(";")[0] for what in named] == ["the filter of events 1 to 32767 is not theirs"]
    ledger = open_ledger(full.file, full.keys, events_per_run=100_000).ledger
    rebuild_projections(ledger)
    assert stored(ledger.connection, 0) == before and made(ledger.connection) == [0]
    ledger.connection.close()


def test_filters_that_are_gone_or_too_short_hide_nothing(full: Place) -> None:
    before = {word: _found(full, word) for word in WORDS}
    for statement in ("UPDATE word_filters SET bits = x'00'", "DELETE FROM word_filters"):
        with _changing(full) as connection:
            connection.execute(statement)
        assert {word: _found(full, word) for word in WORDS} == before


def test_a_log_from_before_there_were_filters_is_searched_as_it_is(full: Place) -> None:
    before = {word: _found(full, word) for word in WORDS}
    with _changing(full) as connection:
        connection.execute("DROP TABLE filtered")
        connection.execute("DROP TABLE word_filters")
    assert {word: _found(full, word) for word in WORDS} == before


@pytest.mark.parametrize(
    "damage", ["UPDATE word_filters SET bits = x'00' WHERE id = 3", "DELETE FROM word_filters WHERE id = 3"]
)
def test_a_damaged_filter_does_not_keep_an_erasure_from_its_work_and_is_made_again(full: Place, damage: str) -> None:
    with _changing(full) as connection:
        connection.execute(damage)
    with LogReader(full.file) as reader:
        run = reader.events_since(0, limit=1)[0].run
    ledger = open_ledger(full.file, full.keys, events_per_run=100_000).ledger
    with closing(ledger.connection), closing(BlobStore(full.file.parent / "artifacts")) as blobs:
        Eraser(ledger, full.file, blobs, by="operator:test").erase(run, reason="asked for")
        ledger.make_copies()
        assert made(ledger.connection) == [0]
        assert stored(ledger.connection, 0) == filter_of(ledger.connection, "search_0")


def test_a_table_with_more_words_than_a_filter_tells_apart_is_one_that_may_have_every_word() -> None:
    """To collect millions of words, which one client can send, takes the memory and holds up the writer."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE VIRTUAL TABLE search_0 USING fts5(text, content='', columnsize=0)")
        for row in range(0, WORDS_LIMIT + 1, 10_000):
            words = " ".join(map(str, range(row, min(row + 10_000, WORDS_LIMIT + 1))))
            connection.execute("INSERT INTO search_0 (rowid, text) VALUES (?, ?)", (row, words))
        assert filter_of(connection, "search_0") == [b"\xff" * SLICE_BYTES] * SLICES


async def test_a_table_that_still_grows_has_no_filter(full: Place) -> None:
    async with full.open() as log:
        await log.append(await new_run(log), said("a fresh medlarium")).durable()
        await log.flush_index()
        assert len(await log.search(LONG_AGO)) == 9
        with _changing(full) as connection:
            assert made(connection) == [0]
            assert connection.execute("SELECT count(*) FROM word_filters").fetchone()[0] == SLICES
