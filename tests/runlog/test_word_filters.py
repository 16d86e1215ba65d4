"""Filters only say where a word cannot be: a search finds the same with them, looks into fewer tables, forgets as well."""

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
from omni_mcp.engines.runlog.erase import Eraser
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.runlog.store import open_ledger, rebuild_projections
from omni_mcp.engines.runlog.word_filters import SLICE_BYTES, SLICES, WordSieve, filter_of, made, stored
from tests.bench.log_fill import LONG_AGO, NOW_AND_THEN, fill
from tests.runlog.conftest import Place, new_run, said

EVENTS = 66_000  # two full tables of the index and the beginning of a third
WORDS = [
    LONG_AGO,
    NOW_AND_THEN,
    LONG_AGO.upper(),
    "médlarium",
    "files_read",
    "list every",
    "nosuchword",
    "tools nosuch",
]


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
                    while made(connection) != [0, 1]:
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
    with LogReader(place.file) as reader:
        return [event.gid for event in reader.search(word, limit=50)]


def test_a_search_finds_the_same_with_filters_and_without(full: Place) -> None:
    with_filters = {word: _found(full, word) for word in WORDS}
    with _changing(full) as connection:
        connection.execute("DELETE FROM filtered")
    assert {word: _found(full, word) for word in WORDS} == with_filters
    assert [len(with_filters[word]) for word in WORDS] == [17, 3, 17, 17, 50, 50, 0, 0]


def test_a_table_without_the_word_is_not_looked_into(full: Place) -> None:
    """A broken table says who looks: a search for what is only in the first does not notice that the second is."""
    before = _found(full, LONG_AGO)
    with _changing(full) as connection:
        connection.execute("UPDATE search_1_data SET block = zeroblob(4)")
    assert _found(full, LONG_AGO) == before
    with _changing(full) as connection:
        connection.execute("DELETE FROM filtered")
    with pytest.raises(OmniError):
        _found(full, LONG_AGO)


async def test_an_erased_word_is_in_no_filter_and_no_remainder_of_one(full: Place) -> None:
    word = "loquatine-of-a-secret"
    with LogReader(full.file) as reader:
        [oldest, *_] = reader.events_since(0, limit=1)
        alone = next(event for event in reader.events(oldest.run) if event.kind == "tool_call")
        word = str(alone.call).rpartition("-")[2]  # in this call and its answer only
    assert _sieve(full, word) == [True, False]
    ledger = open_ledger(full.file, full.keys, events_per_run=100_000).ledger
    with closing(BlobStore(full.file.parent / "artifacts")) as blobs:
        Eraser(ledger, full.file, blobs, by="operator:test").erase(oldest.run, call=alone.call, reason="asked for")
    assert made(ledger.connection) == [1]
    for row in ledger.connection.execute("SELECT bits FROM word_filters").fetchall():
        assert not any(row[0][:SLICE_BYTES]) and any(row[0][SLICE_BYTES : 2 * SLICE_BYTES])
    ledger.make_copies()
    assert made(ledger.connection) == [0, 1] and _sieve(full, word) == [False, False]
    assert stored(ledger.connection, 0) == filter_of(ledger.connection, "search_0")
    ledger.connection.close()


def _sieve(place: Place, word: str) -> list[bool]:
    with _changing(place) as connection:
        return [WordSieve(connection, [word]).may_have(number) for number in (0, 1)]


def test_what_hides_a_word_is_named_and_a_rebuild_mends_it(full: Place) -> None:
    assert projection_faults(full.file) == []
    with _changing(full) as connection:
        before = [stored(connection, number) for number in (0, 1)]
        connection.execute("UPDATE word_filters SET bits = zeroblob(length(bits)) WHERE id < 40")
    named = [what for _, what in projection_faults(full.file)]
    assert [what.partition(" is not theirs")[0] for what in named] == [
        "the filter of events 1 to 32767",
        "the filter of events 32768 to 65535",
    ]
    ledger = open_ledger(full.file, full.keys, events_per_run=100_000).ledger
    rebuild_projections(ledger)
    assert [stored(ledger.connection, number) for number in (0, 1)] == before
    ledger.connection.close()
    assert projection_faults(full.file) == []


def test_filters_that_are_gone_or_too_short_hide_nothing(full: Place) -> None:
    before = {word: _found(full, word) for word in WORDS}
    for statement in ("UPDATE word_filters SET bits = x'00'", "DELETE FROM word_filters"):
        with _changing(full) as connection:
            connection.execute(statement)
        assert {word: _found(full, word) for word in WORDS} == before


async def test_a_table_that_still_grows_has_no_filter(full: Place) -> None:
    async with full.open() as log:
        await log.append(await new_run(log), said("a fresh medlarium")).durable()
        await log.flush_index()
        assert len(await log.search(LONG_AGO)) == 18
        with _changing(full) as connection:
            assert made(connection) == [0, 1]
            assert connection.execute("SELECT count(*) FROM word_filters").fetchone()[0] == SLICES
