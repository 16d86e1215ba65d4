"""How much a text tells, counted by hand and by the index, and what that changes in a recall."""

from __future__ import annotations

from math import log1p
from pathlib import Path

import pytest

from omni_mcp.contracts.memory import Recall
from omni_mcp.engines.memory.connection import open_reader
from omni_mcp.engines.memory.index import Index
from omni_mcp.engines.memory.rarity import rarities
from omni_mcp.engines.memory.store import open_memory
from omni_mcp.engines.memory.view import View
from tests.memory.conftest import ANN, Clock, item


def rarity(*uses: int, items: int) -> float:
    """What a text tells whose words stand in so many of the items."""
    alone = log1p((items - 0.5) / 1.5)
    return sum(log1p((items - use + 0.5) / (use + 0.5)) for use in uses) / alone


async def counted(file: Path, *, without: int | None = None) -> list[float]:
    """Return the rarity in each slot, if the one numbered *without* does not exist for the query."""
    connection = open_reader(file)
    try:
        [index] = Index(connection, 1, 128).places([1])
    finally:
        connection.close()
    seen = index.existing(0).copy()
    if without is not None:
        seen[without] = False
    return [float(value) for value in rarities(View([index], [seen]))]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


async def test_a_text_tells_as_much_as_its_words_are_rare_each_once_and_stop_words_nothing(file: Path) -> None:
    async with open_memory(file) as store:
        await store.put_many([item("the kettle"), item("the kettle is a copper copper kettle"), item("and the of")])
        await store.put(item("zinc"))  # a segment of its own

    assert await counted(file) == pytest.approx(
        [rarity(2, items=4), rarity(2, 1, items=4), 0, rarity(1, items=4)], abs=1e-5
    )


async def test_what_does_not_exist_for_a_query_makes_no_word_frequent(file: Path) -> None:
    async with open_memory(file) as store:
        await store.put_many([item("kettle"), item("kettle"), item("copper")])

    found = await counted(file, without=0)
    assert found[1] == pytest.approx(1, abs=1e-5)
    assert found[0] == 0


async def test_a_turn_that_tells_something_comes_before_one_that_does_not(file: Path) -> None:
    """Both have the word once and as many words; those of one stand everywhere."""
    clock = Clock()
    common = [item(f"oh really sure thing number {number}", session="s2") for number in range(30)]
    turns = [
        item("oh really sure thing kettle", session="s1", at_ns=clock.now_ns),
        item("copper spout whistles loudly kettle", session="s3", at_ns=clock.now_ns),
    ]
    async with open_memory(file) as store:
        await store.put_many([*common, *turns])
        found = await store.recall(Recall(query="kettle", readers=ANN, k=2))

    parts = {hit.item.text: hit.parts for hit in found}
    assert parts[turns[1].text]["short"] > parts[turns[0].text]["short"]
