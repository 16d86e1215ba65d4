"""`omni-mcp servers drain`: one server gets no new calls, and its calls end."""

from __future__ import annotations

import sys
import time

import click
import orjson

from omni_mcp.cli.drain import LOOK_S, Progress, calls_inside, deadline_option
from omni_mcp.cli.pause import pause_now
from omni_mcp.cli.person import json_option, note_option
from omni_mcp.datalock import read_note
from omni_mcp.paths import Home, find_home


@click.command("drain")
@click.argument("name")
@deadline_option
@note_option
@json_option
def drain_command(name: str, deadline_s: float, note: str | None, as_json: bool) -> None:
    """Pause the server NAME and wait until its calls have ended; what is waited for is said on stderr.

    New calls are refused (`paused`), also after a restart, until `omni-mcp resume server NAME`. A call that has not
    been passed on, such as one that waits for a person, is refused when its turn comes, and not waited for; one that
    the server has, and that waits for its caller's input, is.

    Exit code 0 when nothing of it is under way any more, 1 when the deadline came first. Nothing is cancelled.
    """
    home = find_home()
    _, made = pause_now(home, "server", name, note)
    left = _wait(home, name, time.monotonic() + deadline_s)
    if as_json:
        click.echo(orjson.dumps({"paused": name, **made.model_dump(), "drained": not left, "left": left}))
    elif left:
        click.echo(f"{name} is paused and still has {left} calls under way; wait on with the same command", err=True)
    sys.exit(1 if left else 0)


def _wait(home: Home, name: str, ends_s: float) -> int:
    """Wait until the pause is in force and nothing of the server runs; returns how many were left."""
    progress = Progress(ends_s)
    while (found := calls_inside(home)) is not None:
        running = int(found["running"].get(name, 0))
        if name in found["paused"] and not running:
            return 0
        if time.monotonic() >= ends_s:
            return max(running, 1)  # also where the pause is not in force yet: something may still begin
        calls = [one for one in found["calls"] if one["server"] == name and one["dispatched"]]
        progress.show(calls, max(0, running - len(calls)))
        time.sleep(LOOK_S)
    if read_note(home.daemon_lock) is not None:
        text = "paused; the gateway cannot be asked over its local socket, so look at omni-mcp status for its calls"
        click.echo(text, err=True)
    return 0
