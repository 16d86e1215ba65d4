"""Without the wall each probe gets through: a probe that cannot would show nothing where it is stopped."""

from __future__ import annotations

import os

import pytest

from tests.escape.bare import run_bare
from tests.escape.probe import Probe, judge
from tests.escape.suite import BITING
from tests.sandbox.conftest import lacking

pytestmark = [pytest.mark.sandbox, pytest.mark.long]


@pytest.mark.parametrize("probe", BITING, ids=lambda probe: probe.name)
def test_the_probe_gets_through_where_there_is_no_wall(probe: Probe) -> None:
    if os.geteuid() != 0:
        lacking("root", "a bare place needs root's cgroups")
    verdict = judge(probe, run_bare(probe))

    assert verdict.word == "ESCAPED", verdict.why
