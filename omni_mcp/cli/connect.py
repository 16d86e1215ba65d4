"""`omni-mcp connect` and `disconnect`: put the gateway into a client's own configuration, and take it out again."""

from __future__ import annotations

import difflib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import orjson

from omni_mcp.cli.connect_direct import Direct, direct_as_json, direct_lines, direct_of, still_direct
from omni_mcp.cli.person import json_option, printable
from omni_mcp.cli.planning import is_secret_variable, make_home
from omni_mcp.clients.connection import DEFAULT_ENTRY, Connector, Outcome, entry_of
from omni_mcp.clients.places import CLIENTS, ClientName, Place, Scope, Surroundings, place_to_write, surroundings_of
from omni_mcp.clients.records import Records
from omni_mcp.clients.secret_values import shown_file
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.paths import Home, find_home

CONTEXT_LINES = 2
_WAYS = {
    "unchanged": "unchanged", "written": "written", "removed": "our entry is taken out", "restored": "as it was before",
}  # fmt: skip
LONGEST_LINE = 2000
_HOME_VARIABLES = ("OMNI_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")

client_argument = click.argument("client", type=click.Choice(CLIENTS), metavar="CLIENT")
scope_option = click.option(
    "--scope", type=click.Choice(["user", "project", "local"]), default="user", show_default=True,
    help="Everywhere; in one project's own file; or in one project, in your own file (Claude Code).",
)  # fmt: skip
project_option = click.option(
    "--project", type=click.Path(file_okay=False, path_type=Path), help="The project's directory; by default this one."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would change, as a diff, and change nothing.")


@click.command()
@client_argument
@scope_option
@project_option
@click.option("--profile", metavar="NAME", help="Show the client the tools of this profile.")
@click.option("--agent", metavar="NAME", help="Call as this agent of yours; by default the client's name.")
@click.option("--name", default=DEFAULT_ENTRY, show_default=True, help="What the entry is called in the client.")
@click.option("--move", is_flag=True, help="Take out the servers that were imported: they come through us now.")
@dry_run_option
@json_option
def connect(
    client: ClientName, scope: Scope, project: Path | None, profile: str | None, agent: str | None, name: str,
    move: bool, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write this gateway into CLIENT's configuration.

    Everything else in the file stays as it is. The file as it was is kept beside it. With --move only what can come
    through the gateway now is taken out; what is disabled, lacks its secret or is not accepted yet stays, and is named.
    """
    home, around = find_home(), _around(scope, project)
    place = place_to_write(client, scope, around)
    try:
        direct = direct_of(place, around, home)
    except ConfigError:
        if move:
            raise
        direct = []  # a broken servers.toml keeps nobody from connecting
    movable = [one.name for one in direct if move and not one.hindrance]
    entry = entry_of(
        place, own_executable(), agent=agent or client, profile=profile, environment=needed_environment(os.environ)
    )
    if not dry_run:
        make_home(home)
    outcome = _connector(place, home).connect(name, entry, move=movable, dry_run=dry_run)
    rest = still_direct(direct, outcome.moved, outcome.left)
    _tell(outcome, place, rest, dry_run=dry_run, as_json=as_json)


@click.command()
@client_argument
@scope_option
@project_option
@dry_run_option
@json_option
def disconnect(client: ClientName, scope: Scope, project: Path | None, dry_run: bool, as_json: bool) -> None:
    """Take this gateway out of CLIENT's configuration.

    A file that nobody changed since becomes what it was; else only our entry goes, and servers that `--move` had taken
    out come back.
    """
    place = place_to_write(client, scope, _around(scope, project))
    outcome = _connector(place, find_home()).disconnect(dry_run=dry_run)
    _tell(outcome, place, [], dry_run=dry_run, as_json=as_json)


def own_executable() -> list[str]:
    """Return how this program is started, by absolute path: desktop clients often have a short PATH."""
    beside = Path(sys.executable).with_name("omni-mcp")
    if beside.is_file():
        return [str(beside)]
    found = shutil.which("omni-mcp")
    return [os.path.abspath(found)] if found else [sys.executable, "-m", "omni_mcp.cli.main"]


def needed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without which a client would start another gateway than this command means."""
    bare = {key: value for key, value in environment.items() if key not in _HOME_VARIABLES}
    here, there = find_home(dict(environment)), find_home(bare)
    if (here.config, here.data) == (there.config, there.data):
        return {}
    names = ("OMNI_HOME",) if environment.get("OMNI_HOME") else _HOME_VARIABLES[1:]
    return {name: os.path.abspath(environment[name]) for name in names if environment.get(name)}


def diff_of(outcome: Outcome) -> str:
    """Return the change as a unified diff; values that may be secrets are not shown."""
    before, after = ((text or "").splitlines() for text in (outcome.before, outcome.after))
    same = _common(before, after)
    same_at_end = _common(before[same:][::-1], after[same:][::-1])
    first = max(same - CONTEXT_LINES, 0)
    shown_before, shown_after = (
        _shown_lines(lines[first : min(len(lines) - same_at_end + CONTEXT_LINES, len(lines))])
        for lines in (before, after)
    )
    old = str(outcome.file) if outcome.before is not None else "/dev/null"
    new = str(outcome.file) if outcome.after is not None else "/dev/null"
    diff = difflib.unified_diff(shown_before, shown_after, old, new, n=CONTEXT_LINES, lineterm="")
    return "\n".join(_moved_down(line, first) for line in diff)


def _shown_lines(lines: Sequence[str]) -> list[str]:
    shown = shown_file("\n".join(lines), is_secret_variable)
    return [printable(line)[:LONGEST_LINE] for line in shown.splitlines()]


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def _moved_down(line: str, first: int) -> str:
    """Correct the line numbers of a hunk: only a part of the file was compared."""
    if not line.startswith("@@ ") or not first:
        return line
    words = line.split(" ")
    for index in (1, 2):
        start, comma, count = words[index][1:].partition(",")
        words[index] = f"{words[index][0]}{int(start) + first}{comma}{count}"
    return " ".join(words)


def _around(scope: Scope, project: Path | None) -> Surroundings:
    directory = None if scope == "user" and project is None else Path(os.path.abspath(project or Path.cwd()))
    return surroundings_of(os.environ, platform=sys.platform, project=directory)


def _connector(place: Place, home: Home) -> Connector:
    return Connector(place, Records(home.data), stamp=lambda: datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"))


def _tell(outcome: Outcome, place: Place, direct: Sequence[Direct], *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        backup = str(outcome.backup) if outcome.backup else None
        facts = {
            "client": place.client, "scope": place.scope, "file": str(outcome.file), "change": outcome.way,
            "dry_run": dry_run, "backup": backup, "moved": outcome.moved, "left": outcome.left,
            "diff": diff_of(outcome) if dry_run else None, "direct": direct_as_json(direct),
        }  # fmt: skip
        click.echo(orjson.dumps(facts))
        return
    if dry_run:
        click.echo(diff_of(outcome) or f"{outcome.file}: nothing to change")
        _tell_of(direct, place)
        return
    click.echo(f"{outcome.file}: {_WAYS[outcome.way]}")
    if outcome.backup:
        click.echo(f"  as it was: {outcome.backup}")
    if outcome.moved:
        verb = "taken out" if outcome.way == "written" else "back"
        click.echo(f"  {verb}: {', '.join(map(printable, outcome.moved))}")
    _tell_of(direct, place)
    if outcome.way != "unchanged":
        click.echo(f"  restart {place.client} to make it read the file")


def _tell_of(direct: Sequence[Direct], place: Place) -> None:
    scope = "" if place.scope == "user" else f" --scope {place.scope} --project {place.project}"
    for line in direct_lines(direct, f"omni-mcp connect {place.client}{scope} --move"):
        click.echo(line)
