"""`omni-mcp servers list`: the servers behind the gateway, and how they do if it runs."""

from __future__ import annotations

import os
from typing import Any

import click
import orjson

from omni_mcp.cli.person import json_option, printable
from omni_mcp.cli.planning import shown_target
from omni_mcp.cli.status import find_status
from omni_mcp.config import Settings, load_settings
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.json import JsonObject
from omni_mcp.host_places import HostPlaces
from omni_mcp.paths import Home, find_home
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.servers_file import load_servers, mount_fault, names_in_settings, read_server_secrets, servers_file_of


@click.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the servers behind the gateway: whether they are used, how they do, what they speak, and where they are.

    How they do is known of a running gateway: `ready`, `idle` (known, and not connected now), `degraded` (it failed;
    its tools are listed as they were), `offline`.
    """
    home = find_home()
    rows = _rows(home)
    if as_json:
        click.echo(orjson.dumps(rows))
        return
    for row in rows:
        speed = f"{row['latency_ms']:.0f} ms" if row["latency_ms"] is not None else ""
        health = row["status"] or row["state"]
        click.echo(
            printable(f"{row['name']:<24} {health:<14} {row['version']:<10} {speed:>8} {row['target']}").rstrip()
        )
    if not rows:
        click.echo("No servers yet. Add one: omni-mcp add NAME -- COMMAND, or those of your clients: omni-mcp import")


def _rows(home: Home) -> list[JsonObject]:
    written = load_servers(servers_file_of(home))
    known = dict.fromkeys(names_in_settings(home.settings_file, "secrets"), "")
    _, lacking = read_server_secrets(written, os.environ, known=known)
    shown = HostPlaces(home)
    try:
        by_hand = load_settings(home.settings_file).servers
    except ConfigError:
        by_hand = Settings().servers  # what is wrong with that file, its own commands say
    running = find_status(home).get("servers")
    facts = running if isinstance(running, dict) else {}
    return [
        {
            **_row(name, definition, lacks=name in lacking, refused=bool(mount_fault(definition, shown))),
            **_live(facts.get(name)),
            "file": file,
        }
        for file, found in (("servers.toml", written.servers), ("omni.toml", by_hand))
        for name, definition in found.items()
    ]


def _row(name: str, definition: ServerDefinition, *, lacks: bool, refused: bool) -> JsonObject:
    broken = "lacks a secret" if lacks else "refused: see servers test" if refused else "enabled"
    state = broken if definition.enabled else "disabled"
    return {"name": name, "enabled": definition.enabled, "state": state, "target": shown_target(definition)}


def _live(facts: Any) -> JsonObject:
    """Return how a server does; of several connections to a stateful one, how the first does."""
    if not isinstance(facts, dict):
        return {"status": None, "era": None, "version": "", "latency_ms": None, "last_fault": ""}
    connection: JsonObject = next(iter(facts.get("connections", {}).values()), {})
    return {
        "status": facts.get("status"),
        "era": connection.get("era"),
        "version": connection.get("version") or "",
        "latency_ms": connection.get("latency_ms"),
        "last_fault": connection.get("last_fault") or facts.get("list_fault") or "",
    }
