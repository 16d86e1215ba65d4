"""Row: one number of a benchmark, beside what is to be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One number, beside what is to be reached, and beside the floor where one was measured."""

    what: str
    measured: float
    unit: str
    reach: str = ""
    met: bool | None = None
    floor: float | None = None

    @property
    def ratio(self) -> float | None:
        """The number as a multiple of the floor."""
        return self.measured / self.floor if self.floor else None


def at_most(what: str, measured: float, unit: str, limit: float, **more: Any) -> Row:
    return Row(what, measured, unit, f"≤ {limit:g}", measured <= limit, **more)


def at_least(what: str, measured: float, unit: str, limit: float, **more: Any) -> Row:
    return Row(what, measured, unit, f"≥ {limit:g}", measured >= limit, **more)
