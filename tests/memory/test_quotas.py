"""Room in the memory: each place has its bound, and where several write, each of them has one of its own."""

from __future__ import annotations

import random
import sqlite3
from typing import Any

import pytest

from omni_mcp.contracts.errors import NotFound, QuotaExceeded
from omni_mcp.contracts.memory import MemoryItem, Readers
from omni_mcp.engines.memory.rows import Limits
from tests.memory.conftest import PROJECT, Place, item

EVE, BOB = 'Agent::"eve"', 'Agent::"bob"'
TEAM = Readers(places=(("project", PROJECT), ("run", "r1"), ("run", "r2")), project=PROJECT)


def shared(text: str, writer: str | None, **more: Any) -> MemoryItem:
    return item(text, writer=writer, **({"scope": "project", "owner": PROJECT} | more))


async def test_one_writer_cannot_fill_what_it_shares_with_others(place: Place) -> None:
    async with place.open(limits=Limits(items=5, shared_items=2)) as store:
        first = await store.put(shared("one", EVE))
        await store.put(shared("two", EVE))
        with pytest.raises(QuotaExceeded) as refused:
            await store.put(shared("three", EVE))
        assert refused.value.data["quota"] == "writer" and "2 items" in refused.value.message
        assert EVE not in refused.value.message and "shared" not in refused.value.message.split(":")[0]
        await store.put(shared("bob's", BOB))
        await store.forget(first.id, readers=TEAM)
        await store.put(shared("three", EVE))


async def test_what_one_writes_for_single_runs_counts_with_what_it_shares(place: Place) -> None:
    """There is no end of runs that a client can begin."""
    async with place.open(limits=Limits(shared_items=2)) as store:
        for run in ("r1", "r2"):
            await store.put(shared("x", EVE, scope="run", owner=run))
        for more in ({"scope": "run", "owner": "r3"}, {}, {"scope": "user", "owner": 'User::"u"@garden'}):
            with pytest.raises(QuotaExceeded):
                await store.put(shared("x", EVE, **more))
        await store.put(item("its own has a bound of its own", owner=EVE, writer=EVE))


async def test_bytes_are_shared_out_as_items_are(place: Place) -> None:
    async with place.open(limits=Limits(shared_bytes=1000)) as store:
        first = await store.put(shared("x" * 600, EVE))
        with pytest.raises(QuotaExceeded):
            await store.put(shared("y" * 400, EVE))
        with pytest.raises(QuotaExceeded):
            await store.put(shared("y" * 1000, EVE, id=first.id))
        assert (await store.get(first.id, readers=TEAM)).text == "x" * 600
        await store.put(shared("y" * 400, BOB))


async def test_who_writes_last_has_it_on_its_account(place: Place) -> None:
    async with place.open(limits=Limits(shared_items=1)) as store:
        first = await store.put(shared("eve's", EVE))
        assert first.writer == EVE
        taken = await store.put(shared("now bob's", BOB, id=first.id))
        assert (taken.id, taken.version, taken.writer) == (first.id, 2, BOB)
        await store.put(shared("eve has room again", EVE))
        for who in (EVE, BOB):
            with pytest.raises(QuotaExceeded):
                await store.put(shared("more", who))


async def test_an_import_fills_nobodys_account_and_a_place_is_bounded_all_the_same(place: Place) -> None:
    async with place.open(limits=Limits(items=3, shared_items=1)) as store:
        await store.put_many([shared("one", None), shared("two", None)])
        await store.put(shared("three", EVE))
        with pytest.raises(QuotaExceeded) as refused:
            await store.put(shared("four", BOB))
        assert refused.value.data["quota"] == "place" and "the memory of the project is full" in refused.value.message


async def test_below_a_bound_that_fell_things_may_become_less_and_not_more(place: Place) -> None:
    async with place.open() as store:
        kept = [await store.put(shared("x" * 400, EVE)) for _ in range(3)]
    async with place.open(limits=Limits(items=2, bytes=500, shared_items=1, shared_bytes=300)) as store:
        await store.put(shared("shorter", EVE, id=kept[0].id))
        with pytest.raises(QuotaExceeded):
            await store.put(shared("x" * 401, EVE, id=kept[1].id))
        with pytest.raises(QuotaExceeded):
            await store.put(shared("x", EVE))


async def test_accounts_are_what_is_there_whatever_was_done(place: Place) -> None:
    """Random puts, revisions by anybody, refusals, forgettings and sweeps; then the file is counted."""
    chance = random.Random(7)
    limits = Limits(items=12, shared_items=5)
    async with place.open(limits=limits) as store:
        ids: list[str] = []
        for step in range(300):
            who, scope = chance.choice([EVE, BOB, None]), chance.choice(["project", "run", "agent"])
            facts: dict[str, Any] = {
                "scope": scope, "owner": {"project": PROJECT, "run": "r1", "agent": "Agent::ann"}[scope],
                "expires_at_ns": chance.choice([None, place.clock.now_ns + 5]), "key": chance.choice([None, "a", "b"]),
            }  # fmt: skip
            try:
                if ids and chance.random() < 0.3:
                    await store.forget_item(ids.pop(chance.randrange(len(ids))))
                elif chance.random() < 0.1:
                    place.clock.now_ns += 10
                    await store.sweep(now_ns=place.clock.now_ns, limit=2)
                else:
                    ids.append((await store.put(item("w" * (step % 50 + 1), writer=who, **facts))).id)
            except (QuotaExceeded, NotFound):
                continue
    with sqlite3.connect(place.file) as file:
        for table, column, key in (("places", "place", "place"), ("writers", "principal", "writer")):
            sql = (
                f"SELECT t.items, t.bytes, count(i.n), coalesce(sum(i.size), 0) FROM {table} t "
                f"LEFT JOIN items i ON i.{column} = t.{key} GROUP BY t.{key}"
            )
            rows = file.execute(sql).fetchall()
            assert rows and all(row[:2] == row[2:] for row in rows), (table, rows)
    file.close()


async def test_a_memory_of_an_earlier_version_opens_and_its_items_are_on_nobodys_account(place: Place) -> None:
    async with place.open() as store:
        old = await store.put(shared("older", EVE))
    with sqlite3.connect(place.file) as file:
        file.executescript(
            "ALTER TABLE items DROP COLUMN principal; DROP TABLE writers; "
            "DELETE FROM schema_migrations WHERE version = 3; PRAGMA user_version = 2;"
        )
    file.close()
    async with place.open(limits=Limits(shared_items=1)) as store:
        assert (await store.get(old.id, readers=TEAM)).writer is None
        await store.put(shared("newer", EVE))
        await store.forget(old.id, readers=TEAM)
        with pytest.raises(QuotaExceeded):
            await store.put(shared("newest", EVE))
