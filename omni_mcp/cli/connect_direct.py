"""Which servers a client goes on starting by itself, past the gateway, and what keeps each from coming through it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from omni_mcp.cli.person import printable
from omni_mcp.cli.planning import planner_of
from omni_mcp.clients.places import Place, Surroundings
from omni_mcp.clients.reading import read_place
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.lock import Lock, launch_digest, launch_parts
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.paths import Home
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.servers_file import load_servers, names_in_settings, read_server_secrets, servers_file_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Direct:
    """An entry of a client's file. `server` is what it is called here, empty if it was not imported; `hindrance` says
    why it cannot come through the gateway yet and what ends that, and is empty if it can."""

    name: str
    server: str
    hindrance: str


def direct_of(place: Place, around: Surroundings, home: Home) -> list[Direct]:
    """Return every server that the client of *place* starts by itself."""
    reading = read_place(place, around)
    written = load_servers(servers_file_of(home))
    known = dict.fromkeys(names_in_settings(home.settings_file, "secrets"), "")
    _, lacking = read_server_secrets(written, os.environ, known=known)
    lock = LockFile(home.lock_file).read()
    found: list[Direct] = []
    for server in planner_of(home, around).plan([reading], written).servers:
        hindrance = "it is not imported: omni-mcp import"
        if server.state == "same":
            hindrance = _hindrance(server.name, server.definition, lacking.get(server.name, ""), lock)
        own = server.name if server.state == "same" else ""
        found += [
            Direct(name=one.name, server=own, hindrance=hindrance)
            for one in server.found
            if one.place.path == place.path
        ]
    return found + [
        Direct(name=one.name, server="", hindrance=f"import does not take it: {one.reason}")
        for one in reading.not_taken
        if one.place.path == place.path
    ]


def still_direct(found: Sequence[Direct], moved: Collection[str], left: Collection[str]) -> list[Direct]:
    """Return those that the client starts by itself after this; *left* cannot be taken out of its file."""
    cannot = "it is not written as a table of its own; take it out by hand"
    return [
        Direct(name=one.name, server=one.server, hindrance=cannot) if one.name in left else one
        for one in found
        if one.name not in moved
    ]


def direct_lines(found: Sequence[Direct], command: str) -> Iterator[str]:
    """Say what goes on past the gateway, and how to end that: *command* moves what can come through."""
    ready = [one.name for one in found if not one.hindrance]
    if ready:
        yield printable(f"  still started directly, past the gateway: {', '.join(ready)}; to end that: {command}")
    for one in found:
        if one.hindrance:
            yield printable(f"  still started directly: {one.name}: {one.hindrance}")


def direct_as_json(found: Sequence[Direct]) -> list[JsonObject]:
    """Return the same for programs."""
    return [{"name": one.name, "server": one.server or None, "hindrance": one.hindrance or None} for one in found]


def _hindrance(name: str, definition: ServerDefinition, lacks: str, lock: Lock) -> str:
    if not definition.enabled:
        return f"it is disabled here: omni-mcp servers enable {name}"
    if lacks:
        return f"it lacks a secret here ({lacks})"
    started = launch_digest(launch_parts(definition.as_json()))
    locked = lock.servers.get(name)
    versions = [one for item in locked.items.values() for one in item.versions.values()] if locked is not None else []
    if not any(one.launch == started for one in versions):
        return f"nothing of it is accepted yet: omni-mcp accept {name}"
    return ""
