"""What the rules in force would say to a call that nobody made, of a tool that is known without a running gateway."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import click

from omni_mcp.cli.plugins import known_plugins
from omni_mcp.config import load_settings
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.json import JsonObject, canonical, digest
from omni_mcp.contracts.policy import Action, Decision, StandingFacts
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.catalog.manifests import ManifestDirectory, ManifestSource
from omni_mcp.engines.catalog.pins import pins_by_key
from omni_mcp.engines.catalog.shelf import shelf_of
from omni_mcp.engines.catalog.versions import versions_of
from omni_mcp.engines.policy.policy import CedarPolicy
from omni_mcp.engines.policy.request import ACTION_OF_KIND, resource_id
from omni_mcp.opening.documents import known_operations
from omni_mcp.paths import Home, bundled
from omni_mcp.plugins.tools import PluginTools
from omni_mcp.serving.memory.entries import MemoryEntries
from omni_mcp.serving.messages_server import MessagesSource
from omni_mcp.serving.runs.entries import RunsSource
from omni_mcp.serving.search_server import OWN
from omni_mcp.upstreams.definitions import known_entries as entries_behind

NO_PLUGINS = PluginTools((), (), code=Path(), taken=frozenset())
_PUBLIC_NAME = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*?__\S{1,512}")
_SERVER_NAME = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*")


def parse_target(text: str, *, whole_server: bool = False) -> tuple[str, str | None]:
    """Return (server, tool) of a public name; the tool is None for `SERVER__*`, or a server's name as *whole_server*.

    Raises:
        click.UsageError: it is no such name.
    """
    if text.endswith("__*"):
        text, whole_server = text.removesuffix("__*"), True
    if whole_server:
        if not _SERVER_NAME.fullmatch(text):
            raise click.UsageError(f"{text!r} is no server's name; see: omni-mcp servers list")
        return text, None
    if not _PUBLIC_NAME.fullmatch(text):
        raise click.UsageError(f"{text!r} is no public name; write SERVER__TOOL, or SERVER__* for all of a server")
    server, _, tool = text.partition("__")
    return server, tool


def offered_entries(home: Home) -> list[Entry]:
    """Return what the gateway's own servers and servers behind it offer, accepted or not, as its files have it."""
    return [*_own_entries(), *_offered(home)]


def known_entries(home: Home) -> list[Entry]:
    """Return what a gateway on *home* would know at its start: its own servers, manifests, servers behind it, plugins,
    operations of OpenAPI documents.

    As a gateway that starts: if one of the operator's manifests is refused, none of them counts.
    """
    shipped = ManifestDirectory(path=bundled("manifests"), bundled=True)
    code = bundled("sandbox") / "tools"
    own = [*_own_entries(), *(entry for entry in _offered(home) if entry.state in ("accepted", "superseded"))]
    try:
        return own + list(ManifestSource([shipped, ManifestDirectory(path=home.manifests)], code=code).load())
    except ConfigError:
        return own + list(ManifestSource([shipped], code=code).load())


def _own_entries() -> list[Entry]:
    return [*RunsSource().load(), *MessagesSource().load(), *MemoryEntries().load(), *OWN.values()]


def _offered(home: Home) -> list[Entry]:
    """What servers offer; files that are refused are for their own commands to complain about."""
    try:
        settings = load_settings(home.settings_file)
        plugins = known_plugins(settings, home).tools if settings.plugins.tools else NO_PLUGINS
        return [*entries_behind(settings.servers, home, plugins), *known_operations(settings, home)]
    except ConfigError:
        return []


def entries_of(home: Home, action: Action, server: str | None, name: str | None) -> list[Entry]:
    """Return the known entries that *action* is for; of one server and one name, unless these are None."""
    return [
        entry
        for entry in known_entries(home)
        if ACTION_OF_KIND[entry.kind] == action and server in (None, entry.server) and name in (None, entry.name)
    ]


def seen_by(project: str, entries: Sequence[Entry], home: Home) -> list[Entry]:
    """Return of each entry the one version that *project* has, as pins say it; nothing for a pin that is missing."""
    lock = LockFile(home.lock_file)
    lock.reload()
    shelves = {
        server: shelf_of(server, [one for one in entries if one.server == server])
        for server in {one.server for one in entries}
    }
    versions = versions_of(shelves, pins_by_key(lock.now))
    seen = (versions.seen_by(project, entry) for shelf in shelves.values() for entry in shelf.entries.values())
    return [entry for entry in seen if entry.state == "accepted"]


def somebody(*, agent: str = "", user: str = "", project: str = "") -> Principal:
    """Return a caller that fits; what is left open is filled with names that no rule is likely to know."""
    is_user = bool(user) and not agent
    return Principal(
        kind="User" if is_user else "Agent",
        id=user if is_user else agent or "any",
        owner="" if is_user else user or "any",
        project=project or "default",
    )


def try_call(
    policy: CedarPolicy,
    principal: Principal,
    entry: Entry | None,
    *,
    name: str = "",
    action: Action = "call_tool",
    arguments: JsonObject | None = None,
    hosts: Sequence[str] = (),
    standing: StandingFacts | None = None,
) -> Decision:
    """Decide a call of *entry*; where it is unknown, of *name*. *hosts* are reached beside those of the arguments."""
    given = {} if arguments is None else arguments
    return policy.decide(
        action=action,
        principal=principal,
        entry=entry,
        name=resource_id(entry.server, entry.name) if entry is not None else name,
        run="",
        arguments_digest=digest(given),
        arguments_bytes=len(canonical(given)),
        egress=(*(entry.hosts_for(given) if entry is not None else ()), *hosts),
        standing=standing,
    )
