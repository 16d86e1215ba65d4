"""The tools' functions are called as the worker calls them: by module and function, in a directory of their own."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omni_mcp.paths import bundled

sys.path[:0] = [str(bundled("sandbox")), str(bundled("sandbox") / "tools")]

Tool = Callable[[dict[str, Any]], dict[str, Any]]


def function_of(entry_point: str) -> Tool:
    """Return the function that an entry point names."""
    module, _, name = entry_point.partition(":")
    found: Tool = getattr(importlib.import_module(module), name)
    return found


class Rooms:
    """Directories as the sandbox gives them: one for the project, one for its state, a fresh one for each call."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._count = 0
        self.artifacts: dict[str, bytes] = {}
        for name in ("project", "state"):
            (base / name).mkdir()

    def run(self, entry_point: str, workspace: str, arguments: dict[str, Any], artifact: str | None) -> dict[str, Any]:
        """Run one call in the room that its workspace names, and keep what it leaves in `out/`."""
        room = self._base / workspace if workspace in ("project", "state") else self._fresh()
        if artifact is not None:
            (room / "in").mkdir()
            (room / "in" / "artifact").write_bytes(self.artifacts[artifact.removeprefix("artifact://")])
        with contextlib.chdir(room):
            result = function_of(entry_point)(arguments)
        for left in (room / "out").glob("*") if workspace == "fresh" else ():
            self.artifacts[hashlib.sha256(left.read_bytes()).hexdigest()] = left.read_bytes()
        return result

    def _fresh(self) -> Path:
        self._count += 1
        room = self._base / f"fresh{self._count}"
        room.mkdir()
        return room
