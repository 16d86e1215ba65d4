"""What the operator gives to jobs beside their manifests: networks, credentials, secrets and shared directories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from omni_mcp.contracts.errors import SandboxUnavailable
from omni_mcp.contracts.hosts import is_covered
from omni_mcp.contracts.sandbox import Credential, Mount
from omni_mcp.contracts.tool import Entry
from omni_mcp.host_places import HostPlaces

SHARES = "/shares"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCredential:
    """A credential, and the tools (`server__tool`) whose jobs it serves.

    `documents` are the OpenAPI documents all of whose operations it serves.
    """

    credential: Credential
    tools: frozenset[str] = frozenset()
    documents: frozenset[str] = frozenset()

    def serves(self, entry: Entry) -> bool:
        """Whether the operator gave it to *entry*."""
        named = f"{entry.server}__{entry.name}" in self.tools
        return named or (entry.binding == "openapi_proxy" and entry.server in self.documents)


@dataclass(frozen=True, slots=True, kw_only=True)
class Supplies:
    """The operator's word, read once at the start. Secret values stay out of every `repr`.

    `networks` are special address ranges (CIDR) that a granted name may be in; `secrets` are values by name; `shares`
    are directories by the name under which manifests ask for them, each judged by `shown` at every call.
    """

    networks: tuple[str, ...] = ()
    credentials: tuple[ToolCredential, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    shares: Mapping[str, Path] = field(default_factory=dict)
    shown: HostPlaces | None = None

    def credentials_for(self, entry: Entry, hosts: tuple[str, ...]) -> tuple[Credential, ...]:
        """Return the credentials that the operator gave to *entry*, for those *hosts* that its call may reach."""
        return tuple(
            one.credential for one in self.credentials if one.serves(entry) and is_covered(one.credential.host, hosts)
        )

    def environment_for(self, entry: Entry) -> dict[str, str]:
        """Return the secrets that the manifest of *entry* names, as variables in upper case.

        A manifest is the operator's own word (docs/manifest.md), and none of the shipped ones names a secret.

        Raises:
            SandboxUnavailable: omni.toml has none of that name.
        """
        named = entry.manifest.secrets if entry.manifest is not None else ()
        for name in named:
            if name not in self.secrets:
                raise SandboxUnavailable(
                    "a secret that the tool needs is not set", detail=f"omni.toml has no [secrets] {name}"
                )
        return {name.upper(): self.secrets[name] for name in named}

    def mounts_for(self, entry: Entry) -> tuple[Mount, ...]:
        """Return the shared directories that the manifest of *entry* names, read-only at `/shares/NAME`. Blocks.

        Raises:
            SandboxUnavailable: there is no such share, its directory is not there, or no cell may be shown it.
        """
        named = entry.manifest.binding.shares if entry.manifest is not None else ()
        return tuple(self._share(name) for name in named)

    def _share(self, name: str) -> Mount:
        place = self.shares.get(name)
        if place is None:
            raise SandboxUnavailable(
                "a directory that the tool needs is not shared", detail=f"omni.toml has no [shares] {name}"
            )
        if not place.is_dir():
            raise SandboxUnavailable(
                "a directory that the tool needs is not there", detail=f"[shares] {name}: {place} is no directory"
            )
        source = place.resolve()
        fault = self.shown.fault(str(source)) if self.shown is not None else ""
        if fault:
            raise SandboxUnavailable(
                "a directory that the tool needs cannot be shared", detail=f"[shares] {name}: {fault}"
            )
        try:
            facts = source.lstat()
        except OSError as error:
            raise SandboxUnavailable(
                "a directory that the tool needs is not there", detail=f"[shares] {name}: {error.strerror}"
            ) from error
        return Mount(source=source, inside=f"{SHARES}/{name}", identity=(facts.st_dev, facts.st_ino))
