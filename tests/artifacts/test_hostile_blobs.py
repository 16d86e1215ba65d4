"""E12: whatever was erased before it, in whatever order, no byte of a released blob and no name of it is left."""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from omni_mcp.contracts.artifact import INLINE_LIMIT_BYTES
from omni_mcp.contracts.errors import NotFound
from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.engines.artifacts.references import REFERENCE_BYTES
from omni_mcp.engines.artifacts.store import open_artifacts
from omni_mcp.engines.artifacts.write_out import write_out
from omni_mcp.engines.secrets.masking import SecretMasker

ANN = 'User::"ann"@default'
NAME = "the-name-of-what-was-kept"
SECRET = "correct-horse-battery"


def bytes_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("seed", [21, 26, 35])
def test_an_erasure_does_not_hide_copies_of_what_is_erased_later(tmp_path: Path, seed: int) -> None:
    """Rows that are taken out of a page move their neighbours; what stays where they were is nobody's to overwrite."""
    dice = random.Random(seed)
    store = BlobStore(tmp_path / "a")
    for number in range(20):
        data = b"erased-%d-" % number * dice.randrange(20, 120)
        store.put(data, media_type="text/plain", owner=ANN, run=f"r{number}")
    order = list(range(20))
    dice.shuffle(order)
    for number in order:
        store.release(f"r{number}", store.held_by(f"r{number}"))
        assert b"erased-%d-" % number not in bytes_in(tmp_path)
    store.close()


@pytest.mark.parametrize("size", [100, 100_000])
def test_what_was_erased_can_be_stored_again_and_is_not_there_before(tmp_path: Path, size: int) -> None:
    store, data = BlobStore(tmp_path / "a"), b"k" * size
    sha256 = store.put(data, media_type="text/plain", owner=ANN, run="r1").sha256
    assert store.release("r1", [sha256]) == [sha256]
    with pytest.raises(NotFound):
        store.read(sha256)
    store.put(data, media_type="text/plain", owner=ANN, run="r2")
    assert store.read(sha256) == store.get(sha256, owner=ANN)[1] == data
    assert store.release("r1", [sha256]) == [], "it never held it"
    assert store.read(sha256) == data
    store.close()


def test_the_name_of_a_reference_goes_though_the_blob_stays(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "a")
    ref = store.put(b"shared", media_type="text/plain", owner=ANN, run="r1", name="my-diagnosis.txt")
    store.put(b"shared", media_type="text/plain", owner=ANN, run="r2", name="other.txt")
    assert store.release("r1", [ref.sha256]) == []
    assert b"my-diagnosis" not in bytes_in(tmp_path) and b"other.txt" in bytes_in(tmp_path)
    store.close()


@pytest.mark.parametrize("seed", [3, 6, 8, 9])
def test_no_name_that_went_stays_where_rows_moved_from(tmp_path: Path, seed: int) -> None:
    """Names of all lengths, held in many runs, erased in any order."""
    dice = random.Random(seed)
    store = BlobStore(tmp_path / "a")
    held: dict[str, tuple[str, str]] = {}
    for number in range(120):
        run, data = f"r{number}", b"blob %d" % dice.randrange(40)
        name = f"diagnosis-{number}-" + "x" * dice.randrange(300)
        held[run] = name, store.put(data, media_type="text/plain", owner=ANN, run=run, name=name).sha256
    order = list(held)
    dice.shuffle(order)
    for run in order[:60]:
        store.release(run, [held.pop(run)[1]])
    everything = bytes_in(tmp_path)
    left = [number for number in range(120) if b"diagnosis-%d-" % number in everything]
    assert left == [number for number in range(120) if f"r{number}" in held]
    for run, (name, sha256) in held.items():
        assert store.held_as(run, [name, "other"]) == [sha256] and store.held_as(run, ["other"]) == []
    store.close()


def test_a_store_of_an_earlier_version_keeps_its_names_and_loses_those_of_what_was_erased(tmp_path: Path) -> None:
    directory = tmp_path / "a"
    BlobStore(directory).close()
    old = sqlite3.connect(directory / "artifacts.db")
    old.executescript(
        "DROP TABLE refs; DROP TABLE titles; PRAGMA user_version = 2;"
        "CREATE TABLE refs (id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL REFERENCES blobs (sha256),"
        " owner TEXT NOT NULL, run TEXT NOT NULL, name TEXT NOT NULL, media_type TEXT NOT NULL, at_ns INTEGER NOT NULL,"
        " UNIQUE (sha256, owner, run, name)) STRICT;"
        "CREATE INDEX refs_owner ON refs (owner, id); CREATE INDEX refs_run ON refs (run);"
    )
    data = b"kept"
    sha256 = hashlib.sha256(data).hexdigest()
    old.execute("INSERT INTO blobs VALUES (?, ?, ?)", (sha256, len(data), data))
    for number in range(50):
        name = f"{'gone' if number % 2 else 'stays'}-{number}-{'y' * 100}"
        old.execute(
            "INSERT INTO refs VALUES (?, ?, ?, ?, ?, 'text/plain', 7)", (number, sha256, ANN, f"r{number}", name)
        )
    old.execute("DELETE FROM refs WHERE id % 2")
    old.commit()
    old.close()
    store = BlobStore(directory)
    found = store.page(owner=ANN, limit=100)
    assert [(number, ref.name, run) for number, ref, run, _ in reversed(found)] == [
        (number, f"stays-{number}-{'y' * 100}", f"r{number}") for number in range(0, 50, 2)
    ]
    assert store.held_bytes(ANN) == len(data) + 25 * 512
    assert b"gone-" not in bytes_in(tmp_path)
    assert store.release("r0", [sha256]) == [] and b"stays-0-" not in bytes_in(tmp_path)
    store.close()


async def test_a_registered_secret_in_what_is_said_of_a_blob_is_not_kept(tmp_path: Path) -> None:
    async with open_artifacts(tmp_path / "a", SecretMasker({"s": SECRET})) as store:
        ref = await store.put(b"x", media_type=f"text/{SECRET}", owner=ANN, run="r1", name=f"{SECRET}.txt")
        assert (ref.name, ref.media_type) == ("[masked:s].txt", "application/octet-stream")
        assert SECRET.encode() not in bytes_in(tmp_path)


def test_a_store_of_which_most_was_erased_gives_its_room_back_and_keeps_the_rest(tmp_path: Path) -> None:
    with closing(BlobStore(tmp_path / "a")) as store:
        kept = [
            store.put(os.urandom(INLINE_LIMIT_BYTES), media_type="text/plain", owner=ANN, run=f"r{number}", name=NAME)
            for number in range(40)
        ]
        for number in range(36):
            store.release(f"r{number}", [kept[number].sha256])
        held = store.held_bytes(ANN)
    database = tmp_path / "a" / "artifacts.db"
    before = database.stat().st_size
    BlobStore(tmp_path / "a").close()
    untouched = database.stat().st_size
    with closing(BlobStore(tmp_path / "a", shrink_from_bytes=1)) as store:
        after = database.stat().st_size
        found = [store.get(one.sha256, owner=ANN)[0] for one in kept[36:]]
        again = store.put(b"new", media_type="text/plain", owner=ANN, run="r1", name="new")
        assert store.get(again.sha256, owner=ANN) == (again, b"new")
        assert store.held_bytes(ANN) == held + 3 + REFERENCE_BYTES
        store.release("r1", [again.sha256])
        for number in range(36, 40):
            store.release(f"r{number}", [kept[number].sha256])

    assert untouched == before and after < before / 4
    assert found == kept[36:]
    assert NAME.encode() not in bytes_in(tmp_path / "a")


def test_a_store_of_which_little_was_erased_is_left_as_it_is(tmp_path: Path) -> None:
    with closing(BlobStore(tmp_path / "a")) as store:
        kept = [
            store.put(os.urandom(INLINE_LIMIT_BYTES), media_type="text/plain", owner=ANN, run=f"r{number}")
            for number in range(10)
        ]
        store.release("r0", [kept[0].sha256])
    database = tmp_path / "a" / "artifacts.db"
    before = database.read_bytes()
    BlobStore(tmp_path / "a", shrink_from_bytes=1).close()

    assert database.read_bytes() == before


def test_what_cannot_be_brought_to_the_disk_is_an_error_and_not_taken_for_written(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"x" * 10_000)
        write_out(file.fileno(), 0, 10_000)
        closed = file.fileno()
    reading, writing = os.pipe()
    try:
        for descriptor in (closed, writing):
            with pytest.raises(OSError):
                write_out(descriptor, 0, 10_000)
    finally:
        os.close(reading)
        os.close(writing)
