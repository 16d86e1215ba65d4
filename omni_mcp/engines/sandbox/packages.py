"""Packages: the installed distributions that a manifest asks for, as read-only mounts of its cell."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from omni_mcp.contracts.errors import SandboxUnavailable
from omni_mcp.contracts.sandbox import Mount

INSIDE = "/packages"


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
