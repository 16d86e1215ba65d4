"""`omni-mcp pins`: keep a project at one version of a tool while others go on to the next."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import click
import orjson

from omni_mcp.cli.person import json_option
from omni_mcp.cli.trial import known_entries
from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.lock import Lock, Pin, pin_key
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.difference_text import one_line
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.catalog.names import public_name, server_of
from omni_mcp.engines.catalog.pins import with_pin, without_pin
from omni_mcp.engines.identity.keys import local_user
from omni_mcp.paths import Home, find_home

KINDS = ("tool", "prompt", "resource", "resource_template")


@click.group()
def pins() -> None:
    """Keep a project at one version of a tool; list and remove such pins.

    A pin holds whatever is accepted or installed later. If its version is taken away, calls fail with pin_missing.
    """


@pins.command("list")
@click.option("--project", help="Only this project's.")
@json_option
def list_pins(project: str | None, as_json: bool) -> None:
    """List the pins, and whether their versions are there."""
    home = find_home()
    lock = LockFile(home.lock_file).read()
    there = _versions(home, lock)
    found = [
        {"project": name, "item": item, "version": pin.version, "by": pin.by, "at": pin.at,
         "there": pin.version in there.get(item, ())}
        for name, wanted in sorted(lock.pins.items())
        for item, pin in sorted(wanted.items())
        if project in (None, name)
    ]  # fmt: skip
    if as_json:
        click.echo(orjson.dumps(found))
        return
    for one in found:
        missing = "" if one["there"] else "  (missing: its calls fail)"
        click.echo(one_line(f"{one['project']:<24} {one['item']} @ {one['version']}{missing}"))
    if not found:
        click.echo("No project is pinned. Pin one: omni-mcp pins set PROJECT TOOL VERSION")


@pins.command("set")
@click.argument("project")
@click.argument("tool")
@click.argument("version")
@json_option
def set_pin(project: str, tool: str, version: str, as_json: bool) -> None:
    """Keep PROJECT at VERSION of TOOL, such as notes__look or notes/prompt/greet."""
    home = find_home()
    by, at = local_user(os.getuid()).id, iso_time(time.time_ns())
    pin = Pin(version=version, by=by, at=at)

    def change(now: Lock) -> Lock:
        there = _versions(home, now)
        key = next((key for key in keys_of(tool, there) if key in there), None)
        if key is None:
            raise NotFound(f"nothing is called {tool!r}; see: omni-mcp tools list, omni-mcp lock")
        if version not in there[key]:
            known = ", ".join(sorted(there[key]))
            raise NotFound(f"there is no version {version} of {tool}; choose one of: {known}")
        server, _, item = key.partition("/")
        return with_pin(now, project, server, item, pin)

    LockFile(home.lock_file).edit(change)
    if as_json:
        click.echo(orjson.dumps({"project": project, "tool": tool, "version": version}))


@pins.command("remove")
@click.argument("project")
@click.argument("tool")
@json_option
def remove_pin(project: str, tool: str, as_json: bool) -> None:
    """Let PROJECT have the version in force of TOOL again."""
    LockFile(find_home().lock_file).edit(
        lambda now: without_pin(now, project, keys_of(tool, now.pins.get(project, {})))
    )
    if as_json:
        click.echo(orjson.dumps({"project": project, "tool": tool, "version": None}))


def _versions(home: Home, lock: Lock) -> dict[str, set[str]]:
    """Return the versions of everything that can be pinned: what is accepted, and what manifests define."""
    found: dict[str, set[str]] = {}
    for server, item, version, _ in lock.versions():
        found.setdefault(pin_key(server, item), set()).add(version)
    for entry in known_entries(home):
        if entry.manifest is not None:
            found.setdefault(_key_of(entry), set()).add(entry.version)
    return found


def _key_of(entry: Entry) -> str:
    return pin_key(entry.server, f"{entry.kind}/{entry.name}")


def keys_of(text: str, known: Iterable[str]) -> list[str]:
    """Return the keys that a person may mean: a public name, `server/tool`, or a whole key."""
    parts = text.split("/", 2)
    if len(parts) == 3 and parts[1] in KINDS:
        return [text]
    if len(parts) == 2:
        return [f"{parts[0]}/tool/{parts[1]}"]
    server = server_of(text)
    named = [key for key in known if _is_called(key, text)]
    return named or ([f"{server}/tool/{text.partition('__')[2]}"] if server else [])


def _is_called(key: str, public: str) -> bool:
    server, kind, name = key.split("/", 2)
    return kind in ("tool", "prompt") and public_name(server, name) == public
