"""Cells are filled one after the other; what fails is told with its cell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.matrix.features import FEATURES
from tests.matrix.impossible import impossible_cells, load_rows, see_instead
from tests.matrix.pairs import Pair
from tests.matrix.world import World

CELL_LIMIT_S = 30.0


@dataclass
class Tally:
    """How many cells passed, how many cannot be, and what failed."""

    passed: int = 0
    impossible: int = 0
    failed: list[str] = field(default_factory=list)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.passed + other.passed, self.impossible + other.impossible, self.failed + other.failed)

    def __str__(self) -> str:
        return f"{self.passed} cells pass, {self.impossible} are impossible, {len(self.failed)} fail"


async def fill(world: World, pairs: Iterable[Pair]) -> Tally:
    """Try every feature at every pair."""
    pairs = tuple(pairs)
    tally, cannot = Tally(), impossible_cells(load_rows(), pairs)
    for pair in pairs:
        cell = await world.cell(pair)
        for name, feature in FEATURES.items():
            impossible = (pair, name) in cannot
            try:
                async with asyncio.timeout(CELL_LIMIT_S):
                    await (see_instead if impossible else feature)(cell)
            except Exception as error:
                tally.failed.append(f"{pair}: {name}: {type(error).__name__}: {str(error)[:300]}")
            else:
                tally.impossible += impossible
                tally.passed += not impossible
    return tally
