"""`omni-mcp runs rerun`: makes the failed calls of a run again, in a child run, through the ordinary chain."""

from __future__ import annotations

from dataclasses import asdict, replace

import click

from omni_mcp.cli.launch import control
from omni_mcp.cli.person import confirm, yes_option
from omni_mcp.cli.runs import answered_as, json_option, print_json, printable
from omni_mcp.cli.runs_replay import REPLAY_S, operator
from omni_mcp.config import load_settings
from omni_mcp.contracts.errors import OmniError, classes_by_code
from omni_mcp.contracts.json import JsonObject
from omni_mcp.datalock import read_note
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.paths import Home, find_home
from omni_mcp.replay.here import remake_here
from omni_mcp.replay.remake import Order

GOOD = "answered"


@click.command("rerun")
@click.argument("run")
@click.option("--call", help="Only this call of the run.")
@click.option("--dry-run", is_flag=True, help="Say what would be made again, and make nothing.")
@yes_option
@json_option
def rerun(run: str, call: str | None, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Make the failed calls of RUN again, each as a new call of whoever made it, in a run whose parent is RUN.

    The policy decides them now, people are asked, and everything is on record. A call that may have taken effect is
    made again only after a yes: look at the effect first. Exit code 1 if any was not answered.
    """
    home = find_home()
    with answered_as(as_json=as_json):
        with LogReader(home.log_file) as log:
            order = Order(run=log.run_id(run), call=call, by=f"operator:{operator()}", plan=True)
        plan = _asked(home, order)
        risky = [one for one in plan["calls"] if one["may_have_taken_effect"] and not one["why_not"]]
        if not dry_run:
            if risky and not yes:
                _confirm(risky)
            report = _asked(home, replace(order, plan=False, effects=tuple(one["call"] for one in risky)))
        else:
            report = plan
    if as_json:
        print_json(report)
    else:
        _print_report(report, dry_run=dry_run)
    if not dry_run and any(one.get("ending") != GOOD for one in report["calls"]):
        raise click.exceptions.Exit(1)
    if dry_run and all(one["why_not"] for one in report["calls"]):
        raise click.exceptions.Exit(1)


def _asked(home: Home, order: Order) -> JsonObject:
    """Have the running gateway do it, else one that is opened for as long as it takes.

    Raises:
        OmniError: it could not be done, and why.
    """
    answer = control(home, "rerun", timeout_s=REPLAY_S, arguments=asdict(order))
    if answer is None and read_note(home.daemon_lock) is None:
        return remake_here(load_settings(home.settings_file), home, order)
    if answer is not None and answer.get("ok"):
        report: JsonObject = answer["report"]
        return report
    raise _error_of(answer or {"error": "the gateway that runs cannot be asked; see: omni-mcp status"})


def _error_of(answer: JsonObject) -> OmniError:
    cls = classes_by_code().get(str(answer.get("code")), OmniError)
    error = cls.__new__(cls)  # some classes write their own message
    OmniError.__init__(error, str(answer.get("error")))
    return error


def _confirm(risky: list[JsonObject]) -> None:
    lines = [f"{one['name']}  {one['failed_as']}, call {one['call']}" for one in risky]
    text = "\n".join(["These calls may have taken effect already; made again, that could happen twice:", *lines])
    confirm(text, "Make them again?", look="look at what they did, then")


def _print_report(report: JsonObject, *, dry_run: bool) -> None:
    for one in report["calls"]:
        if one["why_not"]:
            word = f"not made again: {one['why_not']}"
        elif dry_run:
            word = "would be made again" + (", after a yes" if one["may_have_taken_effect"] else "")
        else:
            word = f"{one['ending']}  {one['message']}".rstrip() + f"  (call {one['made_as']})"
        click.echo(printable(f"{one['name']}  {one['failed_as']} -> {word}"))
    if report["rerun"]:
        click.echo(f"run {report['rerun']}; see: omni-mcp runs show {report['rerun']}")
