"""A program that a person installed outside the system's directories: what of it a cell has to see, and its PATH."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from omni_mcp.host_places import HostPlaces
from omni_mcp.paths import find_home
from omni_mcp.server_definition import MountDefinition, ServerDefinition

CELL_PATH = "/usr/local/bin:/usr/bin:/bin"
_SHOWN_ANYWAY = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
_OF_NODE = frozenset({"node", "npx", "npm"})
_OF_UV = frozenset({"uv", "uvx"})


def with_program(definition: ServerDefinition, environment: Mapping[str, str], home: Path) -> ServerDefinition:
    """Return *definition* with what its Node.js or uv needs, where that stands in a place that no cell shows.

    A Node.js is seen with its whole installation, such as one version of a version manager; of uv only its programs.

    Args:
        environment: the person's, for its PATH.
        home: the person's home directory, which is never shown as a whole.
    """
    program = Path(definition.command).name
    if program not in _OF_NODE | _OF_UV:
        return definition
    path = definition.env.get("PATH") or environment.get("PATH") or os.defpath
    found = shutil.which(definition.command, path=path)
    if found is None or _is_below(Path(found).resolve(), _SHOWN_ANYWAY):
        return definition
    places = list(_of_node(found, path, home) if program in _OF_NODE else _of_uv(Path(found)))
    shown = HostPlaces(find_home())
    if any(shown.fault(str(place)) for place in places):
        return definition
    seen = [mount.source for mount in definition.mounts]
    mounts = [MountDefinition(source=str(place)) for place in places if not _is_below(place, seen)]
    directories = dict.fromkeys(str(place if place.name == "bin" else _bin_of(place)) for place in places)
    env = {"PATH": ":".join([*directories, CELL_PATH]), **definition.env}
    return definition.model_copy(update={"mounts": (*definition.mounts, *mounts), "env": env})


def _of_node(found: str, path: str, home: Path) -> Iterator[Path]:
    node = Path(shutil.which("node", path=f"{Path(found).parent}:{path}") or found).resolve()
    top = node.parent.parent
    if top == home or top in home.parents or HostPlaces(find_home()).fault(str(top)):
        yield node
    else:
        yield top
    script = Path(found).resolve()
    if not _is_below(script, (str(top), *_SHOWN_ANYWAY)):
        yield script.parent.parent


def _of_uv(found: Path) -> Iterator[Path]:
    directory = found.resolve().parent
    yield from (directory / name for name in sorted(_OF_UV) if (directory / name).exists())


def _bin_of(place: Path) -> Path:
    return place / "bin" if (place / "bin").is_dir() else place.parent


def _is_below(path: Path, tops: tuple[str, ...] | list[str]) -> bool:
    return any(path == Path(top) or Path(top) in path.parents for top in tops)
