"""`omni-mcp runs rerun`: makes the failed calls of a run again, in a child run, through the ordinary chain."""

from __future__ import annotations

from dataclasses import asdict, replace

import click

from omni_mcp.cli.launch import StartFailed, connect, request
from omni_mcp.cli.person import confirm, yes_option
from omni_mcp.cli.runs import answered_as, json_option, print_json, printable
from omni_mcp.cli.runs_replay import REPLAY_S, operator
from omni_mcp.config import load_settings
from omni_mcp.contracts.errors import Internal, OmniError, OutcomeUnknown, classes_by_code
from omni_mcp.contracts.json import JsonObject
from omni_mcp.datalock import read_note
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.paths import Home, find_home
from omni_mcp.replay.here import remake_here
from omni_mcp.replay.remake import BY_PREFIX, Order

GOOD = "answered"
REPORT_LIMIT_BYTES = 1024 * 1024


@click.command("rerun")
@click.argument("run")
@click.option("--call", help="Only this call of the run.")
@click.option("--dry-run", is_flag=True, help="Say what would be made again, and make nothing.")
@yes_option
@json_option
def rerun(run: str, call: str | None, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Make the failed calls of RUN again, each as a new call of whoever made it, in a run whose parent is RUN.

    The policy decides them now, people are asked, and everything is on record. A call that may have taken effect, or
    whose name means another definition now, is made again only after a yes. Exit code 1 if any was not answered.
    """
    home = find_home()
    with answered_as(as_json=as_json):
        with LogReader(home.log_file) as log:
            order = Order(run=log.run_id(run), call=call, by=f"{BY_PREFIX}{operator()}", plan=True)
        plan = _asked(home, order)
        risky = [one for one in plan["calls"] if _wants_yes(one) and not one["why_not"]]
        if not dry_run:
            if risky and not yes:
                _confirm(risky)
            report = _asked(home, replace(order, plan=False, confirmed=tuple(one["call"] for one in risky)))
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
        OutcomeUnknown: the gateway has the order, and was lost before it answered. The order is not given again.
        OmniError: it could not be done, and why.
    """
    try:
        connection = connect(home)
    except StartFailed as error:
        raise Internal(str(error)) from error
    if connection is None:
        if read_note(home.daemon_lock) is None:
            return remake_here(load_settings(home.settings_file), home, order)
        raise Internal("the gateway that runs cannot be asked; see: omni-mcp status")
    asked = {"omni": 1, "control": "rerun", "arguments": asdict(order)}
    with connection:
        try:
            answer = request(connection, asked, timeout_s=REPLAY_S, limit_bytes=REPORT_LIMIT_BYTES)
        except (OSError, ValueError) as error:
            lost = "the gateway was lost before it said what became of the calls; look at: omni-mcp runs failed"
            raise OutcomeUnknown(lost) from error
    if not answer.get("ok"):
        raise _error_of(answer)
    report: JsonObject = answer["report"]
    return report


def _error_of(answer: JsonObject) -> OmniError:
    cls = classes_by_code().get(str(answer.get("code")), OmniError)
    error = cls.__new__(cls)  # some classes write their own message
    OmniError.__init__(error, str(answer.get("error")))
    return error


def _confirm(risky: list[JsonObject]) -> None:
    lines = [printable(f"{one['name']}  {one['failed_as']}, call {one['call']}: {_doubts(one)}") for one in risky]
    text = "\n".join(["These calls want a yes; one that took effect already could do it twice:", *lines])
    confirm(text, "Make them again?", look="look at what they did, then")


def _wants_yes(one: JsonObject) -> bool:
    return bool(one["may_have_taken_effect"] or one["means_another"])


def _doubts(one: JsonObject) -> str:
    effect = "may have taken effect" if one["may_have_taken_effect"] else ""
    another = "its name means another definition now" if one["means_another"] else ""
    return ", ".join(filter(None, (effect, another)))


def _print_report(report: JsonObject, *, dry_run: bool) -> None:
    for one in report["calls"]:
        if one["why_not"]:
            word = f"not made again: {one['why_not']}"
        elif dry_run:
            word = "would be made again" + (f", after a yes: {_doubts(one)}" if _wants_yes(one) else "")
        else:
            word = f"{one['ending']}  {one['message']}".rstrip()
            word += f"  (call {one['made_as']})" if one["made_as"] else ""
        if one["note"] and not one["why_not"]:
            word += f"; {one['note']}"
        click.echo(printable(f"{one['name']}  {one['failed_as']} -> {word}"))
    if report["rerun"]:
        click.echo(f"run {report['rerun']}; see: omni-mcp runs show {report['rerun']}")
