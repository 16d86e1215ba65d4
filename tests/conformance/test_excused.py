"""What does not pass behind the gateway is named with its reason, and a row that is no longer true is told."""

from __future__ import annotations

from tests.conformance.behind import ROADS
from tests.conformance.excused import Excuse, excused, load_excuses, reasons_for, stale
from tests.conformance.suite import Report, Scenario, Suite

SUITE = Suite("conformance X, requirements 2026-07-28", "p", (), frozenset({"one", "two"}), {"three": "pending"})
EXCUSE = Excuse(roads=("http/modern",), suite="2026-07-28", scenarios=("one",), reason="because")


def scenario(name: str, *, failed: int) -> Scenario:
    return Scenario(name=name, passed=1, failed=failed, scored=False)


def test_no_more_is_excused_than_was_when_each_reason_was_looked_up() -> None:
    """Whoever adds a row changes these numbers, and says why."""
    rows = load_excuses()
    assert (len(rows), sum(len(row.roads) * len(row.scenarios) for row in rows)) == (4, 8)


def test_every_row_names_roads_that_there_are_and_a_reason() -> None:
    known = {str(road) for road in ROADS}
    assert all(set(row.roads) <= known and len(row.reason) > 40 for row in load_excuses())


def test_an_excused_scenario_counts_on_its_own_road_and_suite_only() -> None:
    reasons = reasons_for(SUITE, "http/modern", [EXCUSE])
    here = excused(SUITE, reasons)
    assert here.scored == frozenset({"two"}) and here.unscored == {"three": "pending", "one": "because"}
    assert reasons_for(SUITE, "stdio/modern", [EXCUSE]) == {} == reasons_for(SUITE, None, [EXCUSE])
    other = Suite("conformance X, requirements 2025-11-25", "p", ())
    assert reasons_for(other, "http/modern", [EXCUSE]) == {}


def test_an_excuse_for_what_passes_is_told() -> None:
    report = Report("r", (scenario("one", failed=0), scenario("two", failed=0)))
    assert stale(report, {"one": "because"}) == ["one"]
    assert stale(Report("r", (scenario("one", failed=1),)), {"one": "because"}) == []
