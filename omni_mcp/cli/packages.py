"""Servers that are fetched from packages: whether they may reach where those come from, asked and said in one way."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import click

from omni_mcp.cli.person import printable
from omni_mcp.clients.package_sources import PackageSource, PackageSources
from omni_mcp.config import load_settings
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.sandbox.egress.addresses import parse_address
from omni_mcp.engines.sandbox.egress.grant import EgressGrant
from omni_mcp.engines.sandbox.profiles import load_profiles
from omni_mcp.paths import Home, bundled
from omni_mcp.server_definition import ServerDefinition, Servers
from omni_mcp.servers_file import edit_servers, servers_file_of

MEANING = (
    "  yes  each of them may talk to these hosts, and to no other. Such a host is also a place to send data to;\n"
    "       `omni-mcp servers set NAME --no-hosts` takes it away again, once the server was fetched.\n"
    "  no   they are added, and cannot start before their package is there."
)

packages_option = click.option(
    "--packages", is_flag=True,
    help="Let what npx and uvx fetch reach its package source: what npm, uv or pip of yours is set up with.",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A server whose package comes from a source that it may not reach."""

    name: str
    source: PackageSource


def fetched_of(servers: Mapping[str, ServerDefinition], home: Home) -> list[Fetched]:
    """Return those of *servers* that are fetched from packages and may not reach all of their source."""
    sources = PackageSources(os.environ)
    open_by_profile = profiles_hosts(home)
    found: list[Fetched] = []
    for name, definition in servers.items():
        source = sources.source_of(definition)
        if source is None or source.covers(definition) or open_by_profile.get(definition.profile):
            continue
        if source.hosts or not definition.hosts:
            found.append(Fetched(name=name, source=source))
    return found


def may_fetch(lacking: Sequence[Fetched]) -> bool:
    """Ask on the terminal whether they may reach their sources; no if there is no terminal or nothing to ask."""
    known = [one for one in lacking if one.source.hosts]
    if not known or not sys.stdin.isatty():
        return False
    click.echo(MEANING, err=True)
    names, hosts = ", ".join(one.name for one in known), ", ".join(hosts_of(known))
    are = "is fetched from a package: may it" if len(known) == 1 else "are fetched from packages: may they"
    return click.confirm(f"{names} {are} reach {hosts}?", default=False, err=True)


def let_fetch(home: Home, lacking: Sequence[Fetched]) -> Servers:
    """Let servers of servers.toml reach their sources, and tell their package runners where these are."""

    def change(now: Servers) -> Servers:
        opened = {
            one.name: opened_to(now.servers[one.name], one.source)
            for one in lacking
            if one.source.hosts and one.name in now.servers
        }
        return now.with_servers(opened, {})

    return edit_servers(servers_file_of(home), change)


def opened_to(definition: ServerDefinition, source: PackageSource) -> ServerDefinition:
    """Return *definition* with the hosts and variables of *source*."""
    hosts = tuple(dict.fromkeys((*definition.hosts, *source.hosts)))
    return definition.changed({"hosts": hosts, "env": {**source.environment, **definition.env}})


def hosts_of(lacking: Sequence[Fetched]) -> list[str]:
    """Return all their sources, each once."""
    return list(dict.fromkeys(host for one in lacking for host in one.source.hosts))


def missing_lines(lacking: Sequence[Fetched]) -> Iterator[str]:
    """Say what is missing and the command that mends it."""
    known = [one for one in lacking if one.source.hosts]
    if known:
        names = " ".join(one.name for one in known)
        yield (
            f"fetched from packages, and may not reach {', '.join(hosts_of(known))}, so not startable before that: "
            f"omni-mcp servers set {names} --packages"
        )
    for one in lacking:
        if one.source.unknown:
            yield printable(
                f"{one.name} is fetched from a package, and from where is not known ({one.source.unknown}): "
                f"omni-mcp servers set {one.name} --allow HOST:PORT"
            )


def allowed_lines(home: Home, hosts: Collection[str]) -> Iterator[str]:
    """Say of hosts that were just allowed which of them the gateway will refuse all the same, for their address."""
    special = {host: addresses for host in hosts if (addresses := _special_addresses(home, host))}
    if special:
        ranges = ", ".join(
            f'"{address}/{128 if ":" in address else 32}"' for address in sorted(set().union(*special.values()))
        )
        yield (
            f"{', '.join(special)}: not a public address, so refused until {home.settings_file} says under [egress]: "
            f"networks = [{ranges}]"
        )


def packages_as_json(lacking: Sequence[Fetched], *, allowed: bool) -> JsonObject:
    """Return the same for programs."""
    return {
        "servers": [one.name for one in lacking], "hosts": hosts_of(lacking), "allowed": allowed,
        "missing": [] if allowed else list(missing_lines(lacking)),
    }  # fmt: skip


def profiles_hosts(home: Home) -> dict[str, tuple[str, ...]]:
    """Return which hosts each sandbox profile opens; nothing where they cannot be read."""
    try:
        found = load_profiles(bundled("sandbox") / "profiles", own=home.profiles)
    except ConfigError:
        return {}
    return {name: profile.hosts for name, profile in found.items()}


def _special_addresses(home: Home, host: str) -> set[str]:
    """Return the addresses of a name if none of them may be dialled; nothing where that cannot be known here."""
    name, _, port = host.rpartition(":")
    try:
        grant = EgressGrant(hosts=(host,), networks=load_settings(home.settings_file).egress.networks)
        found = {str(one[4][0]) for one in socket.getaddrinfo(name, int(port), type=socket.SOCK_STREAM)}
    except (ConfigError, OSError, ValueError):
        return set()
    addresses = {text: parse_address(text) for text in found}
    if name.strip("[]") in addresses or any(one is not None and grant.may_lead_to(one) for one in addresses.values()):
        return set()
    return found
