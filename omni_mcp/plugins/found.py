"""Found: the entry points of installed packages, told apart without importing anything of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.plugins import GROUPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One entry point of one installed package."""

    group: str
    name: str
    package: str
    version: str
    point: metadata.EntryPoint

    @property
    def place(self) -> str:
        """Which package it is of, such as `acme-tools 1.2`."""
        return f"{self.package} {self.version}".strip()


def find_plugins() -> list[Found]:
    """Return every plugin that is installed, by group and name; one that two packages bring is there twice."""
    return sorted(_all(), key=lambda found: (found.group, found.name, found.package))


def get_plugin(plugins: Iterable[Found], group: str, name: str) -> Found:
    """Return the one plugin of this name.

    Raises:
        ConfigError: there is none, or two packages bring one of this name.
    """
    fit = [one for one in plugins if (one.group, one.name) == (group, name)]
    if len(fit) == 1:
        return fit[0]
    if fit:
        raise refused(name, f"several packages bring it: {', '.join(one.place for one in fit)}; uninstall all but one")
    raise refused(name, f"no installed package brings it (entry point group {group})")


def directory_of(found: Found) -> Path:
    """Return the directory of a package, or below it, that an entry point names. Imports nothing.

    Raises:
        ConfigError: there is none, or it names a package inside another, which could only be found by importing.
    """
    module, inside = found.point.module, found.point.attr
    if not module.isidentifier():
        raise refused(found.name, f"{module!r} must be the name of a top-level package")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise refused(found.name, f"{module!r} cannot be found: {error}") from error
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if len(places) != 1:
        raise refused(found.name, f"{module!r} is no package with one directory")
    directory = Path(places[0], *inside.split(".")) if inside else Path(places[0])
    if not directory.is_dir():
        raise refused(found.name, f"there is no directory {inside!r} in {module!r}")
    return directory


def refused(name: str, message: str) -> ConfigError:
    """Return the error of one plugin."""
    return ConfigError([Problem(file=f"plugin {name}", line=0, path="", message=message)])


def _all() -> Iterator[Found]:
    for distribution in metadata.distributions():
        try:
            yield from list(_of(distribution))
        except Exception:  # metadata that nobody can read, mostly of packages that are no plugins
            continue


def _of(distribution: metadata.Distribution) -> Iterator[Found]:
    for point in distribution.entry_points:
        if point.group in GROUPS:
            yield Found(
                group=point.group, name=point.name, package=distribution.name or "?",
                version=distribution.version or "", point=point,
            )  # fmt: skip
