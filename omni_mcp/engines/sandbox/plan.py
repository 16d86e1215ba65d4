"""Plan: what a template is made with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omni_mcp.contracts.manifest import Limits
from omni_mcp.contracts.sandbox import Mount
from omni_mcp.engines.sandbox.group import Group
from omni_mcp.engines.sandbox.profiles import Profile

_LEAST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What each of the empty directories of a cell may hold."""

    disk_bytes: int
    inodes: int

    @classmethod
    def of(cls, limits: Limits) -> Sizes:
        """Return what *limits* allow; a cell keeps at least a megabyte, for what it shares in memory."""
        return cls(disk_bytes=max(limits.disk_mib << 20, _LEAST_BYTES), inodes=limits.inodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Whom a template runs as, what it sees, whether it gets a /proc.

    Without `proc` it becomes its only cell. `workspace` is the directory of the host that a plain process tree works
    in; `alone` says that no other job runs as `uid`; `unix_sockets` whether jobs may have some with names.
    """

    number: int
    profile: Profile
    mounts: tuple[Mount, ...]
    uid: int | None
    alone: bool
    group: Group | None
    proc: bool
    sizes: Sizes
    unix_sockets: bool = False
    workspace: Path | None = None
