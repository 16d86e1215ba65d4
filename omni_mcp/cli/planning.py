"""What the commands share that make definitions of what a person or a client says: where it goes, how it is shown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from omni_mcp.cli.person import printable
from omni_mcp.clients.candidate import Translator
from omni_mcp.clients.places import Surroundings
from omni_mcp.clients.plan import PlannedServer, Planner
from omni_mcp.clients.secret_values import secret_variables, shown_text, shown_words
from omni_mcp.contracts.errors import BadRequest
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.secrets.key_names import is_secret_name
from omni_mcp.paths import Home, make_private_dir
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.servers_file import names_in_settings

is_secret_variable = secret_variables(is_secret_name)


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
        home=around.home,
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


def mount_of(text: str) -> JsonObject:
    """Return what `--dir DIR[:rw]` says.

    Raises:
        BadRequest: there is no such directory.
    """
    path, mode = (text[:-3], text[-2:]) if text.endswith((":rw", ":ro")) else (text, "ro")
    source = Path(os.path.abspath(Path(path).expanduser()))
    if not source.exists():
        raise BadRequest(f"there is no directory {source}")
    return {"source": str(source), **({"writable": True} if mode == "rw" else {})}
