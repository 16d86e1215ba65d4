"""`omni-mcp servers set`: what stands in servers.toml of a server becomes something else, without an editor."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import orjson

from omni_mcp.cli.in_force import wait_for_servers
from omni_mcp.cli.packages import (
    allowed_lines,
    fetched_of,
    hosts_of,
    let_fetch,
    missing_lines,
    packages_option,
)
from omni_mcp.cli.person import json_option, printable
from omni_mcp.cli.planning import is_secret_variable, mount_of
from omni_mcp.cli.servers_facts import facts_of, get_definition
from omni_mcp.clients.secret_values import is_secret
from omni_mcp.contracts.errors import BadRequest
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.paths import Home, find_home
from omni_mcp.server_definition import ServerDefinition, Servers
from omni_mcp.servers_file import edit_servers, names_in_settings, servers_file_of
from omni_mcp.upstreams.definitions import launch_of

PLACES_OF_A_CELL = (Path("/tmp"), Path("/workspace"))  # its own, and empty


@click.command("set")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@packages_option
@click.option("--allow", "hosts", multiple=True, metavar="HOST:PORT", help="The command may reach this host, too.")
@click.option("--no-hosts", is_flag=True, help="Take away all hosts first.")
@click.option("--dir", "dirs", multiple=True, metavar="DIR[:rw]", help="The command sees this directory, too.")
@click.option("--no-dir", "no_dirs", multiple=True, metavar="DIR", help="It does not see this directory any more.")
@click.option("--cwd", metavar="DIR", help="Where the command starts; a place that it sees.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable of the command that is no secret.")
@click.option("--no-env", multiple=True, metavar="NAME", help="Take this variable away.")
@click.option("--profile", help="Sandbox profile of the command.")
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="Longest call.")
@click.option("--stateful/--stateless", default=None, help="Whether each caller gets a connection of its own.")
@click.option("--description", help="For people.")
@json_option
def set_command(names: tuple[str, ...], packages: bool, as_json: bool, **said: Any) -> None:
    """Change the servers NAME: what they may reach and see, and how they are used.

    It waits until a running gateway goes by it.

    What starts a server is part of what was accepted of it: if that changes, its tools wait until you accept them anew.

    \b
    omni-mcp servers set notes time --packages
    omni-mcp servers set notes --dir ~/notes:rw --timeout 120
    """
    home = find_home()
    if not packages and not any(value not in (None, (), False) for value in said.values()):
        raise click.UsageError("say what is to change; see: omni-mcp servers set --help")
    seen: list[Servers] = []

    def change(now: Servers) -> Servers:
        seen.append(now)
        return now.with_servers({name: _changed(_definition(home, now, name), said) for name in names}, {})

    after = edit_servers(servers_file_of(home), change)
    lines: list[str] = []
    if packages:
        fetched = fetched_of({name: after.servers[name] for name in names}, home)
        after = let_fetch(home, fetched) if hosts_of(fetched) else after
        lines += [f"{one.name} may reach {', '.join(one.source.hosts)}" for one in fetched if one.source.hosts]
        lines += missing_lines([one for one in fetched if not one.source.hosts])
        lines += allowed_lines(home, hosts_of(fetched))
    lines += allowed_lines(home, said["hosts"])
    lines += [line for name in names for line in _unseen_lines(name, after.servers[name])]
    lines += _acceptance_lines(home, seen[0], after, names)
    wait_for_servers(home, names)
    if as_json:
        click.echo(orjson.dumps([facts_of(name, after, None) for name in names]))
    for line in lines:
        click.echo(printable(line), err=as_json)


def _definition(home: Home, now: Servers, name: str) -> ServerDefinition:
    if name not in now.servers and name in names_in_settings(home.settings_file, "servers"):
        raise BadRequest(f"{name} is defined in {home.settings_file}, which no command changes")
    return get_definition(now, name)


def _changed(definition: ServerDefinition, said: dict[str, Any]) -> ServerDefinition:
    fields: JsonObject = {}
    if said["hosts"] or said["no_hosts"]:
        kept = () if said["no_hosts"] else definition.hosts
        fields["hosts"] = list(dict.fromkeys((*kept, *said["hosts"])))
    if said["dirs"] or said["no_dirs"]:
        fields["mounts"] = _mounts(definition, said["dirs"], said["no_dirs"])
    if said["cwd"] is not None:
        fields["cwd"] = os.path.abspath(os.path.expanduser(said["cwd"]))
    if said["env"] or said["no_env"]:
        fields["env"] = _env(definition, said["env"], said["no_env"])
    plain = ("profile", "timeout_s", "stateful", "description")
    return definition.changed(fields | {name: said[name] for name in plain if said[name] is not None})


def _mounts(definition: ServerDefinition, added: Sequence[str], gone: Sequence[str]) -> list[JsonObject]:
    mounts = {mount.source: mount.model_dump() for mount in definition.mounts}
    for text in gone:
        source = os.path.abspath(os.path.expanduser(text))
        if source not in mounts:
            raise BadRequest(f"it does not see {source}; it sees: {', '.join(mounts) or 'nothing of yours'}")
        del mounts[source]
    return list((mounts | {mount["source"]: mount for mount in map(mount_of, added)}).values())


def _unseen_lines(name: str, definition: ServerDefinition) -> Iterator[str]:
    """Yield that a command cannot start where it is told to, if it does not see that place."""
    if definition.cwd is None:
        return
    start = Path(definition.cwd)
    seen = (Path("/usr"), *(Path(mount.source) for mount in definition.mounts))
    if start not in PLACES_OF_A_CELL and not any(start == place or place in start.parents for place in seen):
        yield f"{name} does not see {start}, where it starts; show it: omni-mcp servers set {name} --dir {start}"


def _env(definition: ServerDefinition, added: Sequence[str], gone: Sequence[str]) -> dict[str, str]:
    for name in gone:
        if name not in definition.env:
            raise BadRequest(
                f"it has no variable {name} here; one that is a secret goes with: omni-mcp add … --replace"
            )
    env = {name: value for name, value in definition.env.items() if name not in gone}
    for text in added:
        name, joined, value = text.partition("=")
        if not joined or not name:
            raise click.UsageError("--env needs NAME=VALUE")
        if is_secret(name, value, is_secret_variable):
            raise BadRequest(f"{name} looks like a secret; add the server again: omni-mcp add … --replace --env {name}")
        env[name] = value
    return env


def _acceptance_lines(home: Home, before: Servers, after: Servers, names: Sequence[str]) -> list[str]:
    """Say which servers start otherwise than when something of them was accepted."""
    locked = LockFile(home.lock_file).read().servers
    return [
        f"what starts {name} is not what it was; its tools wait for you: omni-mcp accept {name}"
        for name in names
        if name in locked and locked[name].items and launch_of(before.servers[name]) != launch_of(after.servers[name])
    ]
