"""Definitions of servers from the package indexes as an operator of this machine would write them, and its profiles."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omni_mcp.server_definition import ServerDefinition
from omni_mcp.toml_writer import toml_key, toml_value
from tests.clients.running import Place
from tests.servers.sources import Source, npx_path, npx_prefix, uv_mounts, uv_read, uvx
from tests.servers.world import presets


def npm_server(package: str, *words: str, source: Source, **fields: Any) -> ServerDefinition:
    """A server that npx fetches."""
    return _definition("npx", ("-y", package, *words), "npx", source, fields)


def pypi_server(*words: str, source: Source, **fields: Any) -> ServerDefinition:
    """A server that uvx fetches."""
    if uv_read():
        return _definition(str(uvx()), words, "uvx", source, fields)
    place = uv_mounts()[0].source.resolve()  # where no profile may show it, the server is given it
    fields["mounts"] = ({"source": str(place)}, *fields.get("mounts", ()))
    return _definition(str(place / "bin" / "uvx"), words, "uvx", source, fields)


def _definition(
    command: str, args: Sequence[str], profile: str, source: Source, fields: Mapping[str, Any]
) -> ServerDefinition:
    seen = [{"source": str(place)} for place in source.directories]
    return ServerDefinition.model_validate({
        "command": command, "args": args, "profile": profile, "timeout_s": 60.0,
        "env": {**source.environment, **fields.get("env", {})},
        "hosts": [*source.hosts, *fields.get("hosts", ())],
        "mounts": [*seen, *fields.get("mounts", ())],
    })  # fmt: skip


def write_profiles(place: Place) -> None:
    """Put the presets with this machine's Node.js and uv in force, as docs/servers-sandbox.md says."""
    profiles = presets(npx_read=npx_prefix(), npx_path=npx_path(), uvx_read=uv_read())
    place.home.profiles.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("npx", "uvx"):
        file = place.home.profiles / f"{name}.toml"
        file.touch(mode=0o600)
        file.write_text(as_toml(profiles[name].model_dump(mode="json", exclude_defaults=True)))


def as_toml(fields: Mapping[str, Any]) -> str:
    """Write a profile; tables after the rest."""
    fields = {"profile": 1, **fields}
    lines = [f"{toml_key(key)} = {toml_value(value)}" for key, value in fields.items() if not isinstance(value, dict)]
    for name, table in fields.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", *(f"{toml_key(key)} = {toml_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def owned_by_somebody(directory: Path) -> Path:
    """Give *directory* to an ordinary user: what a root gateway lets a server write."""
    directory.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        os.chown(directory, 1234, 1234)
    return directory
