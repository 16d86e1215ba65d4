"""`omni-mcp runs failed`: which calls failed for good, why, how often they were tried, and what to do."""

from __future__ import annotations

import click

from omni_mcp.cli.runs import answered_as, json_option, print_json, printable
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.paths import find_home
from omni_mcp.replay.failed import LOOK_BACK_EVENTS, failed_runs


@click.command("failed")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="Runs.")
@click.option("--all", "everything", is_flag=True, help=f"Look further back than {LOOK_BACK_EVENTS:,} events.")
@json_option
def failed(limit: int, everything: bool, as_json: bool) -> None:
    """List runs with calls that failed for good, newest first; what a policy or a person refused is none of them.

    A call leaves the list once it was made again and that came to an end of its own: `omni-mcp runs rerun RUN`. If it
    fails again, the new call stands here in its place.
    """
    with answered_as(as_json=as_json), LogReader(find_home().log_file) as log:
        found = failed_runs(log, limit=limit, look_back=None if everything else LOOK_BACK_EVENTS)
    if as_json:
        print_json(found)
        return
    for run in found:
        _print_run(run)
    if not found:
        click.echo("no failed calls", err=True)


def _print_run(run: JsonObject) -> None:
    click.echo(f"{run['run']}  {run['at'][:19]}  {len(run['calls'])} failed")
    for call in run["calls"]:
        times = "once" if call["attempts"] == 1 else f"{call['attempts']} times"
        effect = "may have taken effect" if call["dispatched"] else "nothing ran"
        click.echo(printable(f"  {call['name']}  {call['code']}, tried {times} ({effect}), for {call['principal']}"))
        click.echo(printable(f"      {call['detail'] or call['message']}"))
        click.echo(printable(f"      next: {call['next']}"))
