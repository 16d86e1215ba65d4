"""What a manifest needs of Python, as read-only mounts of its cell: its own module, and installed distributions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from omni_mcp.contracts.errors import SandboxUnavailable
from omni_mcp.contracts.sandbox import Mount
from omni_mcp.contracts.tool import Entry

INSIDE = "/packages"


def module_mounts(entry: Entry) -> tuple[Mount, ...]:
    """Return the mount of the module that stands beside an operator's manifest; nothing for the bundled ones.

    Raises:
        SandboxUnavailable: the file is not the one that the definition was made of.
    """
    if not entry.code_dir or entry.manifest is None:
        return ()
    module = entry.manifest.binding.entry_point.partition(":")[0]
    source = Path(entry.code_dir) / f"{module}.py"
    try:
        found = "sha256:" + hashlib.sha256(source.read_bytes()).hexdigest()
    except OSError as error:
        raise SandboxUnavailable("the tool's code is not there", detail=f"{source}: {error}") from error
    if found != entry.code_digest:
        raise SandboxUnavailable("the tool's code changed; try again", detail=f"{source} is not {entry.code_digest}")
    return (Mount(source=source, inside=f"{INSIDE}/{module}.py"),)


def package_mounts(names: Iterable[str]) -> tuple[Mount, ...]:
    """Return one mount for each top-level package or module of the distributions *names*.

    Raises:
        SandboxUnavailable: one of them is not installed beside the gateway.
    """
    mounts: dict[str, Mount] = {}
    for name in names:
        try:
            found = distribution(name)
        except PackageNotFoundError as error:
            raise SandboxUnavailable(
                "a package that the tool needs is not installed", detail=f"distribution {name!r} is not installed"
            ) from error
        for file in found.files or ():
            top = file.parts[0]
            if top.endswith((".dist-info", ".egg-info", ".pth")) or top in ("..", "__pycache__", "bin"):
                continue
            if len(file.parts) == 1 and not top.endswith((".py", ".so")):
                continue
            source = Path(str(found.locate_file(top))).resolve()
            mounts[top] = Mount(source=source, inside=f"{INSIDE}/{top}")
    return tuple(mounts.values())
