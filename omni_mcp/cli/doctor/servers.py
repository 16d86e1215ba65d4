"""The servers behind the gateway: what is wrong in their files, how they do, and what waits to be accepted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from omni_mcp.cli.doctor.finding import Finding, Patient, faults
from omni_mcp.cli.person import printable
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.upstreams.definitions import Defined, read_definitions

BAD = ("degraded", "offline")
LAST_LINES = 5


def check_servers(patient: Patient) -> Iterator[Finding]:
    """servers.toml, omni.lock, and each server that is used; says nothing of those that do well or are off."""
    if patient.settings is None:
        return
    by_hand = patient.settings.servers
    known = dict.fromkeys(patient.settings.secrets, "")  # whether they can be had is said of the settings
    defined = read_definitions(by_hand, patient.home, secrets=known, environment=os.environ)
    live = patient.gateway.get("servers")
    found = [*_in_the_files(patient, defined), *_alive(live if isinstance(live, dict) else {})]
    found += [finding for name in sorted(defined.servers) for finding in _command(name, defined.servers[name])]
    if not any(finding.level == "fail" for finding in found):
        used = sum(definition.enabled for definition in defined.servers.values())
        yield Finding(name="servers", level="ok", text=f"{used} used, {len(defined.servers)} defined")
    yield from found
    yield from _waiting(patient.gateway)


def _in_the_files(patient: Patient, defined: Defined) -> Iterator[Finding]:
    for problem in defined.problems:
        hint = "mend it there, or: omni-mcp servers get NAME"
        yield Finding(name="servers", level="fail", text=printable(str(problem)), next=hint)
    try:
        LockFile(patient.home.lock_file).read()
    except ConfigError as error:
        yield from faults("omni.lock", error)


def _command(name: str, definition: ServerDefinition) -> Iterator[Finding]:
    if definition.enabled and definition.command and shutil.which(definition.command) is None:
        text = printable(f"{name}: there is no command {definition.command!r} here")
        hint = f"install it, or: omni-mcp servers disable {name}"
        yield Finding(name="servers", level="fail", text=text, next=hint)


def _alive(live: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the servers that a running gateway cannot use just now."""
    for name, facts in sorted(live.items()):
        if facts.get("status") not in BAD:
            continue
        faults_told = [one.get("last_fault") for one in facts.get("connections", {}).values()]
        reason = next(filter(None, [*faults_told, facts.get("list_fault")]), "no reason is known")
        wrote = [line.strip() for line in str(facts.get("stderr") or "").splitlines() if line.strip()][-LAST_LINES:]
        said = f"; it wrote: {' | '.join(wrote)}" if wrote else ""
        text = printable(f"{name} is {facts['status']}: {reason}{said}")
        yield Finding(name="servers", level="fail", text=text, next=f"omni-mcp servers test {name}")


def _waiting(gateway: Mapping[str, Any]) -> Iterator[Finding]:
    waiting = (gateway.get("catalog") or {}).get("waiting") or 0
    if waiting:
        text = f"{waiting} definitions of servers wait and cannot be called"
        yield Finding(
            name="acceptance", level="warn", text=text, next="omni-mcp lock --check, then omni-mcp accept NAME"
        )
