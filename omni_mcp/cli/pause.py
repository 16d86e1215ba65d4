"""`omni-mcp pause` and `resume`: what takes no new calls for now, across restarts."""

from __future__ import annotations

import os
import time

import click
import orjson

from omni_mcp.cli.drain import LOOK_S, calls_inside
from omni_mcp.cli.person import json_option, note_option, printable
from omni_mcp.cli.pins import keys_of
from omni_mcp.cli.trial import known_entries
from omni_mcp.contracts.errors import Conflict, NotFound
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.lock import Lock, Pause, pin_key
from omni_mcp.datalock import read_note
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.identity.keys import local_user
from omni_mcp.paths import Home, find_home

WAIT_LIMIT_S = 30.0  # the gateway looks every second; the rest is for a loaded machine
FROM_THE_NEXT_START = ", from the next start of the gateway: none runs here"
WHERE_TO_LOOK = "see: omni-mcp status, omni-mcp doctor"

kind_argument = click.argument("kind", type=click.Choice(["tool", "server"]))


@click.command("pause")
@kind_argument
@click.argument("name")
@note_option
@json_option
def pause(kind: str, name: str, note: str | None, as_json: bool) -> None:
    """Refuse new calls of the tool or server NAME; those under way finish. It holds until `omni-mcp resume`.

    It waits until the running gateway refuses them.
    """
    home = find_home()
    key, made = pause_now(home, kind, name, note)
    holds = _wait(home, key, held=True)
    if as_json:
        click.echo(orjson.dumps({"paused": key, **made.model_dump(), "in_force": holds}))
    else:
        click.echo(f"paused: {printable(name)} takes no new calls{'' if holds else FROM_THE_NEXT_START}")


@click.command("resume")
@kind_argument
@click.argument("name")
@json_option
def resume(kind: str, name: str, as_json: bool) -> None:
    """Take calls of the paused tool or server NAME again. It waits until the running gateway does."""
    home = find_home()
    gone: list[str] = []

    def change(now: Lock) -> Lock:
        names = [name] if kind == "server" else keys_of(name, now.paused)
        gone[:] = [key for key in names if key in now.paused]
        if not gone:
            raise NotFound(f"no {kind} {name!r} is paused; see: omni-mcp status")
        rest = {key: found for key, found in now.paused.items() if key not in gone}
        return now.model_copy(update={"paused": rest})

    LockFile(home.lock_file).edit(change)
    holds = all(_wait(home, key, held=False) for key in gone)
    if as_json:
        click.echo(orjson.dumps({"resumed": gone[0], "in_force": holds}))
    else:
        click.echo(f"resumed: {printable(name)} takes calls again{'' if holds else FROM_THE_NEXT_START}")


def pause_now(home: Home, kind: str, name: str, note: str | None) -> tuple[str, Pause]:
    """Write down that the tool or server *name* is paused; returns under which key.

    Raises:
        NotFound: there is no such thing.
    """
    key = _known_key(home, kind, name)
    made = Pause(by=local_user(os.getuid()).id, at=iso_time(time.time_ns()), note=note)
    LockFile(home.lock_file).edit(lambda now: now.model_copy(update={"paused": {**now.paused, key: made}}))
    return key, made


def _wait(home: Home, key: str, *, held: bool) -> bool:
    """Wait until the running gateway has *key* among what is paused, or not any more; False if none runs.

    Raises:
        Conflict: it does not, or cannot be asked.
    """
    ends_s = time.monotonic() + WAIT_LIMIT_S
    while (found := calls_inside(home)) is not None:
        if (key in found["paused"]) == held:
            return True
        if time.monotonic() >= ends_s:
            raise Conflict(f"it is written down, and the gateway does not say that it holds; {WHERE_TO_LOOK}")
        time.sleep(LOOK_S)
    if read_note(home.daemon_lock) is not None:
        raise Conflict(f"it is written down, and the gateway cannot be asked over its local socket; {WHERE_TO_LOOK}")
    return False


def _known_key(home: Home, kind: str, name: str) -> str:
    entries = known_entries(home)
    if kind == "server":
        if all(entry.server != name for entry in entries):
            raise NotFound(f"no accepted tool is of a server {name!r}; see: omni-mcp servers list")
        return name
    known = {pin_key(entry.server, f"{entry.kind}/{entry.name}") for entry in entries}
    key = next((key for key in keys_of(name, known) if key in known), None)
    if key is None:
        raise NotFound(f"nothing is called {name!r}; see: omni-mcp tools list, omni-mcp lock")
    return key
