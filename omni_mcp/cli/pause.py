"""`omni-mcp pause` and `resume`: what takes no new calls for now, across restarts."""

from __future__ import annotations

import os
import time

import click
import orjson

from omni_mcp.cli.person import json_option, note_option
from omni_mcp.cli.pins import keys_of
from omni_mcp.cli.trial import known_entries
from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.lock import Lock, Pause, pin_key
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.identity.keys import local_user
from omni_mcp.paths import Home, find_home

kind_argument = click.argument("kind", type=click.Choice(["tool", "server"]))


@click.command("pause")
@kind_argument
@click.argument("name")
@note_option
@json_option
def pause(kind: str, name: str, note: str | None, as_json: bool) -> None:
    """Refuse new calls of the tool or server NAME; those under way finish. It holds until `omni-mcp resume`."""
    key, made = pause_now(find_home(), kind, name, note)
    if as_json:
        click.echo(orjson.dumps({"paused": key, **made.model_dump()}))


@click.command("resume")
@kind_argument
@click.argument("name")
@json_option
def resume(kind: str, name: str, as_json: bool) -> None:
    """Take calls of the paused tool or server NAME again."""
    gone: list[str] = []

    def change(now: Lock) -> Lock:
        names = [name] if kind == "server" else keys_of(name, now.paused)
        gone[:] = [key for key in names if key in now.paused]
        if not gone:
            raise NotFound(f"no {kind} {name!r} is paused; see: omni-mcp status")
        rest = {key: found for key, found in now.paused.items() if key not in gone}
        return now.model_copy(update={"paused": rest})

    LockFile(find_home().lock_file).edit(change)
    if as_json:
        click.echo(orjson.dumps({"resumed": gone[0]}))


def pause_now(home: Home, kind: str, name: str, note: str | None) -> tuple[str, Pause]:
    """Write down that the tool or server *name* is paused; returns under which key.

    Raises:
        NotFound: there is no such thing.
    """
    key = _known_key(home, kind, name)
    made = Pause(by=local_user(os.getuid()).id, at=iso_time(time.time_ns()), note=note)
    LockFile(home.lock_file).edit(lambda now: now.model_copy(update={"paused": {**now.paused, key: made}}))
    return key, made


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
