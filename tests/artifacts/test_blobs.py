"""Artifacts: stored once, seen only by their owners, gone when nobody refers to them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.artifact import INLINE_LIMIT_BYTES
from omni_mcp.contracts.errors import Internal, LogCorrupt, NotFound, QuotaExceeded
from omni_mcp.contracts.large import KeptFile
from omni_mcp.engines.artifacts.blob_files import BlobFiles
from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.engines.artifacts.references import NAMES_LOOKED_AT, REFERENCE_BYTES
from omni_mcp.engines.artifacts.store import open_artifacts
from omni_mcp.engines.secrets.masking import SecretMasker

ROUNDS = 200
ANNA, BERT = 'User::"anna"@default', 'User::"bert"@default'


def _files(place: Path) -> list[Path]:
    return [path for path in (place / "blobs").rglob("*") if path.is_file()]


@pytest.mark.parametrize("size", [0, 1, INLINE_LIMIT_BYTES, INLINE_LIMIT_BYTES + 1, 3 * 1024 * 1024])
async def test_bytes_come_back_as_they_were_and_only_to_their_owner(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    async with open_artifacts(tmp_path / "a", SecretMasker({})) as store:
        reference = await store.put(data, media_type="text/csv", owner=ANNA, run="r1", name="out/report.csv")
        again = await store.put(data, media_type="text/csv", owner=ANNA, run="r1", name="out/report.csv")
        assert again == reference
    async with open_artifacts(tmp_path / "a", SecretMasker({})) as store:
        assert await store.get(reference.sha256, owner=ANNA) == (reference, data)
        assert await store.list_refs(owner=ANNA) == [reference]
        assert await store.list_refs(owner=BERT) == []
        for sha256, owner in ((reference.sha256, BERT), ("0" * 64, ANNA), ("../../etc/passwd", ANNA)):
            with pytest.raises(NotFound) as refusal:
                await store.get(sha256, owner=owner)
            assert refusal.value.message == "there is no such artifact"
    assert len(_files(tmp_path / "a")) == (1 if size > INLINE_LIMIT_BYTES else 0)
    assert all(
        stat.S_IMODE(path.stat().st_mode) == 0o600
        for path in [*_files(tmp_path / "a"), tmp_path / "a" / "artifacts.db"]
    )


async def test_the_same_bytes_of_two_owners_are_kept_once_and_each_owner_gets_their_own_name(tmp_path: Path) -> None:
    async with open_artifacts(tmp_path / "a", SecretMasker({})) as store:
        data = b"x" * 100_000
        first = await store.put(data, media_type="text/plain", owner=ANNA, run="r1", name="a.txt")
        await store.put(data, media_type="text/plain", owner=BERT, run="r2", name="b.txt")
        assert len(_files(tmp_path / "a")) == 1
        assert (await store.get(first.sha256, owner=BERT))[0].name == "b.txt"


@pytest.mark.parametrize("size", [100, 200_000])
def test_a_blob_goes_with_its_last_reference_and_leaves_no_byte(tmp_path: Path, size: int) -> None:
    store = BlobStore(tmp_path / "a")
    data = (b"remember-me " * size)[:size]
    first = store.put(data, media_type="text/plain", owner=ANNA, run="r1")
    store.put(data, media_type="text/plain", owner=BERT, run="r2")
    assert store.held_by("r1") == [first.sha256]
    assert store.release("r1", [first.sha256]) == []
    assert store.get(first.sha256, owner=BERT)[1] == data
    with pytest.raises(NotFound):
        store.get(first.sha256, owner=ANNA)
    assert store.release("r2", [first.sha256]) == [first.sha256]
    assert store.release("r2", [first.sha256]) == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"remember-me" in path.read_bytes()]
    store.close()


def test_what_a_crash_left_half_written_is_removed_and_never_shown(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "a")
    kept = store.put(b"k" * 100_000, media_type="text/plain", owner=ANNA, run="r1")
    store.close()
    half = tmp_path / "a" / "blobs" / kept.sha256[:2] / f"{kept.sha256}.1.part"
    half.write_bytes(b"half")
    nobodys = half.with_name("f" * 64)
    nobodys.write_bytes(b"no row names this")
    store = BlobStore(tmp_path / "a")
    assert [path.name for path in _files(tmp_path / "a")] == [kept.sha256]
    store.close()


def test_damaged_bytes_are_not_handed_out(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "a")
    reference = store.put(b"k" * 100_000, media_type="text/plain", owner=ANNA, run="r1")
    _files(tmp_path / "a")[0].write_bytes(b"j" * 100_000)
    with pytest.raises(LogCorrupt):
        store.get(reference.sha256, owner=ANNA)
    _files(tmp_path / "a")[0].unlink()
    with pytest.raises(LogCorrupt):
        store.get(reference.sha256, owner=ANNA)
    store.put(b"k" * 100_000, media_type="text/plain", owner=ANNA, run="r1")
    assert store.get(reference.sha256, owner=ANNA)[1] == b"k" * 100_000
    store.close()


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o777)
    with pytest.raises(PermissionError):
        BlobStore(tmp_path / "a")


@pytest.mark.parametrize("carrier", [b"%s", b"\xff\x00%s\xfe", b'{"key": "%s"}'])
async def test_a_registered_secret_is_in_no_kept_blob(tmp_path: Path, carrier: bytes) -> None:
    masker = SecretMasker({"vault": "s3cr3t-value-of-mine"})
    for form in (
        b"s3cr3t-value-of-mine",
        base64.b64encode(b"s3cr3t-value-of-mine"),
        b"s3cr3t-value-of-mine".hex().encode(),
    ):
        async with open_artifacts(tmp_path / "a", masker) as store:
            data = carrier % form + b"." * INLINE_LIMIT_BYTES
            ref = await store.put(data, media_type="text/plain", owner=ANNA, run="r1")
            _, kept = await store.get(ref.sha256, owner=ANNA)
        assert form not in kept
        assert all(form not in path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file())


KIB = 1024


def test_an_owner_keeps_no_more_than_their_quota_and_nobody_else_pays_for_it(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "a", owner_quota_bytes=300 * KIB)
    first = store.put(os.urandom(200 * KIB), media_type="text/plain", owner=ANNA, run="r1")
    with pytest.raises(QuotaExceeded, match=r"omni-mcp erase RUN.*limits\.artifact_bytes_per_principal") as refusal:
        store.put(b"z" * 100 * KIB, media_type="text/plain", owner=ANNA, run="r1")
    assert refusal.value.data["limit_bytes"] == 300 * KIB
    assert [path.name for path in _files(tmp_path / "a")] == [first.sha256]
    assert len(store.list_refs(owner=ANNA)) == 1
    store.put(b"z" * 100 * KIB, media_type="text/plain", owner=BERT, run="r2")
    store.release("r1", [first.sha256])
    store.put(b"z" * 100 * KIB, media_type="text/plain", owner=ANNA, run="r3")
    store.close()


def test_the_same_bytes_cost_their_owner_once_and_rows_without_bytes_cost_something(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "a", owner_quota_bytes=110 * KIB)
    for run in ("r1", "r2", "r2", "r3"):
        ref = store.put(b"k" * 100 * KIB, media_type="text/plain", owner=ANNA, run=run)
    assert store.held_bytes(ANNA) == 100 * KIB + 3 * REFERENCE_BYTES
    for run in ("r1", "r3", "r1"):
        store.release(run, [ref.sha256])
    assert store.held_bytes(ANNA) == 100 * KIB + REFERENCE_BYTES
    with pytest.raises(QuotaExceeded):
        for number in range(100):
            store.put(b"", media_type="text/plain", owner=ANNA, run=f"empty{number}")
    for run in ("r2", *(f"empty{number}" for number in range(100))):
        store.release(run, store.held_by(run))
    assert store.held_bytes(ANNA) == 0
    store.close()


def test_a_store_from_before_there_were_quotas_is_counted_when_it_is_opened(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "a")
    for owner, run in ((ANNA, "r1"), (ANNA, "r2"), (BERT, "r3")):
        store.put(b"k" * 100_000, media_type="text/plain", owner=owner, run=run)
    store.put(b"small", media_type="text/plain", owner=ANNA, run="r1")
    held = store.held_bytes(ANNA), store.held_bytes(BERT)
    store.close()
    old = sqlite3.connect(tmp_path / "a" / "artifacts.db")
    old.executescript("DROP TABLE owners; PRAGMA user_version = 1;")
    old.close()
    store = BlobStore(tmp_path / "a")
    assert (store.held_bytes(ANNA), store.held_bytes(BERT)) == held == (100_005 + 3 * REFERENCE_BYTES, 100_000 + 512)
    store.close()


@pytest.mark.parametrize("size", [100, 200_000])
def test_a_blob_that_comes_from_a_file_is_as_one_that_comes_from_memory(tmp_path: Path, size: int) -> None:
    store = BlobStore(tmp_path / "a", owner_quota_bytes=size + 2 * REFERENCE_BYTES)
    data = os.urandom(size)
    sha256 = hashlib.sha256(data).hexdigest()
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        file.write(b"before" + data + b"after")
        facts: dict[str, Any] = {
            "file": file.fileno(),
            "start": 6,
            "size_bytes": size,
            "sha256": sha256,
            "media_type": "text/plain",
        }
        kept = KeptFile(**facts, preview="")
        from_file = store.put_file(kept, owner=ANNA, run="r1", name="a")
        with pytest.raises(QuotaExceeded):
            store.put_file(KeptFile(**facts | {"sha256": "0" * 64}, preview=""), owner=ANNA, run="r1", name="a")
    from_memory = store.put(data, media_type="text/plain", owner=ANNA, run="r2", name="a")
    found = store.get(sha256, owner=ANNA)
    kept_once = len(_files(tmp_path / "a"))
    gone = [store.release(run, [sha256]) for run in ("r1", "r2")]
    store.close()

    assert from_file == from_memory == found[0] and found[1] == data
    assert kept_once == (1 if size > INLINE_LIMIT_BYTES else 0)
    assert gone == [[], [sha256]] and _files(tmp_path / "a") == []


def test_a_file_that_is_shorter_than_was_said_leaves_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "a")
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        file.write(b"x" * 100_000)
        kept = KeptFile(
            file=file.fileno(), start=0, size_bytes=100_001, sha256="0" * 64, media_type="text/plain", preview=""
        )
        with pytest.raises(Internal):
            store.put_file(kept, owner=ANNA, run="r1")
    held = store.held_bytes(ANNA)
    store.close()

    assert held == 0 and _files(tmp_path / "a") == []


async def test_nobody_waits_while_a_large_blob_is_on_its_way_to_the_disk(tmp_path: Path) -> None:
    data = b"x" * 200_000
    sha256 = hashlib.sha256(data).hexdigest()
    async with open_artifacts(tmp_path / "a", SecretMasker({})) as store:
        other = BlobStore(tmp_path / "a")
        known = await store.put(b"known" * 100_000, media_type="text/plain", owner=BERT, run="r2")
        [writer] = [thread for thread in threading.enumerate() if thread.name.startswith("large artifacts")]
        place = tmp_path / "a" / "blobs" / sha256[:2]
        place.mkdir(mode=0o700)
        stuck = place / f"{sha256}.{writer.native_id}.part"
        os.mkfifo(stuck)  # whoever opens it to write waits for a reader
        large = asyncio.create_task(store.put(data, media_type="text/plain", owner=ANNA, run="r1"))
        try:
            async with asyncio.timeout(30):
                found = await store.get(known.sha256, owner=BERT)
                small = await store.put(b"small", media_type="text/plain", owner=BERT, run="r2")
                elsewhere = await asyncio.to_thread(
                    other.put, b"elsewhere", media_type="text/plain", owner=BERT, run="r3"
                )
                held, is_under_way = await store.held_bytes(ANNA), not large.done()
        finally:
            other.close()
            os.close(await asyncio.to_thread(os.open, stuck, os.O_RDONLY))
        with pytest.raises(Internal):
            await large
        again = await store.put(data, media_type="text/plain", owner=ANNA, run="r1")
        whole = await store.get(again.sha256, owner=ANNA)

    assert is_under_way and held == 0
    assert found[0] == known and (small.size, elsewhere.size) == (5, 9)
    assert whole == (again, data)


def test_another_process_that_opens_the_store_leaves_what_is_being_written(tmp_path: Path) -> None:
    files = BlobFiles(tmp_path / "a" / "blobs")
    sha256 = "0" * 64
    with files.written(sha256, b"x" * 100_000) as part:
        BlobStore(tmp_path / "a").close()
        assert part.read_bytes() == b"x" * 100_000
        files.put_in_place(sha256, part)

    assert files.read(sha256) == b"x" * 100_000
    BlobStore(tmp_path / "a").close()
    assert _files(tmp_path / "a") == []


def test_a_blob_that_comes_and_goes_elsewhere_is_there_for_whoever_stored_it(tmp_path: Path) -> None:
    data = b"x" * 100_000
    sha256 = hashlib.sha256(data).hexdigest()

    def come_and_go(number: int) -> int:
        whole = 0
        with closing(BlobStore(tmp_path / "a")) as store:
            for _ in range(ROUNDS):
                store.put(data, media_type="text/plain", owner=ANNA, run=f"r{number}")
                whole += store.get(sha256, owner=ANNA)[1] == data
                store.release(f"r{number}", [sha256])
        return whole

    with ThreadPoolExecutor(3) as threads:
        whole = list(threads.map(come_and_go, range(3)))

    assert whole == [ROUNDS] * 3
    assert _files(tmp_path / "a") == []


def test_one_answer_under_many_names_costs_no_look_at_all_of_them(tmp_path: Path) -> None:
    with closing(BlobStore(tmp_path / "a")) as store:
        for number in range(NAMES_LOOKED_AT + 1):
            store.put(b"same", media_type="text/plain", owner=ANNA, run="r1", name=f"result of {number}")
        before = store.held_bytes(ANNA)
        store.put(b"same", media_type="text/plain", owner=ANNA, run="r1", name=f"result of {NAMES_LOOKED_AT}")
        known = store.held_bytes(ANNA)
        store.put(b"same", media_type="text/plain", owner=ANNA, run="r1", name="result of 0")
        anew = store.held_bytes(ANNA)

    assert known == before
    assert anew == before + REFERENCE_BYTES
