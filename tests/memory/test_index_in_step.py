"""The index in memory says what the file says, whoever wrote last and in whatever order things came."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from omni_mcp.contracts.memory import MemoryItem, Readers
from omni_mcp.engines.memory.gathering import WHOLE
from omni_mcp.engines.memory.store import SqliteMemory
from tests.memory.conftest import ANN, PROJECT, Place, item, recalled, texts

WORDS = "kettle shed copper violin harbour lantern meadow pepper saddle thimble walnut zinc".split()  # noqa: SIM905  shorter
QUERIES = (
    "copper kettle",
    "Ann in the shed",
    "violin harbour lantern meadow",
    "what did Bob say about zinc?",
    "walnut",
)


def made_by(dice: random.Random) -> MemoryItem:
    mine = dice.random() < 0.5
    return item(
        " ".join(dice.choices(WORDS, k=dice.randint(1, 12))), scope="agent" if mine else "project",
        owner="Agent::ann" if mine else PROJECT, subject=dice.choice(["Ann", "Bob", None]),
        session=dice.choice(["s1", "s2", None]), at_ns=dice.randint(0, 10**18),
        taint=dice.choice([(), ("reads_private",)]),
    )  # fmt: skip


async def answers(store: SqliteMemory) -> list[list[tuple[str, float]]]:
    plain = [[(hit.item.text, round(hit.score, 4)) for hit in await recalled(store, query, k=20)] for query in QUERIES]
    clean = [
        [(hit.item.text, round(hit.score, 4)) for hit in await recalled(store, query, without_taint=("reads_private",))]
        for query in QUERIES
    ]
    return plain + clean


@pytest.mark.parametrize("seed", range(3))
async def test_an_index_that_followed_every_change_answers_like_one_made_anew(place: Place, seed: int) -> None:
    dice = random.Random(seed)
    async with place.open() as store:
        ids: list[str] = []
        for _ in range(60):
            what = dice.random()
            if what < 0.6 or not ids:
                new = [made_by(dice) for _ in range(dice.choice([1, 1, 2, 9, 70]))]
                await store.put_many(new)
                ids += [one.id for one in new]
            elif what < 0.8:
                changed = await store.get(dice.choice(ids), readers=ANN)
                await store.put(
                    changed.model_copy(update={"text": " ".join(dice.choices(WORDS, k=5)), "session": "s1"})
                )
            else:
                await store.forget(ids.pop(dice.randrange(len(ids))), readers=ANN)
            if dice.random() < 0.5:
                await recalled(store, "kettle")
        await answers(store)
        for middle in [one for one in await store.list_items(readers=ANN, limit=1000) if one.session == "s2"][5:9]:
            await store.forget(middle.id, readers=ANN)  # its neighbours are each other's now
        followed = await answers(store)
        async with place.open() as fresh:
            assert await answers(fresh) == followed
        assert all(followed[:5])


async def test_what_another_process_did_shows_at_the_next_recall(place: Place) -> None:
    async with place.open() as here, place.open() as there:
        mine = await here.put(item("a copper kettle"))
        assert await texts(here, "kettle") == await texts(there, "kettle") == ["a copper kettle"]
        await there.put(item("a tin kettle", id=mine.id))
        assert await texts(here, "kettle") == ["a tin kettle"]
        other = await there.put(item("a violin"))
        await there.forget(mine.id, readers=ANN)
        assert await texts(here, "kettle violin") == ["a violin"]
        await here.forget(other.id, readers=ANN)
        assert await texts(there, "kettle violin") == []


async def test_more_changes_than_are_kept_in_step_are_read_anew(place: Place) -> None:
    async with place.open() as here, place.open() as there:
        await here.put(item("a copper kettle"))
        lost = await here.put(item("a violin"))
        assert set(await texts(here, "kettle violin")) == {"a copper kettle", "a violin"}
        await there.forget(lost.id, readers=ANN)
        many = [item("zinc", key=f"k{n}") for n in range(100)]
        for _ in range(2):
            await there.put_many([item("zinc", key=f"k{n}") for n in range(10_100)])
        await there.put_many(many)
        assert len(await texts(here, "kettle zinc", k=200)) == 200
        assert (await texts(here, "kettle"))[0] == "a copper kettle"
        async with place.open() as fresh:
            assert await answers(fresh) == await answers(here)


async def test_a_large_place_finds_what_a_small_one_would(place: Place) -> None:
    """Above 4,096 items only the best candidates are ranked."""
    dice = random.Random(4)
    rows = [item(" ".join(dice.choices(WORDS, k=6)), session=f"s{n // 40}") for n in range(WHOLE + 500)]
    rows[2815] = rows[2815].model_copy(update={"text": "an aardwolf"})
    needle = item(
        "the quokka told Ann about her marmalade recipe", session="s70", at_ns=rows[2815].at_ns, subject="Ann",
        taint=("reads_untrusted",),
    )  # fmt: skip
    async with place.open() as store:
        await store.put_many([*rows[:3000], needle, *rows[3000:]])
        for query in ("quokka", "marmalade recipe of Ann", "walnut marmalade", "marmalades"):
            hits = await recalled(store, query)
            assert hits[0].item.id == needle.id, query
            assert all(abs(sum(hit.parts.values()) - hit.score) < 1e-4 for hit in hits)
        around = {hit.item.id for hit in await recalled(store, "quokka", k=20)}
        assert {rows[2814].id, rows[2815].id, rows[2816].id} <= around
        narrow = await recalled(store, "kettle", session="s50", k=100)
        assert len(narrow) == 40 and {hit.item.session for hit in narrow} == {"s50"}
        assert len(await recalled(store, "kettle copper", k=900)) == 900
        clean = await recalled(store, "aardwolf recipes", k=30, without_taint=("reads_untrusted",))
        await store.forget(needle.id, readers=ANN)
        without = await recalled(store, "aardwolf recipes", k=30)
        assert [(hit.item.id, round(hit.score, 4)) for hit in clean] == [
            (hit.item.id, round(hit.score, 4)) for hit in without
        ]
        found = await store.duplicates(readers=ANN, limit=5)
        assert all(score >= 0.8 for _, _, score in found)


async def test_two_places_are_ranked_as_one(place: Place) -> None:
    texts_of = ["copper kettle in the shed", "the shed is old", "a violin", "zinc and copper", "Ann likes the harbour"]
    one_place = Readers(places=(("agent", "Agent::both"),), project=PROJECT)
    async with place.open() as store:
        for number, text in enumerate(texts_of):
            await store.put(item(text, owner="Agent::both"))
            await store.put(item(text, scope="project" if number % 2 else "agent",
                                 owner=PROJECT if number % 2 else "Agent::ann"))  # fmt: skip
        for query in QUERIES:
            joined = {(hit.item.text, round(hit.score, 4)) for hit in await recalled(store, query, ANN)}
            alone = {(hit.item.text, round(hit.score, 4)) for hit in await recalled(store, query, one_place)}
            assert joined == alone


def test_a_store_that_nobody_used_has_loaded_nothing(tmp_path: Path) -> None:
    """An idle gateway does not pay for numpy or the table."""
    script = (
        "import asyncio, sys, json\nfrom pathlib import Path\n"
        "from omni_mcp.engines.memory.store import open_memory\n"
        "async def main():\n    async with open_memory(Path(sys.argv[1])): pass\n"
        "asyncio.run(main())\nprint(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "memory.db")], check=True, stdout=subprocess.PIPE
    )
    assert not {"numpy", "sqlite3.dbapi2.x", "omni_mcp.engines.memory.core"} & set(orjson.loads(done.stdout))
    assert list(tmp_path.iterdir()) == []
