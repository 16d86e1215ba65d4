"""`omni-mcp add` and `servers add-json`: what a person says of one server becomes its definition in servers.toml."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import orjson

from omni_mcp.cli.packages import (
    allowed_lines,
    fetched_of,
    hosts_of,
    let_fetch,
    may_fetch,
    missing_lines,
    packages_as_json,
    packages_option,
)
from omni_mcp.cli.person import json_option
from omni_mcp.cli.planning import is_secret_variable, make_home, mount_of, planner_of, secrets_dir_of, server_lines
from omni_mcp.cli.servers_facts import facts_of
from omni_mcp.cli.servers_setup import (
    Accepts,
    Answers,
    Lets,
    accept_option,
    accept_risks_option,
    let_option,
    say_next,
    set_up_or_say,
)
from omni_mcp.clients.candidate import Candidate, SecretSource, Translator
from omni_mcp.clients.found import FoundServer
from omni_mcp.clients.places import Place, Surroundings, surroundings_of
from omni_mcp.clients.plan import PlannedServer, remove_secret_files, write_secrets
from omni_mcp.clients.reading import server_from_json
from omni_mcp.clients.template import Template, Unclear
from omni_mcp.contracts.errors import BadRequest, Conflict
from omni_mcp.contracts.json import JsonObject
from omni_mcp.host_places import HostPlaces
from omni_mcp.paths import find_home
from omni_mcp.server_definition import ServerDefinition, Servers
from omni_mcp.servers_file import check_mounts, edit_servers, load_servers, names_in_settings, servers_file_of

# What a person may say in JSON beside what clients know.
_OUR_KEYS = frozenset({"profile", "hosts", "mounts", "stateful", "description", "timeout_s"})
_COMMAND_LINE = Path("the command line")

replace_option = click.option("--replace", "replaces", is_flag=True, help="Replace a server of that name.")


@click.command()
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND [ARGS]...]")
@click.option("--url", help="The server is there, instead of a command.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="Sent to the URL; kept as a secret.")
@click.option("--transport", type=click.Choice(["auto", "http", "sse"]), default="auto", show_default=True)
@click.option(
    "--env", multiple=True, metavar="NAME[=VALUE]",
    help="A variable of the command. Without a value: the gateway's own variable of that name, as a secret.",
)  # fmt: skip
@click.option("--secret", "secrets", multiple=True, metavar="NAME=SECRET", help="A variable from a known secret.")
@click.option("--dir", "dirs", multiple=True, metavar="DIR[:rw]", help="The command sees this directory.")
@click.option("--allow", "hosts", multiple=True, metavar="HOST:PORT", help="The command may reach this host.")
@click.option("--cwd", type=click.Path(path_type=Path), help="Where the command starts.")
@click.option("--profile", help="Sandbox profile of the command; by default one that suits it.")
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="Longest call.")
@click.option("--stateful", is_flag=True, help="It keeps state for each caller: each gets a connection of its own.")
@click.option("--description", default="", help="For people.")
@click.option("--disabled", is_flag=True, help="Add it, but do not use it yet.")
@packages_option
@accept_option
@accept_risks_option
@let_option
@replace_option
@json_option
def add(
    name: str, command: tuple[str, ...], url: str | None, as_json: bool, replaces: bool, packages: bool,
    accepts: Accepts | None, accept_risks: bool, lets: Lets | None, **said: Any,
) -> None:  # fmt: skip
    """Add the server NAME: a command that runs in the sandbox, or a URL.

    On a terminal it goes on: it starts the server once, shows what it offers and what the sandbox lets it do, and asks
    what of it clients may call. --accept and --let answer beforehand.

    \b
    omni-mcp add notes --dir ~/notes:rw -- npx -y @modelcontextprotocol/server-filesystem ~/notes
    omni-mcp add search --url https://mcp.example.org/mcp --header "Authorization=Bearer TOKEN"
    omni-mcp add time --accept read-only --let read-only -- uvx mcp-server-time
    """
    if bool(command) == (url is not None):
        raise click.UsageError("give either a command behind -- or --url")
    answers = Answers.of(accepts, lets, accepts_risks=accept_risks, as_json=as_json)
    found = FoundServer(
        name=name,
        place=_place(),
        command=(command[0],) if command else None,
        args=tuple((word,) for word in command[1:]),
        env=dict(_variable(text) for text in said["env"] if "=" in text),
        cwd=(os.path.abspath(said["cwd"]),) if said["cwd"] else None,
        url=(url,) if url is not None else None,
        headers=dict(_header(text) for text in said["headers"]),
        transport=said["transport"],
        timeout_s=said["timeout_s"],
        enabled=not said["disabled"],
    )
    more: JsonObject = {
        "mounts": [mount_of(text) for text in said["dirs"]],
        "hosts": list(said["hosts"]),
        "profile": said["profile"],
        "stateful": said["stateful"],
        "description": said["description"],
    }
    known = dict(_pair(text, "--secret") for text in said["secrets"])
    own = [text for text in said["env"] if "=" not in text]
    more = {key: value for key, value in more.items() if value}
    added = _add(found, more, known, own, replaces=replaces, quiet=as_json)
    added |= _open(name, packages=packages, quiet=as_json)
    came = {} if said["disabled"] else set_up_or_say(find_home(), name, answers)
    if as_json:
        click.echo(orjson.dumps(added | came))
    if came.get("fault") or came.get("refused"):
        sys.exit(1)


@click.command("add-json")
@click.argument("name")
@click.argument("text", metavar="JSON")
@packages_option
@replace_option
@json_option
def add_json(name: str, text: str, packages: bool, replaces: bool, as_json: bool) -> None:
    """Add the server NAME from JSON as clients have it: {"command": …, "args": […], "env": {…}} or {"url": …}.

    `-` reads it from standard input, which keeps secrets out of the shell's history.
    """
    try:
        entry = orjson.loads(sys.stdin.buffer.read() if text == "-" else text)
    except ValueError as error:
        raise BadRequest(f"that is no JSON: {error}") from error
    for wrapper in ("mcpServers", "servers"):
        inner = entry.get(wrapper) if isinstance(entry, dict) else None
        if isinstance(inner, dict) and len(inner) == 1:
            entry = next(iter(inner.values()))
    if not isinstance(entry, dict):
        raise BadRequest("that is no object")
    more = {key: value for key, value in entry.items() if key in _OUR_KEYS}
    try:
        rest = {key: value for key, value in entry.items() if key not in _OUR_KEYS}
        found = server_from_json(name, rest, _place(), _around())
    except Unclear as error:
        raise BadRequest(f"the server cannot be added: it {error}") from error
    added = _add(found, more, {}, [], replaces=replaces, quiet=as_json)
    added |= _open(name, packages=packages, quiet=as_json)
    if as_json:
        click.echo(orjson.dumps(added))
    else:
        say_next(name)


def _open(name: str, *, packages: bool, quiet: bool) -> JsonObject:
    """Let the added server reach its package source, if that is wanted; else say what it lacks."""
    home = find_home()
    fetched = fetched_of({name: load_servers(servers_file_of(home)).servers[name]}, home)
    if not fetched:
        return {}
    allowed = packages or (not quiet and may_fetch(fetched))
    now = let_fetch(home, fetched) if allowed else None
    lines = [*missing_lines([one for one in fetched if not (allowed and one.source.hosts)])]
    lines += allowed_lines(home, hosts_of(fetched)) if allowed else []
    for line in () if quiet else lines:
        click.echo(line, err=True)
    facts = {"packages": packages_as_json(fetched, allowed=allowed)}
    return (facts_of(name, now, None) if now is not None else {}) | facts


def _add(
    found: FoundServer, more: JsonObject, known: dict[str, str], own: list[str], *, replaces: bool, quiet: bool
) -> JsonObject:
    """Add *found* and return its facts: *more* are further fields, *known* variables with their secrets, *own*
    variables of the gateway."""
    home, around = find_home(), _around()
    if found.name in names_in_settings(home.settings_file, "servers"):
        raise Conflict(f"{found.name!r} is defined in omni.toml; choose another name")
    try:
        candidate = _with_more(_translator(around).candidate_of(found), more, [*known, *own])
        sources = {name: SecretSource(kind="env", variable=name) for name in own}
        candidate = replace(candidate, secret_env={**candidate.secret_env, **sources})
    except Unclear as error:
        raise BadRequest(f"the server cannot be added: {error}") from error
    planned: list[PlannedServer] = []
    gone: list[tuple[Servers, Servers]] = []

    def change(now: Servers) -> Servers:
        if found.name in now.servers:
            if not replaces:
                raise Conflict(f"there is a server {found.name!r} already; add --replace, or choose another name")
            without = now.without_server(found.name)
            gone.append((now, without))
            now = without
        server = planner_of(home, around).named(found.name, candidate, now.secrets)
        server = replace(server, definition=_said_in_full(server.definition, more, known))
        after = now.with_servers({server.name: server.definition}, {one.name: one.reference for one in server.secrets})
        check_mounts(server.name, server.definition, HostPlaces(home))
        write_secrets(server.secrets, secrets_dir_of(home))
        planned.append(server)
        return after

    make_home(home)
    after = edit_servers(servers_file_of(home), change)
    for before, _ in gone:
        remove_secret_files(before, after, secrets_dir_of(home))
    server = planned[-1]
    for line in server_lines(server) if not quiet else ():
        click.echo(line)
    return {**facts_of(server.name, after, None), "notes": list(server.notes)}


def _translator(around: Surroundings) -> Translator:
    return Translator(environment=os.environ, home=around.home, is_secret_name=is_secret_variable)


def _with_more(candidate: Candidate, more: JsonObject, variables: Sequence[str]) -> Candidate:
    """Take out the mounts that were only proposed: here a person says which there are."""
    said = {mount["source"] for mount in more.get("mounts", ()) if isinstance(mount, dict) and "source" in mount}
    fields = dict(candidate.fields)
    proposed = [mount["source"] for mount in fields.pop("mounts", ()) if not _is_covered(mount["source"], said)]
    spoken_for = tuple(f"{path} is not shown to it" for path in said)
    notes = [note for note in candidate.notes if not note.startswith(spoken_for)]
    if proposed:
        notes.append(f"names {', '.join(proposed)} but cannot see it; add --dir PATH if it should")
    if variables and candidate.found.command is None:
        raise Unclear(f"{', '.join(variables)}: variables go with a command")
    return replace(candidate, fields=fields, notes=tuple(notes))


def _is_covered(path: str, said: set[str]) -> bool:
    return any(path == top or Path(top) in Path(path).parents for top in said)


def _said_in_full(definition: ServerDefinition, more: JsonObject, known: dict[str, str]) -> ServerDefinition:
    """Return *definition* with what else was said; the directories of its program stay."""
    fields = dict(more)
    if "mounts" in more and isinstance(more["mounts"], list):
        fields["mounts"] = [*more["mounts"], *(mount.model_dump() for mount in definition.mounts)]
    if known:
        fields["secrets"] = {**definition.secrets, **known}
    return definition.changed(fields)


def _place() -> Place:
    return Place(client="claude-code", scope="user", file=_COMMAND_LINE, path=())


def _around() -> Surroundings:
    return surroundings_of(os.environ, platform=sys.platform)


def _pair(text: str, option: str) -> tuple[str, str]:
    name, joined, value = text.partition("=")
    if not joined or not name:
        raise click.UsageError(f"{option} needs NAME=VALUE")
    return name, value


def _variable(text: str) -> tuple[str, Template]:
    name, value = _pair(text, "--env")
    return name, (value,)


def _header(text: str) -> tuple[str, Template]:
    name, colon, value = text.partition(":")
    if colon and "=" not in name:
        return name.strip(), (value.strip(),)
    name, value = _pair(text, "--header")
    return name.strip(), (value,)
