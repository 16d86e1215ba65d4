"""What a manifest needs of Python, as read-only mounts of its cell: its own module, and installed distributions."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from omni_mcp.contracts.errors import SandboxUnavailable
from omni_mcp.contracts.sandbox import Mount
from omni_mcp.contracts.tool import Entry
from omni_mcp.paths import make_private_dir

INSIDE = "/packages"
MOST_COPIES = 1024  # of modules; more manifests than this are not loaded either


class Modules:
    """Copies of the modules that stand beside operators' manifests, in a directory of the gateway's own.

    A cell gets the copy, because the operator's file may be closed to whoever the job runs as, and because the bytes
    that were checked are then the bytes that run.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def mounts(self, entry: Entry) -> tuple[Mount, ...]:
        """Return the mount of the module that stands beside an operator's manifest; nothing for the bundled ones.

        Raises:
            SandboxUnavailable: the file is not the one that the definition was made of.
        """
        if not entry.code_dir or entry.manifest is None:
            return ()
        module = entry.manifest.binding.entry_point.partition(":")[0]
        source = Path(entry.code_dir) / f"{module}.py"
        try:
            code = source.read_bytes()
            found = hashlib.sha256(code).hexdigest()
            if f"sha256:{found}" != entry.code_digest:
                raise SandboxUnavailable(
                    "the tool's code changed since its definition was read; try again, or ask the operator to reload",
                    detail=f"{source} is not {entry.code_digest}",
                )
            return (Mount(source=self._copy(code, found), inside=f"{INSIDE}/{module}.py"),)
        except OSError as error:
            raise SandboxUnavailable("the tool's code is not there", detail=f"{source}: {error}") from error

    def _copy(self, code: bytes, digest: str) -> Path:
        copy = make_private_dir(self._directory) / f"{digest}.py"
        if not copy.is_file() or copy.read_bytes() != code:
            self._make_room()
            part = copy.with_name(f"{digest}.{os.getpid()}.{threading.get_ident()}.part")
            part.write_bytes(code)
            part.chmod(0o444)
            part.rename(copy)
        return copy

    def _make_room(self) -> None:
        """Remove the oldest copies; a cell that runs keeps the one it was given."""
        copies = sorted(self._directory.iterdir(), key=lambda path: path.lstat().st_mtime)
        for copy in copies[: max(0, len(copies) - MOST_COPIES + 1)]:
            copy.unlink(missing_ok=True)


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
