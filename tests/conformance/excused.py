"""What does not pass behind the gateway and why, as a data file says it; a row that is no longer true fails the run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, field_validator

from tests.conformance.suite import Report, Suite

FILE = Path(__file__).with_name("excused.yaml")


class Excuse(BaseModel):
    """One row of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    roads: tuple[str, ...]
    suite: str
    scenarios: tuple[str, ...]
    reason: str

    @field_validator("suite", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> str:
        return str(value)


def load_excuses() -> tuple[Excuse, ...]:
    """Return the rows of the file."""
    return tuple(Excuse.model_validate(row) for row in yaml.safe_load(FILE.read_text()))


def reasons_for(suite: Suite, road: str | None, excuses: Iterable[Excuse]) -> dict[str, str]:
    """Return the scenarios of *suite* that are excused on *road*, each with its reason."""
    return {
        scenario: excuse.reason
        for excuse in excuses
        if road in excuse.roads and suite.title.endswith(excuse.suite)
        for scenario in excuse.scenarios
    }


def excused(suite: Suite, reasons: dict[str, str]) -> Suite:
    """Return *suite* without a score for what is excused."""
    if suite.scored is None or not reasons:
        return suite
    return replace(suite, scored=suite.scored - reasons.keys(), unscored={**suite.unscored, **reasons})


def stale(report: Report, reasons: dict[str, str]) -> list[str]:
    """Return what is excused and passes."""
    return [scenario.name for scenario in report.scenarios if scenario.ok and scenario.name in reasons]
