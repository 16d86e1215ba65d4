"""What every implementation of the port `MemoryStore` promises. `open_store` is all that this file knows of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from omni_mcp.contracts.errors import Conflict, NotFound, OmniError
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.memory import MemorySource, Readers
from omni_mcp.contracts.ports import MemoryStore
from tests.memory.conftest import ANN, BOB, HOUR_NS, PROJECT, Clock, Place, item, recalled, texts

Opened = AbstractAsyncContextManager[MemoryStore]
Open = Callable[[], Opened]


@pytest.fixture
def open_store(place: Place) -> Open:
    """A factory of opened stores; opening again gives the same memory."""
    return place.open


@pytest.fixture
def clock(place: Place) -> Clock:
    return place.clock


async def test_an_item_comes_back_as_it_was_put_also_after_a_restart(open_store: Open) -> None:
    put = item(
        "the gate code is 4711", kind="procedural", key="gate", subject="the gate", session="s1", tags=("home", "door"),
        importance=0.9, taint=("reads_untrusted",), source=MemorySource(run="r1", seq=7, call="c1", from_run="r0"),
        expires_at_ns=item("x").at_ns + HOUR_NS,
    )  # fmt: skip
    async with open_store() as store:
        assert await store.put(put) == put
    async with open_store() as store:
        assert await store.get(put.id, readers=ANN) == put
        assert [hit.item for hit in await recalled(store, "gate code")] == [put]
        assert await store.list_items(readers=ANN) == [put]


async def test_a_key_names_one_item_below_its_owner(open_store: Open) -> None:
    async with open_store() as store:
        first = await store.put(item("the gate code is 4711", key="gate"))
        second = await store.put(item("the gate code is 1234", key="gate"))
        others = await store.put(item("there is a gate", key="gate", scope="project", owner=PROJECT))
        assert (second.id, second.version, second.created_at_ns) == (first.id, 2, first.created_at_ns)
        assert second.revised_at_ns is not None
        assert others.id != first.id and others.version == 1
        assert set(await texts(store, "gate code")) == {"the gate code is 1234", "there is a gate"}


async def test_of_two_who_revise_one_version_one_wins(open_store: Open) -> None:
    async with open_store() as store:
        first = await store.put(item("draft"))
        tries = [
            store.put(first.model_copy(update={"text": f"version of {name}"}), expected_version=1)
            for name in ("ann", "bob")
        ]
        done = await asyncio.gather(*tries, return_exceptions=True)
        assert sorted(type(one).__name__ for one in done) == ["Conflict", "MemoryItem"]
        stored = await store.get(first.id, readers=ANN)
        assert stored.version == 2 and stored in done


async def test_what_was_forgotten_is_not_revised_into_being(open_store: Open) -> None:
    async with open_store() as store:
        first = await store.put(item("draft"))
        await store.forget(first.id, readers=ANN)
        with pytest.raises(NotFound):
            await store.put(first, expected_version=1)
        assert await store.list_items(readers=ANN) == []


async def test_an_id_or_key_of_another_item_is_a_conflict(open_store: Open) -> None:
    async with open_store() as store:
        mine = await store.put(item("mine", key="k"))
        other = await store.put(item("other"))
        with pytest.raises(Conflict):
            await store.put(item("taken over", id=mine.id, owner="Agent::bob"))
        with pytest.raises(Conflict):
            await store.put(other.model_copy(update={"key": "k"}))
        assert {one.text for one in await store.list_items(readers=ANN)} == {"mine", "other"}


async def test_taint_never_comes_off(open_store: Open) -> None:
    async with open_store() as store:
        first = await store.put(item("from a web page", key="k", taint=("reads_untrusted",)))
        assert (await store.put(first.model_copy(update={"taint": ()}))).taint == ("reads_untrusted",)
        assert set((await store.put(item("x", key="k", taint=("reads_private",)))).taint) == {
            "reads_private",
            "reads_untrusted",
        }


async def test_many_are_put_together_or_not_at_all(open_store: Open) -> None:
    async with open_store() as store:
        mine = await store.put(item("mine"))
        assert await store.put_many([item(f"turn {n}") for n in range(5)]) == 5
        with pytest.raises(Conflict):
            await store.put_many([item("turn 6"), item("theirs", id=mine.id, owner="Agent::bob")])
        assert len(await store.list_items(readers=ANN)) == 6


async def test_what_a_reader_may_not_see_answers_like_what_is_not_there(open_store: Open) -> None:
    readers = (BOB, Readers(places=ANN.places, project="another"), Readers(places=(), project=PROJECT))
    async with open_store() as store:
        secret = await store.put(item("the vault opens at midnight", key="vault", session="s", subject="vault"))
        for reader in readers:
            faults = []
            for wanted in (secret.id, new_id(), "", "\ud800", "' OR 1=1"):
                with pytest.raises(NotFound) as got:
                    await store.get(wanted, readers=reader)
                with pytest.raises(NotFound) as forgotten:
                    await store.forget(wanted, readers=reader)
                faults += [got.value.message, forgotten.value.message]
            assert len(set(faults)) == 1
            assert await recalled(store, "the vault opens at midnight", reader) == []
            assert await recalled(store, "vault", reader, subject="vault", session="s") == []
            assert await store.list_items(readers=reader) == []
            assert await store.list_items(readers=reader, before=secret.id, subject="vault") == []
            assert await store.duplicates(readers=reader) == []
        assert await texts(store, "vault") == ["the vault opens at midnight"]


async def test_scores_do_not_depend_on_what_others_keep(open_store: Open) -> None:
    """Source: issue 5; the frequencies of foreign words must not show."""
    query = "copper kettle in the shed"
    async with open_store() as store:
        for text in ("a copper kettle", "the shed is green", "the kettle is old"):
            await store.put(item(text, scope="project", owner=PROJECT, session="s"))
        before = [(hit.item.id, hit.score, hit.parts) for hit in await recalled(store, query, BOB)]
        await store.put_many([item(f"kettle shed copper number {n}", session="s") for n in range(50)])
        assert [(hit.item.id, hit.score, hit.parts) for hit in await recalled(store, query, BOB)] == before


async def test_an_expired_item_vanishes_at_once_and_leaves_at_the_sweep(open_store: Open, clock: Clock) -> None:
    async with open_store() as store:
        mortal = await store.put(item("milk in the fridge", key="milk", expires_at_ns=clock.now_ns + HOUR_NS))
        await store.touched([mortal.id], run="r1", call="c1")
        await store.put(item("milk is white"))
        assert len(await recalled(store, "milk")) == 2
        clock.now_ns += HOUR_NS
        assert await texts(store, "milk") == ["milk is white"]
        assert len(await store.list_items(readers=ANN)) == 1
        for wanted in (store.get(mortal.id, readers=ANN), store.put(mortal), store.put(mortal, expected_version=1)):
            with pytest.raises(NotFound):
                await wanted
        again = await store.put(item("new milk", key="milk"))
        assert again.id != mortal.id
        [(swept, calls)] = await store.sweep(now_ns=clock.now_ns)
        assert (swept.id, swept.text, calls) == (mortal.id, "", [("r1", "c1")])
        assert await store.sweep(now_ns=clock.now_ns) == []
        assert set(await texts(store, "milk")) == {"milk is white", "new milk"}


async def test_a_sweep_of_named_items_takes_nothing_else_and_nothing_that_lasts(open_store: Open, clock: Clock) -> None:
    """What was put on record is what goes, whatever expired or was forgotten in between."""
    async with open_store() as store:
        first, second = [await store.put(item(f"milk {n}", expires_at_ns=clock.now_ns)) for n in range(2)]
        lasting = await store.put(item("milk is white"))
        assert await store.sweep(now_ns=clock.now_ns, items=[]) == []
        [(swept, _)] = await store.sweep(now_ns=clock.now_ns, items=[second.id, lasting.id])
        [(left, _)] = await store.sweep(now_ns=clock.now_ns)

        assert (swept.id, left.id) == (second.id, first.id)
        assert await texts(store, "milk") == ["milk is white"]


async def test_an_expired_item_can_still_be_forgotten(open_store: Open, clock: Clock) -> None:
    async with open_store() as store:
        mortal = await store.put(item("milk in the fridge", expires_at_ns=clock.now_ns))
        assert await recalled(store, "milk") == []
        await store.forget(mortal.id, readers=ANN)
        assert await store.sweep(now_ns=clock.now_ns) == []


async def test_every_call_that_carried_a_text_is_named_until_it_is_erased(open_store: Open) -> None:
    async with open_store() as store:
        first = await store.put(item("draft", source=MemorySource(run="r1", call="c1")))
        assert await store.touched([first.id, "nobody"], run="r2", call="c2") == ["nobody"]
        revised = first.model_copy(update={"text": "final", "source": MemorySource(run="r1", call="c3")})
        await store.put(revised)
        calls = await store.forget(first.id, readers=ANN)
        assert sorted(calls) == [("r1", "c1"), ("r1", "c3"), ("r2", "c2")]
        assert await store.touched([first.id], run="r9", call="c9") == [first.id]
    async with open_store() as store:
        assert sorted(await store.to_erase()) == sorted(calls)
        await store.erased([("r1", "c1"), ("r1", "c3"), ("r0", "c0")])
        assert await store.to_erase() == [("r2", "c2")]


async def test_lists_go_from_new_to_old_and_on_from_any_item(open_store: Open) -> None:
    async with open_store() as store:
        ids = [(await store.put(item(f"turn {n}", owner="Agent::ann" if n % 2 else PROJECT,
                                     scope="agent" if n % 2 else "project"))).id for n in range(7)]  # fmt: skip
        ids.reverse()
        pages = [await store.list_items(readers=ANN, limit=3)]
        while pages[-1]:
            pages.append(await store.list_items(readers=ANN, limit=3, before=pages[-1][-1].id))
        assert [one.id for page in pages for one in page] == ids
        await store.forget(ids[2], readers=ANN)
        assert (await store.list_items(readers=ANN, limit=1, before=ids[2]))[0].id == ids[3]


async def test_filters_of_lists_and_recalls_mean_the_same(open_store: Open) -> None:
    filters = (
        {"kinds": ("procedural",)}, {"tags": ("a",)}, {"tags": ("a", "b")}, {"subject": "Oslo"}, {"session": "s2"},
        {"kinds": ("semantic", "procedural"), "tags": ("b",), "session": "s1"}, {"subject": "nobody"},
    )  # fmt: skip
    async with open_store() as store:
        for number in range(24):
            await store.put(
                item(
                    f"river {number}",
                    kind=("episodic", "semantic", "procedural")[number % 3],
                    tags=(("a",), ("b",), ("a", "b"), ())[number % 4],
                    subject=(None, "Oslo")[number % 2],
                    session=("s1", "s2")[number // 12],
                )
            )
        for wanted in filters:
            listed = {one.id for one in await store.list_items(readers=ANN, **wanted)}
            found = {hit.item.id for hit in await recalled(store, "river", k=50, **wanted)}
            assert found == listed, wanted
            assert bool(listed) == (wanted != {"subject": "nobody"})


async def test_a_taint_that_is_not_wanted_supports_nothing(open_store: Open) -> None:
    async with open_store() as store:
        await store.put(item("the password hint is a violet tulip", session="s", taint=("reads_untrusted",)))
        await store.put(item("yes, that one", session="s"))
        assert len(await recalled(store, "violet tulip")) == 2
        clean = await recalled(store, "violet tulip", without_taint=("reads_untrusted",))
        assert "the password hint is a violet tulip" not in [hit.item.text for hit in clean]
        assert all(hit.parts.get("neighbour", 0) == 0 for hit in clean)


async def test_a_recall_keeps_to_its_budget_and_still_tries_shorter_ones(open_store: Open) -> None:
    async with open_store() as store:
        await store.put(item("kettle " * 40))
        await store.put(item("kettle " * 10 + "blue"))
        await store.put(item("a kettle, among other things in this house"))
        for budget in (0, 1, 45, 80, 120, 500):
            found = await texts(store, "kettle", budget_chars=budget)
            assert sum(len(text) for text in found) <= budget
            assert bool(found) == (budget >= 45)
        assert len(await texts(store, "kettle", k=2)) == 2
        assert await texts(store, "kettle", k=0) == []


async def test_parts_add_up_to_the_score_and_the_best_comes_first(open_store: Open) -> None:
    async with open_store() as store:
        for number in range(30):
            await store.put(item(f"Ann: note {number} about the {'kettle' if number % 3 else 'garden'}", subject="Ann",
                                 session=f"s{number // 5}"))  # fmt: skip
        hits = await recalled(store, "what did Ann note about the kettle", k=30)
        assert len(hits) > 10
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert all(abs(sum(hit.parts.values()) - hit.score) < 1e-4 for hit in hits)


async def test_near_duplicates_are_named_and_nothing_is_changed(open_store: Open) -> None:
    async with open_store() as store:
        one = await store.put(item("The meeting with the bank is on Tuesday at nine."))
        two = await store.put(item("the meeting with the bank is on tuesday at nine"))
        await store.put(item("The cat sleeps on the warm oven."))
        found = await store.duplicates(readers=ANN)
        assert [(a.id, b.id) for a, b, _ in found] == [(one.id, two.id)]
        assert found[0][2] > 0.8
        assert await store.duplicates(readers=ANN, limit=0) == []
        assert len(await store.list_items(readers=ANN)) == 3


@pytest.mark.parametrize(
    "query",
    [
        "", " ", "\n", '"', "'", "''", "c++", "a-b", "*", "a*", "NEAR(a b)", "a AND", "NOT", "OR", "(", "col:x", "^x",
        "{a b}:c", "'; DROP TABLE items; --", "%", "_", "\0", "a\0b", "\ud800", "x\udfffy", "😀",
        "👩‍👩‍👧", "日本語の本",
        "हिन्दी", "ﬁne", "İstanbul", "a" * 10_000, "kettle " * 1500, "\u202e evil", "\U0010ffff", "1e999", "../..",
    ],
)  # fmt: skip
async def test_any_text_is_a_valid_query(open_store: Open, query: str) -> None:
    async with open_store() as store:
        await store.put(item("a kettle and c++ and a-b"))
        try:
            hits = await recalled(store, query)
        except OmniError as error:  # pragma: no cover
            pytest.fail(f"{query!r}: {error}")
        assert len(hits) <= 1
        assert query.strip() or not hits


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("c++", "we wrote it in c++"), ("C++?", "we wrote it in c++"), ("a-b", "the a-b test"), ("😀", "so happy 😀"),
        ("café", "the CAFE is closed"), ("東京", "東京に行きました"), ("node.js", "node.js is slow"),
        ("running", "she runs a lot"), ("ßtraße", "die SSTRASSE"),
    ],
)  # fmt: skip
async def test_words_are_found_in_other_forms(open_store: Open, query: str, text: str) -> None:
    async with open_store() as store:
        for filler in ("we wrote it in c", "the test of a and b", "so sad", "the tea is cold", "大阪", "js node"):
            await store.put(item(filler))
        wanted = await store.put(item(text))
        assert (await recalled(store, query))[0].item.id == wanted.id
