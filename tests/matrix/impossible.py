"""What cannot be in the matrix, as a data file says it, and what is seen in its place."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, field_validator

from tests.matrix.features import FEATURES, Cell
from tests.matrix.pairs import PAIRS, Pair

FILE = Path(__file__).with_name("impossible.yaml")


class Row(BaseModel):
    """One row of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: tuple[str, ...]
    client: tuple[str, ...] = ()
    server: tuple[str, ...] = ()
    clause: str
    instead: str

    @field_validator("client", "server", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return [str(version) for version in value] if isinstance(value, list) else value

    def holds(self, pair: Pair, feature: str) -> bool:
        """Whether the cell is one of these."""
        client = not self.client or pair.client.version in self.client
        return client and (not self.server or pair.server.version in self.server) and feature in self.features


def load_rows() -> tuple[Row, ...]:
    """Return the rows of the file."""
    return tuple(Row.model_validate(row) for row in yaml.safe_load(FILE.read_text()))


def impossible_cells(rows: Iterable[Row], pairs: Iterable[Pair] = PAIRS) -> dict[tuple[Pair, str], Row]:
    """Return every cell of *pairs* that a row makes impossible, with that row."""
    pairs = tuple(pairs)
    found: dict[tuple[Pair, str], Row] = {}
    for row in rows:
        found |= {(pair, feature): row for pair in pairs for feature in FEATURES if row.holds(pair, feature)}
    return found


async def see_instead(cell: Cell) -> None:
    """Ask where nobody can be asked: nothing is asked of the client, and the call ends all the same."""
    before = len(cell.client.asked)
    result = await cell.client.call(cell.tool("ask"))
    said = result["content"][0]["text"]
    if cell.pair.server.version < "2025-06-18":
        assert result["isError"] is True and "not available" in said, result
    else:
        assert "-32601" in said or "-32021" in said, result
    assert len(cell.client.asked) == before
