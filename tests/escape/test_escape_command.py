"""The command that people start: what its caller leaks, and the calls that no cell may make, tried through all of it.

The report tries every probe that fits this way; here are those for which the way of starting matters.
"""

from __future__ import annotations

import pytest

from omni_mcp.engines.sandbox.probe import Missing, find_bwrap
from tests.escape.command import fits_the_command, run_by_command
from tests.escape.suite import PROBES
from tests.sandbox.conftest import lacking

pytestmark = pytest.mark.sandbox

_OF_THE_START = (
    "secret-by-path", "change-a-file", "inherited-directory", "inherited-file", "any-descriptor", "see-the-neighbour",
    "environments", "environment-of-our-own", "forks", "memory-children", "sleep", "flood-output", "kill-all",
)  # fmt: skip


def test_what_the_caller_of_the_command_leaks_and_what_no_cell_may_do_is_stopped() -> None:
    if isinstance(find_bwrap(), Missing):
        lacking("bwrap", "bubblewrap is missing")
    probes = [probe for probe in PROBES if probe.shares or probe.name in _OF_THE_START]
    verdicts = {probe.name: verdict for probe, verdict in run_by_command(probes)}

    assert len(verdicts) == len(probes) > 120
    assert {name: verdict.why for name, verdict in verdicts.items() if verdict.word != "STOPPED"} == {}


def test_most_probes_fit_the_command() -> None:
    assert sum(map(fits_the_command, PROBES)) > 200
