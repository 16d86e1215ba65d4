"""Plan: what a template is made with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omni_mcp.contracts.sandbox import Mount
from omni_mcp.engines.sandbox.cgroup import Group
from omni_mcp.engines.sandbox.profiles import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Whom a template runs as, what it sees, whether it gets a /proc.

    Without `proc` it becomes its only cell. `workspace` is the directory of the host that a plain process tree works
    in; `alone` says that no other job runs as `uid`.
    """

    number: int
    profile: Profile
    mounts: tuple[Mount, ...]
    uid: int | None
    alone: bool
    group: Group | None
    proc: bool
    workspace: Path | None = None
