"""No probe gets out of a cell, by a root gateway with and without cgroups or by an ordinary user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.escape.conftest import Trial
from tests.escape.ordinary import USES, Use
from tests.escape.probe import Place, Probe
from tests.escape.suite import PROBES
from tests.escape.trial import Ground, use_in_cell
from tests.escape.user_trials import QUICK_USES, trial_of
from tests.sandbox.conftest import lacking

pytestmark = pytest.mark.sandbox
POSTURES: tuple[Place, ...] = ("full", "no-cgroup")
WITH_CGROUPS = ("resources", "life time", "cross-job")  # what else holds in both postures alike is a long test in one

Grounds = Callable[[str], Ground]
Found = Callable[[str], dict[str, Any]]


def trials(place: Place) -> list[Any]:
    """All probes that can be tried in *place*; those that are known to get through must do so, or be taken off."""
    return [
        pytest.param(probe, place, id=f"{probe.name}-{place}", marks=marks(probe, place))
        for probe in PROBES if place not in probe.not_in
    ]  # fmt: skip


def marks(probe: Probe, place: Place) -> list[pytest.MarkDecorator]:
    found = []
    if place in probe.through_in:
        found.append(pytest.mark.xfail(strict=not probe.by_chance, reason=probe.through_in[place]))
    if place == "no-cgroup" and not probe.shares and probe.group not in WITH_CGROUPS:
        found.append(pytest.mark.long)
    return found


@pytest.mark.parametrize(("probe", "place"), [trial for posture in POSTURES for trial in trials(posture)])
async def test_a_probe_is_stopped(probe: Probe, place: Place, ground: Grounds, in_cell: Trial) -> None:
    verdict = await in_cell(probe, ground(place))

    assert verdict.word == "STOPPED", verdict.why


@pytest.mark.long
@pytest.mark.parametrize(("probe", "place"), trials("user"))
def test_a_probe_is_stopped_by_an_ordinary_users_gateway(probe: Probe, place: Place, by_user: Found) -> None:
    verdict = by_user(probe.name)["verdicts"][probe.name]

    assert verdict["word"] == "STOPPED", verdict["why"]


def uses(place: Place) -> list[Any]:
    """All ordinary uses in *place*. But in a whole sandbox, only the quick ones are tried with every change."""
    return [
        pytest.param(
            use, place, id=f"{use.name}-{place}",
            marks=[] if place == "full" or use.name in QUICK_USES else pytest.mark.long,
        )
        for use in USES
    ]  # fmt: skip


@pytest.mark.parametrize(("use", "place"), [use for posture in POSTURES for use in uses(posture)])
async def test_ordinary_use_works(use: Use, place: Place, ground: Grounds) -> None:
    where = ground(place)
    if use.missing():
        lacking(use.needs, f"{use.needs} is not installed")
    fault = await use_in_cell(use, where)

    assert bool(fault) == (place in use.refused_in), fault


@pytest.mark.parametrize(("use", "place"), uses("user"))
def test_ordinary_use_works_by_an_ordinary_users_gateway(use: Use, place: Place, by_user: Found) -> None:
    found = by_user(trial_of(use))
    if use.missing():
        lacking(use.needs, f"{use.needs} is not installed")
    refused = place in use.refused_in and found["isolation"]["posture"] == "no-cgroup"

    assert bool(found["uses"][use.name]) == bool(refused), found["uses"][use.name]
