"""Launches of servers from the package indexes, as a definition of an operator would describe them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omni_mcp.contracts.sandbox import Mount
from omni_mcp.engines.sandbox.servers import ServerLaunch
from tests.servers.sources import Source, uv_mounts, uvx
from tests.servers.world import given


def npx(name: str, *words: str, source: Source, **fields: Any) -> ServerLaunch:
    """A server that npx fetches."""
    return _fetched(name, ("npx", "-y", f"@modelcontextprotocol/server-{name}", *words), "npx", source, **fields)


def from_pypi(name: str, *words: str, source: Source, **fields: Any) -> ServerLaunch:
    """A server that uvx fetches."""
    return _fetched(name, (str(uvx()), f"mcp-server-{name}", *words), "uvx", source, **fields)


def offline(launch: ServerLaunch) -> ServerLaunch:
    """The same launch with its hosts taken away."""
    return replace(launch, hosts=(), networks=())


def to_json(launch: ServerLaunch) -> dict[str, Any]:
    """Return *launch* as something that can be written to a command line."""
    return {
        "name": launch.name, "argv": list(launch.argv), "profile": launch.profile, "hosts": list(launch.hosts),
        "networks": list(launch.networks), "environment": dict(launch.environment),
        "directories": [
            [str(mount.source), mount.inside, mount.writable, mount.as_owner] for mount in launch.directories
        ],
    }  # fmt: skip


def from_json(data: Mapping[str, Any]) -> ServerLaunch:
    """Undo `to_json`."""
    return ServerLaunch(
        name=data["name"], argv=tuple(data["argv"]), profile=data["profile"], hosts=tuple(data["hosts"]),
        networks=tuple(data["networks"]), environment=data["environment"],
        directories=tuple(
            Mount(source=Path(source), inside=inside, writable=writable, as_owner=as_owner)
            for source, inside, writable, as_owner in data["directories"]
        ),
    )  # fmt: skip


def _fetched(
    name: str, argv: tuple[str, ...], profile: str, source: Source, *, directories: tuple[Mount, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> ServerLaunch:  # fmt: skip
    seen = tuple(given(place, writable=False) for place in source.directories)
    seen += uv_mounts() if profile == "uvx" else ()
    return ServerLaunch(
        name=name, argv=argv, profile=profile, hosts=source.hosts, networks=source.networks,
        directories=(*seen, *directories), environment={**source.environment, **(environment or {})},
    )  # fmt: skip
