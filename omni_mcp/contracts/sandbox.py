"""What a sandbox is asked to run, under which limits, and how the job can end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Limits, Posture

EndReason = Literal[
    "exit",
    "signal",
    "timeout",
    "cpu_time",
    "memory",
    "processes",
    "disk",
    "file_size",
    "output_limit",
    "cancelled",
    "overloaded",
    "sandbox_unavailable",
    "start_failed",
    "killed",
]

POSTURES: tuple[Posture, ...] = ("none", "landlock", "no-cgroup", "full")  # weakest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What is in force for a job: `layers` names each layer that is on, `missing` each that is not, with the reason."""

    posture: Posture
    layers: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)

    def at_least(self, demanded: Posture) -> bool:
        """Whether this is as strong as *demanded*, or stronger."""
        return POSTURES.index(self.posture) >= POSTURES.index(demanded)

    def as_json(self) -> JsonObject:
        """Return what goes into the record."""
        return {"posture": self.posture, "layers": list(self.layers), "missing": dict(self.missing)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One host directory or file that a job may see, at *inside*.

    `most_bytes` and `most_entries` are what a writable directory may hold while the job runs; None: as much as fits.
    """

    source: Path
    inside: str
    writable: bool = False
    most_bytes: int | None = None
    most_entries: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One thing to run in one fresh cell.

    Either `argv` (a command) or `function` (`module:function` of `sandbox/tools`, called with `arguments`, which
    returns a JSON object). `files` are put into the workspace before the start, by relative path. `exports` says
    whether the regular files that the job leaves below `out/` come back.
    """

    profile: str
    argv: tuple[str, ...] = ()
    function: str = ""
    arguments: JsonObject = field(default_factory=dict)
    stdin: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    posture: Posture = "no-cgroup"
    exports: bool = False
    egress: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """A regular file that a job left below `out/`."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """How a job ended. `result` is what a `function` returned; `message` is for people when the reason is not `exit`.

    `usage` holds `wall_ms`, `cpu_ms`, `memory_peak_bytes`, `bytes_out`, `temperature` (`hot` or `cold`); `limits` holds
    those in force.
    """

    reason: EndReason
    exit_code: int | None = None
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    result: JsonObject | None = None
    files: tuple[ExportedFile, ...] = ()
    message: str = ""
    isolation: Isolation
    usage: JsonObject = field(default_factory=dict)
    limits: JsonObject = field(default_factory=dict)
