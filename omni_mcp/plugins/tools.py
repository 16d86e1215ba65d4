"""PluginTools: the manifests of enabled plugins, as servers whose tools run in cells and wait to be accepted.

Nothing of such a package is imported here. What a person accepts covers all of it: the definition, where and with what
it runs, the packages that it is given, and, as what launches the server, every file beside the manifests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.json import JsonObject, digest
from omni_mcp.contracts.lock import launch_parts
from omni_mcp.contracts.manifest import Labels
from omni_mcp.contracts.plugins import TOOLS_GROUP
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.lock_listing import KeptListing
from omni_mcp.engines.catalog.manifests import ManifestDirectory, ManifestSource
from omni_mcp.engines.catalog.names import is_server_name
from omni_mcp.plugins.found import Found, directory_of, get_plugin, refused
from omni_mcp.plugins.packages import Watched, packages_of

META_RUNS = "io.omni-mcp/runs"
FILES_LIMIT = 2000
BYTES_LIMIT = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Offer:
    """What one plugin brings: entries that nobody accepted yet, and what launches them."""

    entries: tuple[Entry, ...]
    launch: Mapping[str, str]
    installed: Watched


class PluginTools:
    """Port `Source`. A plugin that is broken brings nothing and is named in `problems`; it stops nobody else.

    Args:
        enabled: names of entry points.
        code: the directory of the bundled entry points (`sandbox/tools`).
        taken: names of servers that are others'.
    """

    def __init__(self, plugins: Sequence[Found], enabled: Iterable[str], *, code: Path, taken: frozenset[str]) -> None:
        self._offers: dict[str, Offer] = {}
        self.problems: dict[str, tuple[Problem, ...]] = {}
        for name in sorted(set(enabled)):
            try:
                self._offers[name] = _offer(get_plugin(plugins, TOOLS_GROUP, name), code, taken)
            except ConfigError as error:
                self.problems[name] = error.problems
            except Exception as error:
                text = f"cannot be read: {type(error).__name__}: {error}"
                self.problems[name] = refused(name, text).problems

    @property
    def names(self) -> frozenset[str]:
        """Servers that plugins bring."""
        return frozenset(self._offers)

    def load(self) -> Iterable[Entry]:
        """As the port. Files are read once: an update of the package takes a start, as it does for all code."""
        return [entry for offer in self._offers.values() for entry in offer.entries]

    def launch_of(self, name: str) -> Mapping[str, str]:
        """Return what launches a plugin's tools, as the lock knows it.

        Raises:
            KeyError: there is no such plugin.
        """
        return self._offers[name].launch

    def is_as_read(self, name: str) -> bool:
        """Whether nobody installed another version of a plugin, or of what its tools are given, since it was read."""
        offer = self._offers.get(name)
        return offer is None or offer.installed.is_unchanged()

    def listing(self, name: str) -> KeptListing:
        """Return what a plugin offers as it is kept for the commands that accept it."""
        return KeptListing.model_validate(
            {"server": name, "seen_at": datetime.now(UTC).isoformat(), "launch": dict(self.launch_of(name)),
             "items": {"tool": self.items(name)}}
        )  # fmt: skip

    def items(self, name: str) -> list[JsonObject]:
        """Return the definitions of a plugin's tools."""
        return [entry.definition for entry in self._offers[name].entries]


def _offer(found: Found, code: Path, taken: frozenset[str]) -> Offer:
    if not is_server_name(found.name):
        raise refused(found.name, "the name of its entry point cannot be the name of a server")
    if found.name in taken:
        raise refused(found.name, "there is a server of that name already")
    directory = directory_of(found)
    loaded = ManifestSource([ManifestDirectory(path=directory, bundled=True)], code=code).load()
    entries = [entry for entry in loaded if entry.state != "superseded" and entry.server == "tools"]
    if not entries:
        raise refused(found.name, f"there is no manifest in {directory}")
    given = {package for entry in entries if entry.manifest for package in entry.manifest.binding.packages}
    installed = Watched([found.package, *given])  # before anything is read: what changes meanwhile has changed
    packages = {str(one["name"]): one for one in packages_of(found, given)}
    parts = launch_parts({"package": found.package, "version": found.version, "files": _digest_of(directory, found)})
    return Offer(tuple(_as_offered(entry, found.name, packages) for entry in entries), parts, installed)


def _as_offered(entry: Entry, server: str, packages: Mapping[str, JsonObject]) -> Entry:
    """What it says of itself is no label: labels come with the acceptance."""
    definition = {**entry.definition, "_meta": {META_RUNS: _runs(entry, packages)}}
    return replace(
        entry, server=server, definition=definition, labels=Labels(), side_effects="non_idempotent",
        state="quarantined", digest="",
    )  # fmt: skip


def _runs(entry: Entry, packages: Mapping[str, JsonObject]) -> JsonObject:
    """Where and with what it runs, for who accepts it."""
    assert entry.manifest is not None
    binding = entry.manifest.binding
    return {
        "version": entry.manifest.version,
        "entry_point": binding.entry_point,
        "profile": binding.profile,
        "posture": binding.posture,
        "workspace": binding.workspace,
        "hosts": list(entry.manifest.hosts),
        "egress_argument": binding.egress_argument,
        "secrets": list(entry.manifest.secrets),
        "shares": list(binding.shares),
        "packages": [packages[name] for name in binding.packages],
        "code": entry.code_digest,
    }


def _digest_of(directory: Path, found: Found) -> str:
    """Digest of all files that can come to run, by their names."""
    files = sorted(
        file
        for file in directory.rglob("*")
        if file.is_file() and not file.is_symlink() and file.parent.name != "__pycache__"
    )
    size = sum(file.stat().st_size for file in files)
    if len(files) > FILES_LIMIT or size > BYTES_LIMIT:
        raise refused(found.name, f"{directory} holds more than {FILES_LIMIT} files or {BYTES_LIMIT} bytes")
    return digest([[str(file.relative_to(directory)), hashlib.sha256(file.read_bytes()).hexdigest()] for file in files])
