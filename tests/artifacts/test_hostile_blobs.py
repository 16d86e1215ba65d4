"""E12: whatever was erased before it, in whatever order, no byte of a released blob and no name of it is left."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from omni_mcp.contracts.errors import NotFound
from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.engines.artifacts.store import open_artifacts
from omni_mcp.engines.secrets.masking import SecretMasker

ANN = 'User::"ann"@default'
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


async def test_a_registered_secret_in_what_is_said_of_a_blob_is_not_kept(tmp_path: Path) -> None:
    async with open_artifacts(tmp_path / "a", SecretMasker({"s": SECRET})) as store:
        ref = await store.put(b"x", media_type=f"text/{SECRET}", owner=ANN, run="r1", name=f"{SECRET}.txt")
        assert (ref.name, ref.media_type) == ("[masked:s].txt", "application/octet-stream")
        assert SECRET.encode() not in bytes_in(tmp_path)
