"""`omni-mcp import`: bring the servers of one's clients behind the gateway, with their secrets out of the way."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import orjson

from omni_mcp.cli.packages import (
    Fetched,
    allowed_lines,
    fetched_of,
    hosts_of,
    let_fetch,
    may_fetch,
    missing_lines,
    packages_as_json,
    packages_option,
)
from omni_mcp.cli.person import confirm, json_option, printable, yes_option
from omni_mcp.cli.planning import make_home, planner_of, secrets_dir_of, server_lines, shown_target
from omni_mcp.cli.servers_setup import (
    Accepts,
    Answers,
    Lets,
    accept_option,
    accept_risks_option,
    go_on,
    let_option,
)
from omni_mcp.clients.candidate import input_key
from omni_mcp.clients.found import Reading
from omni_mcp.clients.places import CLIENTS, TRAITS, ClientName, Place, Surroundings, places_of, surroundings_of
from omni_mcp.clients.plan import ImportPlan, PlannedServer, carry_out
from omni_mcp.clients.reading import read_client_file, read_place
from omni_mcp.contracts.errors import BadRequest
from omni_mcp.contracts.json import JsonObject
from omni_mcp.paths import Home, find_home
from omni_mcp.servers_file import load_servers, servers_file_of


@click.command("import")
@click.argument("clients", nargs=-1, type=click.Choice(CLIENTS), metavar="[CLIENT]...")
@click.option(
    "--file", type=click.Path(dir_okay=False, path_type=Path), help="Read this file, in the spelling of CLIENT."
)
@click.option(
    "--project", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Read the files of this project, too. They are only read if named: a checkout can hold anything.",
)  # fmt: skip
@packages_option
@click.option("--allow", "hosts", multiple=True, metavar="HOST:PORT", help="The added commands may reach this host.")
@accept_option
@accept_risks_option
@let_option
@click.option("--dry-run", is_flag=True, help="Show what would be added and add nothing.")
@yes_option
@json_option
def import_servers(
    clients: tuple[ClientName, ...], file: Path | None, project: Path | None, packages: bool, hosts: tuple[str, ...],
    accepts: Accepts | None, accept_risks: bool, lets: Lets | None, dry_run: bool, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Add the servers of CLIENT (claude-desktop, claude-code, cursor, vscode, codex; by default all) to servers.toml.

    Secrets are written to files of their own and never shown. What is added is in quarantine until it is accepted: on a
    terminal you are asked now, --accept and --let answer beforehand. Exit code 1 if something could not be taken, or
    did not start.

    \b
    omni-mcp import --packages
    omni-mcp import --yes --packages --accept all --let all
    """
    answers = Answers.of(accepts, lets, accepts_risks=accept_risks, as_json=as_json)
    home = find_home()
    directory = Path(os.path.abspath(project)) if project else None
    around = surroundings_of(os.environ, platform=sys.platform, project=directory)
    readings = _readings(clients, file, around)
    plan = _plan(readings, home, around, {})
    asks = not dry_run and not yes and sys.stdin.isatty()
    if asks:
        plan = _plan(readings, home, around, _answers(plan))
    plan = plan.open_to(hosts)
    shown = "\n".join(_lines(plan, readings))
    fetched = fetched_of({server.name: server.definition for server in plan.new}, home)
    if plan.new and not dry_run:
        if not yes:
            confirm(shown, f"Add {len(plan.new)} to {servers_file_of(home)}?", look="look with --dry-run")
        packages = packages or (asks and may_fetch(fetched))
        make_home(home)
        carry_out(plan, file=servers_file_of(home), secrets_dir=secrets_dir_of(home))
        if packages:
            let_fetch(home, fetched)
    if as_json:
        found = _as_json(plan, readings, servers_file_of(home), dry_run=dry_run)
        click.echo(orjson.dumps(found | {"packages": packages_as_json(fetched, allowed=packages)}))
    elif dry_run or yes or not plan.new:
        click.echo(shown)
    if not as_json:
        for line in _lines_about_packages(plan, fetched, home, packages=packages):
            click.echo(line)
    startable = [] if dry_run else _startable(plan, () if packages else fetched)
    if startable and answers.accepts == "none" and not as_json:
        click.echo("next, to say what clients may call: " + "; ".join(f"omni-mcp accept {name}" for name in startable))
    faults = go_on(home, startable, answers)
    sys.exit(1 if faults or plan.not_taken or not all(reading.readable for reading in readings) else 0)


def _startable(plan: ImportPlan, fetched: Sequence[Fetched]) -> list[str]:
    """Return the names of those that can be started now."""
    waiting = {one.name for one in fetched}
    return [server.name for server in plan.new if server.definition.enabled and server.name not in waiting]


def _lines_about_packages(plan: ImportPlan, fetched: Sequence[Fetched], home: Home, *, packages: bool) -> Iterator[str]:
    if packages:
        yield from missing_lines([one for one in fetched if not one.source.hosts])
        yield from allowed_lines(home, hosts_of(fetched))
        same = fetched_of({server.name: server.definition for server in plan.servers if server.state == "same"}, home)
        yield from missing_lines(same)
    else:
        yield from missing_lines(fetched)


def _readings(clients: Sequence[ClientName], file: Path | None, around: Surroundings) -> list[Reading]:
    if file is None:
        places = [place for client in clients or CLIENTS for place in places_of(client, around)]
        return [read_place(place, around) for place in places]
    if len(clients) > 1:
        raise click.UsageError("--file goes with one CLIENT, or with none")
    client = clients[0] if clients else _client_of(file)
    scope = "project" if around.project and "project" in TRAITS[client].scopes else "user"
    place = Place(client=client, scope=scope, file=file, path=(TRAITS[client].key,), project=around.project)  # type: ignore[arg-type] # one of two
    reading = read_place(place, around)
    if not reading.exists:
        raise BadRequest(f"there is no file {file}")
    return [reading]


def _client_of(file: Path) -> ClientName:
    """Guess whose spelling *file* has."""
    if file.suffix == ".toml":
        return "codex"
    try:
        text = read_client_file(file) or ""
    except (OSError, ValueError):
        text = ""
    if '"mcpServers"' not in text and '"servers"' in text:
        return "vscode"
    return "cursor" if "${env:" in text or "${workspaceFolder" in text else "claude-code"


def _plan(readings: Sequence[Reading], home: Home, around: Surroundings, answers: dict[str, str]) -> ImportPlan:
    return planner_of(home, around, answers).plan(readings, load_servers(servers_file_of(home)))


def _answers(plan: ImportPlan) -> dict[str, str]:
    """Ask on the terminal for what the client would have asked for; an empty answer leaves it open."""
    answers: dict[str, str] = {}
    for server in plan.new:
        for ask in server.asks:
            key = input_key(server.found[0], ask.id)
            if key in answers:
                continue
            text = f"{server.name} needs {ask.description or ask.id} (empty: later)"
            answers[key] = click.prompt(printable(text), default="", hide_input=True, show_default=False, err=True)
    return {key: answer for key, answer in answers.items() if answer}


def _lines(plan: ImportPlan, readings: Sequence[Reading]) -> Iterator[str]:
    for server in plan.servers:
        yield from server_lines(server)
        for found in server.found:
            yield f"    from {printable(found.origin)} in {found.place.file}"
    for refused in plan.not_taken:
        place = f"{refused.place.file}:{refused.line}" if refused.line else str(refused.place.file)
        yield f"not taken, {printable(refused.name)} of {refused.place.client}: {printable(refused.reason)} ({place})"
    for problem in plan.problems:
        yield f"note, {printable(str(problem))}"
    if not any(reading.exists for reading in readings):
        yield "No client's configuration was found here."
    elif not plan.servers and not plan.not_taken and not plan.problems:
        yield "No servers were found: " + ", ".join(str(reading.place.file) for reading in readings if reading.exists)


def _as_json(plan: ImportPlan, readings: Sequence[Reading], file: Path, *, dry_run: bool) -> JsonObject:
    return {
        "file": str(file),
        "dry_run": dry_run,
        "read": [str(reading.place.file) for reading in readings if reading.exists],
        "servers": [_server_as_json(server) for server in plan.servers],
        "not_taken": [
            {
                "name": refused.name,
                "client": refused.place.client,
                "file": str(refused.place.file),
                "line": refused.line,
                "reason": refused.reason,
            }
            for refused in plan.not_taken
        ],
        "problems": [str(problem) for problem in plan.problems],
    }


def _server_as_json(server: PlannedServer) -> JsonObject:
    return {
        "name": server.name,
        "state": server.state,
        "enabled": server.definition.enabled,
        "target": shown_target(server.definition),
        "from": [
            {
                "client": found.place.client,
                "scope": found.place.scope,
                "project": str(found.place.project) if found.place.project else None,
                "file": str(found.place.file),
                "name": found.name,
            }
            for found in server.found
        ],
        "secrets": {secret.used_for: secret.reference for secret in server.secrets},
        "notes": list(server.notes),
    }
