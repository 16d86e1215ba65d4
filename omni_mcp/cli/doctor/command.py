"""`omni-mcp doctor`: what is in force here, what is wrong, and what to do."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict

import click
import orjson

from omni_mcp.cli.doctor.clients import check_clients
from omni_mcp.cli.doctor.files import check_files, check_permissions
from omni_mcp.cli.doctor.finding import Check, Finding, Patient
from omni_mcp.cli.doctor.gateway import check_gateway
from omni_mcp.cli.doctor.machine import check_isolation, check_profiles, check_python, check_room, check_sqlite
from omni_mcp.cli.doctor.servers import check_servers
from omni_mcp.cli.person import printable
from omni_mcp.cli.status import find_status
from omni_mcp.config import Settings, load_settings
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.sandbox import Isolation
from omni_mcp.engines.sandbox.cells import open_sandbox
from omni_mcp.paths import Home, bundled, find_home

CHECKS: tuple[Check, ...] = (
    check_python, check_sqlite, check_isolation, check_profiles, check_permissions, check_room, check_files,
    check_gateway, check_servers, check_clients,
)  # fmt: skip


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def doctor(as_json: bool) -> None:
    """Say what is in force here, what is wrong with machine, files, servers and clients, and what to do.

    Exit code 1 when something fails; a warning alone does not.
    """
    findings = examine(find_home())
    failed = any(finding.level == "fail" for finding in findings)
    if as_json:
        body = {"ok": not failed, "findings": [asdict(finding) for finding in findings]}
        click.echo(orjson.dumps(body, option=orjson.OPT_INDENT_2))
    else:
        for finding in findings:
            click.echo(f"{finding.level:<5} {printable(finding.name):<18} {printable(finding.text)}")
            if finding.next:
                click.echo(f"{'':<24} -> {printable(finding.next)}")
    sys.exit(1 if failed else 0)


def examine(home: Home) -> list[Finding]:
    """Run every check on *home*, in a fixed order; changes nothing that stays."""
    settings, fault = None, None
    try:
        settings = load_settings(home.settings_file)
    except ConfigError as error:
        fault = error
    gateway = find_status(home)
    isolation = isolation_of(gateway) or asyncio.run(probe_isolation(settings or Settings()))
    patient = Patient(home=home, settings=settings, settings_fault=fault, gateway=gateway, isolation=isolation)
    return [finding for check in CHECKS for finding in check(patient)]


def isolation_of(gateway: JsonObject) -> Isolation | None:
    """Return what a running gateway found: its own view counts, and a second look could disturb its cells."""
    facts = gateway.get("isolation")
    if not gateway["running"] or not isinstance(facts, dict):
        return None
    return Isolation(posture=facts["posture"], layers=tuple(facts["layers"]), missing=dict(facts["missing"]))


async def probe_isolation(settings: Settings) -> Isolation:
    """Make a real cell and say what it got."""
    place = bundled("sandbox")
    async with open_sandbox(profiles={}, sandbox_dir=place, use_cgroups=settings.sandbox.cgroups) as sandbox:
        return sandbox.isolation()
