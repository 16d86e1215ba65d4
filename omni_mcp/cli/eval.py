"""`omni-mcp eval`: make a set of runs again, and say how many come back as they should."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from omni_mcp.cli.runs import answered_as, json_option, print_json, printable
from omni_mcp.config import load_settings
from omni_mcp.paths import find_home
from omni_mcp.replay.here import rerun_here
from omni_mcp.replay.suite import Verdict, judge, load_suite, prepare


@click.command("eval")
@click.argument("suite", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def eval_command(suite: Path, as_json: bool) -> None:
    """Replay the runs and golden files of SUITE, and print the pass rate.

    Exit code 1 if it is below the suite's threshold. No gateway may be running: the calls are made by this command.
    """
    home = find_home()
    with answered_as(as_json=as_json):
        wanted = load_suite(suite)
        cases = prepare(wanted, home, beside=suite.parent)
        able = [(case.run, case.options) for case in cases if case.run is not None]
        made = rerun_here(load_settings(home.settings_file), home, able) if able else []
    reports = iter(made)
    verdicts = [
        judge(case, next(reports)) if case.run is not None else Verdict(name=case.name, faults=(case.fault,))
        for case in cases
    ]
    passed = sum(not verdict.faults for verdict in verdicts)
    rate = passed / len(verdicts)
    ok = rate >= wanted.threshold
    if as_json:
        told = {"ok": ok, "suite": wanted.name, "rate": rate, "threshold": wanted.threshold, "passed": passed}
        print_json({**told, "cases": [verdict.as_json() for verdict in verdicts]})
    else:
        _print(verdicts)
        click.echo(f"{passed} of {len(verdicts)} passed: {rate:.0%}, {wanted.threshold:.0%} is the least")
    if not ok:
        sys.exit(1)


def _print(verdicts: list[Verdict]) -> None:
    for verdict in verdicts:
        click.echo(printable(f"{'FAILED' if verdict.faults else 'passed'}  {verdict.name}"))
        for fault in verdict.faults:
            click.echo(printable(f"  {fault}"))
