"""Packages: what the tools of a plugin are given of other installed distributions, as digests and as a quick look.

The digest covers each file that a cell can read of them, by name and content, and where symbolic links lead. It leaves
out `__pycache__`, which the interpreter fills by itself. What a distribution needs in its turn is not given to the
tools unless their manifest names it, and so is not in here either.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from omni_mcp.contracts.errors import SandboxUnavailable
from omni_mcp.contracts.json import JsonObject, digest
from omni_mcp.engines.sandbox.packages import package_mounts
from omni_mcp.plugins.found import Found, refused

FILES_LIMIT = 20_000
BYTES_LIMIT = 512 * 1024 * 1024


def packages_of(found: Found, names: Iterable[str]) -> list[JsonObject]:
    """Return name, version and digest of each distribution, sorted.

    Raises:
        ConfigError: one is not installed, or is larger than what can be looked at.
    """
    return [_package(found, name) for name in sorted(set(names))]


class Watched:
    """Whether installed distributions are still those that were looked at; cheap enough to be asked at each call.

    An installer writes a distribution's list of files anew. A file that somebody edits in place is seen at the next
    start, by its digest.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._before = {place: _facts(place) for name in sorted(set(names)) if (place := _file_list(name)) is not None}

    def is_unchanged(self) -> bool:
        """Whether no installer has changed one of them since."""
        return all(_facts(place) == facts for place, facts in self._before.items())


def _package(found: Found, name: str) -> JsonObject:
    try:
        version = metadata.version(name)
        places = sorted((mount.inside, mount.source) for mount in package_mounts([name]))
    except (SandboxUnavailable, metadata.PackageNotFoundError) as error:
        raise refused(found.name, f"its manifests need the distribution {name!r}, which is not installed") from error
    files = [(f"{inside}{inner}", file) for inside, place in places for inner, file in _files(place)]
    size = sum(file.lstat().st_size for _, file in files)
    if len(files) > FILES_LIMIT or size > BYTES_LIMIT:
        text = f"the distribution {name!r} that its manifests need holds more than {FILES_LIMIT} files or "
        raise refused(found.name, text + f"{BYTES_LIMIT} bytes")
    return {"name": name, "version": version, "files": digest([[where, _said(file)] for where, file in files])}


def _files(place: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files and links at or below *place*, sorted, each with its name below it."""
    if not place.is_dir():
        yield "", place
        return
    for folder, folders, names in os.walk(place):
        folders[:] = sorted(one for one in folders if one != "__pycache__")
        links = [one for one in folders if Path(folder, one).is_symlink()]
        for name in sorted([*names, *links]):
            file = Path(folder, name)
            yield f"/{file.relative_to(place)}", file


def _said(file: Path) -> str:
    if file.is_symlink():
        return f"link {os.readlink(file)}"
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _file_list(name: str) -> str | None:
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    return next((str(found.locate_file(file)) for file in found.files or () if file.name == "RECORD"), None)


def _facts(place: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(place)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
