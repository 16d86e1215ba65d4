"""What the memory refuses, and what it does when the file is not what it should be."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import numpy as np
import pytest
from numpy import float32
from numpy.typing import NDArray

from omni_mcp.contracts.errors import BadRequest, MemoryUnavailable, QuotaExceeded
from omni_mcp.engines.memory.rows import Limits
from tests.memory.conftest import ANN, Place, item, recalled, texts


async def test_an_owner_has_only_so_many_items_and_others_theirs(place: Place) -> None:
    async with place.open(limits=Limits(items=2)) as store:
        first = await store.put(item("one"))
        await store.put(item("two", key="k"))
        with pytest.raises(QuotaExceeded) as refused:
            await store.put(item("three"))
        assert "ann" not in refused.value.message
        with pytest.raises(QuotaExceeded):
            await store.put_many([item("other", owner="Agent::bob"), item("three")])
        assert (await store.put(item("instead of two", key="k"))).version == 2
        await store.put(item("another's", owner="Agent::bob"))
        await store.forget(first.id, readers=ANN)
        await store.put(item("three"))
        assert {one.text for one in await store.list_items(readers=ANN)} == {"instead of two", "three"}


async def test_an_owner_has_only_so_many_bytes(place: Place) -> None:
    async with place.open(limits=Limits(bytes=1000)) as store:
        first = await store.put(item("x" * 600))
        with pytest.raises(QuotaExceeded):
            await store.put(item("y" * 400))
        with pytest.raises(QuotaExceeded):
            await store.put(item("x" * 1000, id=first.id))
        assert (await store.get(first.id, readers=ANN)).text == "x" * 600
        await store.put(item("short", id=first.id))
        await store.put(item("y" * 400))


async def test_a_time_that_cannot_be_kept_is_refused(place: Place) -> None:
    async with place.open() as store:
        for name in ("at_ns", "created_at_ns", "expires_at_ns"):
            with pytest.raises(BadRequest):
                await store.put(item("late", **{name: 1 << 63}))
        assert await store.list_items(readers=ANN) == []


async def test_a_newer_database_is_refused_and_stays_as_it_was(place: Place) -> None:
    async with place.open() as store:
        await store.put(item("from the future"))
    with sqlite3.connect(place.file) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    async with place.open() as store:
        with pytest.raises(MemoryUnavailable) as refused:
            await store.put(item("from the past"))
    assert "newer" in refused.value.message and "99" in refused.value.detail


async def test_a_file_that_others_can_read_or_that_is_none_is_refused(place: Place) -> None:
    place.file.write_bytes(b"no database at all" * 100)
    place.file.chmod(0o644)
    async with place.open() as store:
        with pytest.raises(MemoryUnavailable) as open_to_all:
            await store.list_items(readers=ANN)
        place.file.chmod(0o600)
        with pytest.raises(MemoryUnavailable) as no_database:
            await recalled(store, "anything")
    assert "chmod" in open_to_all.value.detail and "not a database" in no_database.value.detail
    assert str(place.file) not in open_to_all.value.message + no_database.value.message


async def test_a_missing_directory_fails_the_call_and_not_the_gateway(place: Place) -> None:
    place.directory = place.directory / "later"
    async with place.open() as store:
        with pytest.raises(MemoryUnavailable):
            await store.put(item("too early"))
        place.directory.mkdir()
        await store.put(item("in time"))
        assert await texts(store, "time") == ["in time"]


class Backwards:
    """Another embedder: texts of one length mean the same."""

    name = "backwards-1"
    dimensions = 16

    def embed(self, texts: Sequence[str]) -> NDArray[float32]:
        rows = np.zeros((len(texts), 16), dtype=float32)
        for row, text in zip(rows, texts, strict=True):
            row[len(text) % 16] = 1
        return rows


async def test_another_embedder_marks_what_is_there_anew(place: Place) -> None:
    """Vectors of different models are never compared."""
    async with place.open() as store:
        await store.put_many([item("tin kettle"), item("a copper pan")])
        before = await recalled(store, "tin kettle")
    async with place.open(embedder=Backwards) as store:
        [first, *_] = await recalled(store, "tin kettle")
        assert first.item.text == "tin kettle" and first.parts["meaning"] > 0
        assert [hit.item.text for hit in await recalled(store, "10 letters")] == ["tin kettle"]
    async with place.open() as store:
        again = await recalled(store, "tin kettle")
        assert [(hit.item, hit.score) for hit in again] == [(hit.item, hit.score) for hit in before]
