"""`omni-mcp import`: bring the servers of one's clients behind the gateway, with their secrets out of the way."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import orjson

from omni_mcp.cli.person import confirm, json_option, printable, yes_option
from omni_mcp.clients.candidate import Translator, input_key
from omni_mcp.clients.found import Reading
from omni_mcp.clients.places import CLIENTS, TRAITS, ClientName, Place, Surroundings, places_of, surroundings_of
from omni_mcp.clients.plan import ImportPlan, PlannedServer, Planner, carry_out
from omni_mcp.clients.reading import read_client_file, read_place
from omni_mcp.clients.secret_values import secret_variables, shown_text, shown_words
from omni_mcp.contracts.errors import BadRequest
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.secrets.key_names import is_secret_name
from omni_mcp.paths import Home, find_home, make_private_dir
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.servers_file import load_servers, names_in_settings, servers_file_of

is_secret_variable = secret_variables(is_secret_name)


@click.command("import")
@click.argument("clients", nargs=-1, type=click.Choice(CLIENTS), metavar="[CLIENT]...")
@click.option(
    "--file", type=click.Path(dir_okay=False, path_type=Path), help="Read this file, in the spelling of CLIENT."
)
@click.option(
    "--project", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Read the files of this project, too. They are only read if named: a checkout can hold anything.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would be added and add nothing.")
@yes_option
@json_option
def import_servers(
    clients: tuple[ClientName, ...], file: Path | None, project: Path | None, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Add the servers of CLIENT (claude-desktop, claude-code, cursor, vscode, codex; by default all) to servers.toml.

    Secrets are written to files of their own and never shown. What is added is in quarantine until it is accepted. Exit
    code 1 if something could not be taken.
    """
    home = find_home()
    directory = Path(os.path.abspath(project)) if project else None
    around = surroundings_of(os.environ, platform=sys.platform, project=directory)
    readings = _readings(clients, file, around)
    plan = _plan(readings, home, around, {})
    if not dry_run and not yes and sys.stdin.isatty():
        plan = _plan(readings, home, around, _answers(plan))
    shown = "\n".join(_lines(plan, readings))
    if plan.new and not dry_run:
        if not yes:
            confirm(shown, f"Add {len(plan.new)} to {servers_file_of(home)}?", look="look with --dry-run")
        make_home(home)
        carry_out(plan, file=servers_file_of(home), secrets_dir=secrets_dir_of(home))
    if as_json:
        click.echo(orjson.dumps(_as_json(plan, readings, servers_file_of(home), dry_run=dry_run)))
    elif dry_run or yes or not plan.new:
        click.echo(shown)
    sys.exit(1 if plan.not_taken or not all(reading.readable for reading in readings) else 0)


def make_home(home: Home) -> None:
    """Make the operator's directories if they are missing.

    Raises:
        BadRequest: others can write to one of them, or it cannot be made.
    """
    try:
        for directory in (home.config, home.data):
            make_private_dir(directory)
    except OSError as error:
        raise BadRequest(str(error)) from error


def secrets_dir_of(home: Home) -> Path:
    """Return where the secrets of servers are kept, a file each."""
    return home.secrets / "servers"


def planner_of(home: Home, around: Surroundings, answers: dict[str, str] | None = None) -> Planner:
    """Return what makes definitions of what was found."""
    translator = Translator(
        environment=os.environ, home=around.home, is_secret_name=is_secret_variable, answers=answers
    )  # fmt: skip
    return Planner(
        translator,
        secrets_dir=secrets_dir_of(home),
        environment=os.environ,
        names_taken=names_in_settings(home.settings_file, "servers"),
        secrets_taken=names_in_settings(home.settings_file, "secrets"),
    )


def shown_target(definition: ServerDefinition) -> str:
    """Return the command or URL of *definition* for people, without secrets."""
    if definition.url is not None:
        return printable(shown_text(definition.url, is_secret_variable))
    words = shown_words([definition.command, *definition.args], is_secret_variable)
    return printable(" ".join(f'"{word}"' if " " in word or not word else word for word in words))


def server_lines(server: PlannedServer) -> Iterator[str]:
    """Say what is to be known about a planned server, a line each."""
    state = "" if server.definition.enabled else ", disabled"
    yield f"{server.name} ({server.state}{state}): {shown_target(server.definition)}"
    if server.state == "same":
        return
    for secret in server.secrets:
        yield f"    secret {printable(secret.used_for)}: {secret.reference}"
    for note in server.notes:
        yield f"    {printable(note)}"


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
