"""`omni-mcp servers`: the servers behind the gateway, as they stand in servers.toml."""

from __future__ import annotations

import os
from pathlib import Path

import click
import orjson

from omni_mcp.cli.in_force import wait_for_servers
from omni_mcp.cli.lazy import LazyGroup
from omni_mcp.cli.person import json_option, printable
from omni_mcp.cli.servers_facts import facts_of, get_definition
from omni_mcp.contracts.errors import BadRequest
from omni_mcp.host_places import HostPlaces
from omni_mcp.paths import Home, find_home
from omni_mcp.server_definition import ServerDefinition, Servers
from omni_mcp.servers_file import (
    edit_servers,
    load_servers,
    mount_fault,
    names_in_settings,
    read_server_secrets,
    servers_file_of,
)


@click.group(
    cls=LazyGroup,
    elsewhere={
        "add": ("omni_mcp.cli.servers_add", "add", "Add a server: a command that runs in the sandbox, or a URL."),
        "add-json": ("omni_mcp.cli.servers_add", "add_json", "Add a server from JSON as clients have it."),
        "list": ("omni_mcp.cli.servers_list", "list_command", "List the servers, and how each of them stands."),
        "test": ("omni_mcp.cli.servers_test", "test_command", "Start a server once and say what it offers."),
        "drain": ("omni_mcp.cli.servers_drain", "drain_command", "Pause a server and wait for the calls at it."),
        "set": ("omni_mcp.cli.servers_set", "set_command", "Change what a server may reach and see."),
        "remove": ("omni_mcp.cli.servers_remove", "remove_command", "Remove a server, and what was allowed of it."),
        "accept": ("omni_mcp.cli.accept", "accept_command", "Accept what a server offers, after a look."),
    },
)
def servers() -> None:
    """List, add, change and remove the servers behind the gateway."""


@servers.command()
@click.argument("name")
@json_option
def get(name: str, as_json: bool) -> None:
    """Show the server NAME; secrets are named and never shown."""
    home = find_home()
    found = load_servers(servers_file_of(home))
    refused = mount_fault(get_definition(found, name), HostPlaces(home))
    _, lacking = read_server_secrets(found, os.environ, known=_known_secrets(home))
    facts = facts_of(name, found, lacking.get(name) or refused)
    if as_json:
        click.echo(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
        return
    for key, value in facts.items():
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
        click.echo(f"{key:<12} {printable(text)}")


@servers.command()
@click.argument("name")
@json_option
def enable(name: str, as_json: bool) -> None:
    """Use the server NAME. It waits until the running gateway does."""
    _switch(name, True, as_json)


@servers.command()
@click.argument("name")
@json_option
def disable(name: str, as_json: bool) -> None:
    """Stop using the server NAME; its definition stays. It waits until the running gateway takes no call of it."""
    _switch(name, False, as_json)


def _switch(name: str, enabled: bool, as_json: bool) -> None:
    def change(now: Servers) -> Servers:
        definition = get_definition(now, name).model_copy(update={"enabled": enabled})
        missing = [file for file in _secret_files(definition, now) if not file.exists()] if enabled else []
        if missing:
            raise BadRequest(f"{name} lacks a secret; write it to {missing[0]} first, mode 600")
        return now.with_servers({name: definition}, {})

    home = find_home()
    after = edit_servers(servers_file_of(home), change)
    since = wait_for_servers(home, [name])
    if as_json:
        click.echo(orjson.dumps({**facts_of(name, after, None), "in_force": not since}))
    else:
        words = "enabled: its accepted tools can be called" if enabled else "disabled: it takes no new calls"
        click.echo(f"{printable(name)} is {words}{since}")


def _secret_files(definition: ServerDefinition, found: Servers) -> list[Path]:
    references = [found.secrets.get(name, "") for name in sorted(definition.secret_names)]
    return [Path(text[5:]).expanduser() for text in references if text.startswith("file:")]


def _known_secrets(home: Home) -> dict[str, str]:
    """Secrets of omni.toml by name; whether they can be had is said where that file is read."""
    return dict.fromkeys(names_in_settings(home.settings_file, "secrets"), "")
