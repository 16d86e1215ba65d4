"""`omni-mcp servers test`: start one server as the gateway would, and say how it does."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace

import click
import orjson

from omni_mcp.cli.person import json_option, printable
from omni_mcp.config import find_secrets, load_settings
from omni_mcp.contracts.errors import NotFound
from omni_mcp.host_places import HostPlaces
from omni_mcp.paths import Home, find_home
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.servers_file import mount_fault
from omni_mcp.upstreams.definitions import read_definitions
from omni_mcp.upstreams.trial import ServerTrial, try_server

SAID_CHARACTERS = 120  # of what a server calls itself


@click.command("test")
@click.argument("name")
@json_option
def test_command(name: str, as_json: bool) -> None:
    """Start the server NAME, greet it, list what it offers, and end it; exit 1 if that fails.

    Needs no gateway, and does not disturb one that runs. Accepts nothing, and nothing goes on record.
    """
    _, found = try_defined(find_home(), name)
    if as_json:
        facts = {key: value for key, value in asdict(replace(found, listing=None)).items() if key != "listing"}
        click.echo(orjson.dumps({"name": name, "ok": not found.fault, **facts}))
    else:
        for line in trial_lines(name, found):
            click.echo(printable(line))
    if found.fault:
        sys.exit(1)


def try_defined(home: Home, name: str) -> tuple[ServerDefinition, ServerTrial]:
    """Start the server that the operator's files define as *name*, list what it offers, and end it.

    Raises:
        NotFound: they define none.
    """
    settings = load_settings(home.settings_file)
    known, _ = find_secrets(settings, dict(os.environ))  # another server's secret may be set elsewhere only
    defined = read_definitions(settings.servers, home, secrets=known, environment=os.environ)
    definition = defined.servers.get(name)
    if definition is None:
        raise NotFound(f"there is no server {name!r}; see: omni-mcp servers list")
    lacking = next((one.message for one in defined.problems if one.path == f"$.servers.{name}"), "")
    lacks_secret = definition.secret_names - defined.secrets.keys()
    if lacking and (lacks_secret or mount_fault(definition, HostPlaces(home))):
        return definition, ServerTrial(fault=lacking)
    secrets = dict(defined.secrets)
    return definition, asyncio.run(try_server(name, definition, secrets=secrets, settings=settings, home=home))


def trial_lines(name: str, found: ServerTrial) -> Iterator[str]:
    """Yield what came of a trial, for a person."""
    if found.fault:
        yield f"{name}: failed: {found.fault}"
    else:
        kinds = ", ".join(f"{count} {kind.replace('_', ' ')}s" for kind, count in found.offers.items() if count)
        yield f"{name}: ready after {found.ready_ms:g} ms, listed in {found.list_ms:g} ms"
        yield f"  speaks   {found.version} ({found.era})"
        said = (str(found.server_info.get(key) or "")[:SAID_CHARACTERS] for key in ("name", "version"))
        yield f"  is       {' '.join(filter(None, said)) or '?'}"
        yield f"  offers   {kinds or 'nothing'}"
    if found.isolation is not None:
        missing = "".join(f"; no {layer}: {why}" for layer, why in found.isolation["missing"].items())
        yield f"  isolated {found.isolation['posture']}, {len(found.isolation['layers'])} layers{missing}"
    else:
        yield "  isolated not here: it runs where its URL is"
    for problem in found.left_out:
        yield f"  left out {problem}"
    if found.refused:
        opens = f"omni-mcp servers set {name} --allow HOST:PORT"
        yield f"  refused  {', '.join(found.refused)}; if it should reach them: {opens}"
    if found.stderr:
        yield "  it wrote:"
        yield from (f"    {line}" for line in found.stderr.splitlines()[-20:])
