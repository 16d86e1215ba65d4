"""Forgetting: no byte of the text, its words, its names or its vector is in any file, whatever happened before."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from omni_mcp.contracts.memory import MemoryItem
from omni_mcp.engines.memory.removal import COMPACT_FROM_BYTES
from omni_mcp.engines.memory.store import SqliteMemory
from tests.memory.conftest import ANN, HOUR_NS, Place, item, recalled

CANARY = "zyzzogeton quixotry"
NAMES = "xylothek krummholz vespertilio brontide"  # key, subject, session, tag


def canary(size: int = 0, **more: object) -> MemoryItem:
    key, subject, session, tag = NAMES.split()
    facts = {"key": key, "subject": subject, "session": session, "tags": (tag,)} | more
    return item(f"{CANARY} {'filler ' * size}".strip(), **facts)


async def fill(store: SqliteMemory, dice: random.Random, count: int = 80) -> list[MemoryItem]:
    """Put items of all sizes, so that pages of the file split."""
    made = [item(" ".join(dice.choices(["lamp", "river", "moss"], k=dice.choice([3, 30, 300])))) for _ in range(count)]
    await store.put_many(made)
    return made


@pytest.mark.parametrize("size", [0, 100, 1500])
async def test_a_forgotten_item_is_in_no_file(place: Place, size: int) -> None:
    dice = random.Random(size)
    async with place.open() as store:
        await fill(store, dice)
        kept = await store.put(canary(size))
        await fill(store, dice)
        await recalled(store, CANARY)
        assert place.files_with(f"{CANARY} {NAMES}") != []
        await store.forget(kept.id, readers=ANN)
        assert place.files_with(f"{CANARY} {NAMES}") == []
    assert place.files_with(f"{CANARY} {NAMES}") == []


async def test_its_vector_and_its_words_go_as_well(place: Place) -> None:
    async with place.open() as store:
        kept = await store.put(canary())
        await store.settle()
        with sqlite3.connect(place.file) as looking:
            [(vector, words)] = looking.execute("SELECT vector, words FROM marks").fetchall()
        looking.close()
        assert vector in place.file.read_bytes() and words in place.file.read_bytes()
        await store.forget(kept.id, readers=ANN)
        assert vector not in place.file.read_bytes() and words not in place.file.read_bytes()


async def test_a_replaced_text_is_in_no_file_however_it_was_replaced(place: Place) -> None:
    async with place.open() as store:
        kept = await store.put(canary(100))
        await store.put(item("nothing new", id=kept.id, key="other"), expected_version=1)
        assert place.files_with(f"{CANARY} {NAMES}") == []
        await store.put(canary(3, key="k"))
        await store.put_many([item("nothing new", key="k"), item("more")])
        assert place.files_with(f"{CANARY} {NAMES}") == []


async def test_an_expired_item_is_in_no_file_after_the_sweep(place: Place) -> None:
    async with place.open() as store:
        await store.put(canary(expires_at_ns=place.clock.now_ns + HOUR_NS))
        place.clock.now_ns += HOUR_NS
        await store.sweep(now_ns=place.clock.now_ns)
        assert place.files_with(f"{CANARY} {NAMES}") == []


async def test_nothing_is_left_between_others_that_came_and_went(place: Place) -> None:
    """SQLite joins pages that are nearly empty, and a page that rows were moved from keeps their bytes.

    With this seed, a store that deletes its rows leaves a canary behind.
    """
    dice = random.Random(14)
    others = [item("moss " * dice.choice([1, 20, 100, 180, 300])) for _ in range(150)]
    canaries = [item(f"{CANARY} {'moss ' * dice.choice([1, 20, 100, 180, 300])}") for _ in range(60)]
    rows = [*others, *canaries]
    dice.shuffle(rows)
    dice.shuffle(others)
    async with place.open() as store:
        await store.put_many(rows)
        for one in [*others[:120], *canaries]:
            await store.forget(one.id, readers=ANN)
        assert place.files_with(CANARY) == []


async def test_room_is_given_back_and_nothing_is_left_by_that(place: Place) -> None:
    async with place.open() as store:
        kept = await store.put(canary(200))
        many = [item("lamp " * 3000) for _ in range(2 * COMPACT_FROM_BYTES // 15_000)]
        await store.put_many(many)
        await store.settle()
        full = place.file.stat().st_size
        await store.put_many([one.model_copy(update={"text": "small"}) for one in many])
        assert place.file.stat().st_size < full // 4
        assert [hit.item for hit in await recalled(store, CANARY, k=1)] == [kept]
        await store.forget(kept.id, readers=ANN)
        assert place.files_with(f"{CANARY} {NAMES}") == []


async def test_a_vacuum_that_was_cut_short_is_done_again(place: Place) -> None:
    async with place.open() as store:
        await store.put(item("lamp"))
    with sqlite3.connect(place.file) as other:
        other.execute("UPDATE state SET unclean = 1")
        other.execute("CREATE TABLE junk (text TEXT)")
        other.execute("INSERT INTO junk VALUES (?)", (CANARY,))
        other.execute("PRAGMA secure_delete = OFF")
        other.execute("DELETE FROM junk")
    other.close()
    assert place.files_with(CANARY) != []
    async with place.open() as store:
        await store.list_items(readers=ANN)
    assert place.files_with(CANARY) == []


KILLED = """
import asyncio, os, signal, sqlite3, sys
from pathlib import Path
from omni_mcp.engines.memory.store import open_memory
from tests.memory.conftest import ANN

async def main():
    async with open_memory(Path(sys.argv[1])) as store:
        found = await store.list_items(readers=ANN)
        reader = sqlite3.connect(sys.argv[1], isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM items").fetchone()  # an open snapshot: the log cannot be cut
        for one in found:
            await store.forget(one.id, readers=ANN)
        assert not await store.settle()
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_nothing_is_left_when_the_process_dies_before_the_log_is_cut(place: Place) -> None:
    async with place.open() as store:
        await store.put(canary(50))
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", KILLED, str(place.file)]
    died = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, check=False)
    assert died.returncode == -signal.SIGKILL
    assert place.files_with(f"{CANARY} {NAMES}") != []
    async with place.open() as store:
        assert await store.list_items(readers=ANN) == []
        assert place.files_with(f"{CANARY} {NAMES}") == []


async def test_the_file_is_private(place: Place) -> None:
    async with place.open() as store:
        assert not place.file.exists()
        await store.put(item("lamp"))
        assert all(file.stat().st_mode & 0o777 == 0o600 for file in place.directory.iterdir())
