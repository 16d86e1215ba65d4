"""The suite itself: what it holds, and that nothing but a plain answer counts as one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.escape.probe import Outcome, Probe, judge
from tests.escape.suite import BITING, GROUPS, PROBES

WITHOUT_CONTROL = 32  # on Linux 6.18 as root without CAP_SYS_RESOURCE; each says why
PROBE = Probe(name="any", group="files", attempts="Anything.", script="")


def test_names_are_unique_and_each_group_has_several() -> None:
    assert len({probe.name for probe in PROBES}) == len(PROBES)
    assert len(PROBES) >= 300
    assert min(Counter(probe.group for probe in PROBES).values()) >= 15
    assert len(GROUPS) == 10


def test_the_number_of_probes_without_a_control_is_known() -> None:
    """A probe that nobody has seen get through shows little; there must not be more of them unnoticed."""
    assert len(PROBES) - len(BITING) == WITHOUT_CONTROL


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (Outcome(said="STOPPED: EPERM", ended="exit 0"), "STOPPED"),
        (Outcome(said="ESCAPED: read it", ended="exit 0"), "ESCAPED"),
        (Outcome(said="ESCAPED: read it\nSTOPPED: EPERM", ended="exit 0"), "ESCAPED"),
        (Outcome(said="STOPPED: EPERM", ended="exit 0", breaches=("a file was changed",)), "ESCAPED"),
        (Outcome(said="", ended="exit 0"), "UNCLEAR"),
        (Outcome(said="Traceback: NameError", ended="exit 1"), "UNCLEAR"),
        (Outcome(said="STOPPED: EPERM", ended="exit 1"), "UNCLEAR"),
        (Outcome(said="", ended="timeout"), "UNCLEAR"),
        (Outcome(said="TRIED", ended="exit 0"), "UNCLEAR"),
    ],
)
def test_silence_and_a_crash_are_no_answer(outcome: Outcome, word: str) -> None:
    assert judge(PROBE, outcome).word == word


def test_an_end_counts_only_where_the_probe_names_it() -> None:
    ended = Outcome(said="", ended="timeout")

    assert judge(replace(PROBE, ends=("timeout",)), ended).word == "STOPPED"
    assert judge(replace(PROBE, ends=("memory",)), ended).word == "UNCLEAR"


def test_what_is_judged_from_outside_must_have_been_tried() -> None:
    probe = replace(PROBE, tried=True)

    assert judge(probe, Outcome(said="TRIED", ended="exit 0")).word == "STOPPED"
    assert judge(probe, Outcome(said="", ended="exit 0")).word == "UNCLEAR"
    assert judge(probe, Outcome(said="TRIED", ended="exit 0", breaches=("it is alive",))).word == "ESCAPED"
