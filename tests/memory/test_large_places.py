"""A large memory costs time and room of its own: whoever has a small one neither waits nor is loaded again for it."""

from __future__ import annotations

import asyncio
import random
import threading
import tracemalloc
from collections.abc import Sequence

from numpy import float32
from numpy.typing import NDArray

from omni_mcp.contracts.memory import Readers
from omni_mcp.engines.memory.connection import open_reader
from omni_mcp.engines.memory.embedder import StaticEmbedder
from omni_mcp.engines.memory.index import Index
from omni_mcp.engines.memory.rows import Limits
from tests.memory.conftest import ANN, BOB, PROJECT, Place, item, texts

WAIT_S = 30.0
SLOW = "a slow question"


class Halting:
    """An embedder that stops at one question until it is told to go on."""

    def __init__(self, own: StaticEmbedder) -> None:
        self._own = own
        self.name = own.name
        self.dimensions = own.dimensions
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def embed(self, texts: Sequence[str]) -> NDArray[float32]:
        if SLOW in texts:
            self.reached.set()
            assert self.go_on.wait(WAIT_S)
        return self._own.embed(texts)


async def test_a_small_memory_is_searched_while_a_large_one_is(place: Place, one_embedder: StaticEmbedder) -> None:
    embedder = Halting(one_embedder)
    async with place.open(embedder=lambda: embedder, limits=Limits(quick_items=10)) as store:
        await store.put_many([item(f"kettle {number}") for number in range(11)])
        await store.put(item("bob's kettle", owner="Agent::bob"))
        large = asyncio.create_task(texts(store, SLOW))
        assert await asyncio.to_thread(embedder.reached.wait, WAIT_S)
        try:
            assert await asyncio.wait_for(texts(store, "kettle", BOB), WAIT_S) == ["bob's kettle"]
            assert not large.done()
        finally:
            embedder.go_on.set()
        await large


async def test_a_memory_that_grows_large_and_small_again_is_searched_as_it_is(place: Place) -> None:
    async with place.open(limits=Limits(quick_items=3)) as store:
        kept = await store.put(item("copper kettle"))
        assert await texts(store, "kettle") == ["copper kettle"]
        more = [await store.put(item(f"kettle number {number}")) for number in range(5)]
        assert len(await texts(store, "kettle")) == 6
        await store.put(kept.model_copy(update={"text": "copper pan"}))
        assert len(await texts(store, "kettle")) == 5 and await texts(store, "pan") != []
        for one in more:
            await store.forget(one.id, readers=ANN)
        assert await texts(store, "kettle") == [] or await texts(store, "kettle") == ["copper pan"]
        await store.put(item("tin kettle"))
        assert "tin kettle" in await texts(store, "kettle")
        assert await store.duplicates(readers=ANN) == []


async def test_a_large_place_takes_nobodys_room_in_the_index(place: Place) -> None:
    """What is loaded is read from the file once; only a load reads a place's items."""
    async with place.open() as store:
        for who, count in (("a", 2), ("b", 2), ("c", 2), ("large", 400)):
            await store.put_many([item(f"kettle {number}", owner=who) for number in range(count)])
    connection = open_reader(place.file)
    loads: list[str] = []
    connection.set_trace_callback(lambda sql: loads.append(sql) if "i.place = " in sql else None)
    numbers = dict(connection.execute("SELECT owner, place FROM places"))
    [(recipe, dimensions)] = connection.execute(
        "SELECT DISTINCT i.recipe, length(m.vector) FROM items i JOIN marks m ON m.mark = i.mark"
    )
    index = Index(connection, recipe, dimensions, kept_bytes=50_000)
    for who in ("a", "b", "large", "a", "b"):
        index.places([numbers[who]])
    assert index.size_bytes > 50_000, "the large one is over the bound by itself"
    assert len(loads) == 3
    index.places([numbers["large"]])
    index.places([numbers["c"]])
    assert len(loads) == 4 and index.size_bytes < 50_000, "the large one went, and only that"
    for who in ("a", "b", "c"):
        index.places([numbers[who]])
    assert len(loads) == 4
    connection.close()


async def test_readers_of_several_places_find_in_all_of_them_though_one_is_large(place: Place) -> None:
    both = Readers(places=(("agent", "Agent::ann"), ("project", PROJECT)), project=PROJECT)
    async with place.open(limits=Limits(quick_items=2)) as store:
        await store.put(item("my own kettle"))
        await store.put_many([item(f"shared kettle {n}", scope="project", owner=PROJECT) for n in range(3)])
        assert len(await texts(store, "kettle", both)) == 4
        assert len(await texts(store, "kettle", Readers(places=(("agent", "Agent::ann"),), project=PROJECT))) == 1


async def test_many_who_ask_for_duplicates_at_once_do_not_each_hold_a_copy_of_the_place(place: Place) -> None:
    dice, count = random.Random(1), 1500
    async with place.open() as store:
        words = ["".join(dice.choices("bdfgklmnprst", k=6)) for _ in range(4 * count)]
        await store.put_many([item(" ".join(words[4 * n : 4 * n + 4])) for n in range(count)])
        await store.duplicates(readers=ANN)
        copy_bytes = count * (128 + 8 + 4 + 16)
        peaks = []
        for at_once in (1, 16):
            tracemalloc.start()
            await asyncio.gather(*(store.duplicates(readers=ANN) for _ in range(at_once)))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 6 * copy_bytes, peaks
