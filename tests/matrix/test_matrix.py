"""A client of any version reaches a server of any version with every feature; the whole is `tests/matrix/run.py`."""

from __future__ import annotations

import pytest

from tests.matrix.features import FEATURES
from tests.matrix.impossible import impossible_cells, load_rows
from tests.matrix.pairs import ENDS, PAIRS, Pair, fast_pairs
from tests.matrix.running import fill
from tests.matrix.world import open_world

HALVES = [fast_pairs()[::2], fast_pairs()[1::2]]


@pytest.mark.slow
@pytest.mark.parametrize("half", HALVES, ids=["one half", "the other"])
async def test_every_feature_works_between_ends_of_both_eras(half: list[Pair]) -> None:
    async with open_world(sorted({pair.server for pair in half})) as world:
        tally = await fill(world, half)

    assert tally.failed == []
    assert tally.passed + tally.impossible == len(half) * len(FEATURES)


def test_the_fast_pairs_hold_every_end_on_both_sides_and_every_pair_of_eras() -> None:
    chosen = fast_pairs()
    assert {pair.client for pair in chosen} == set(ENDS) == {pair.server for pair in chosen}
    assert len({(pair.client.modern, pair.server.modern) for pair in chosen}) == 4


def test_as_much_is_impossible_as_was_when_each_clause_was_looked_up() -> None:
    """Whoever adds a row changes these numbers, and says why."""
    rows = load_rows()
    cells = impossible_cells(rows)
    assert (len(rows), len(cells), len(PAIRS) * len(FEATURES)) == (2, 192, 1600)
    assert all(row.clause.startswith("MCP 20") for row in rows)
    assert {feature for row in rows for feature in row.features} <= set(FEATURES)


def test_no_row_of_the_impossible_is_idle_and_none_overlaps_another() -> None:
    rows = load_rows()
    found = [impossible_cells([row]) for row in rows]
    assert all(found)
    assert sum(map(len, found)) == len(impossible_cells(rows))
