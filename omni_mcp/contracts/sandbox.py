"""What a sandbox is asked to run, under which limits, and how the job can end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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
    "policy",
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
    `as_owner` is the operator's word that a job may run as whoever owns the source, if that is not root. `identity` is
    the device and inode that was judged: nothing else is mounted in its place. `copy` says that the gateway has made it
    for this job, of regular files.
    """

    source: Path
    inside: str
    writable: bool = False
    most_bytes: int | None = None
    most_entries: int | None = None
    as_owner: bool = False
    identity: tuple[int, int] | None = None
    copy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A header that the gateway adds to requests for one host, so that the job never sees the secret in it.

    `host` is `name:port` as it stands in a grant. The value stays out of every `repr`.
    """

    host: str
    header: str
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One attempt of a job to reach a host, and what became of it. Written into the record.

    `reason` says why it was refused or failed, as a short code such as `not_granted`, `private_address`, `bad_request`.
    """

    host: str
    port: int
    method: str  # CONNECT, or the method of a plain request
    verdict: Literal["open", "refused", "failed"]
    reason: str = ""
    address: str = ""
    bytes_sent: int = 0  # by the job
    bytes_received: int = 0
    duration_ms: float = 0.0
    credential: bool = False  # whether the gateway added one


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Where a job's output goes while it runs, instead of into its `JobEnd`; and what feeds its input.

    `stdin` is the reading end of a pipe: the job gets it, whoever made it closes their copy when the job has ended. A
    writer is awaited before more of its stream is read, so a slow reader slows the job down.
    """

    stdin: int
    stdout: Callable[[bytes], Awaitable[None]]
    stderr: Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One thing to run in one fresh cell.

    Either `argv` (a command) or `function` (`module:function` of `sandbox/tools`, called with `arguments`, which
    returns a JSON object). `files` are put into the workspace before the start, by relative path. `exports` says
    whether the regular files that the job leaves below `out/` come back. `egress` lists the `host:port` that it may
    reach through the gateway's proxy, `networks` the special address ranges that such a host may turn out to be in.
    A function that is `bundled` may run in the warmed interpreter; any other code is started as a program of its own.
    A `lasting` job is a server: no limit on wall time, CPU time or output ends it.
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
    networks: tuple[str, ...] = ()
    credentials: tuple[Credential, ...] = ()
    bundled: bool = False
    lasting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A server that runs in a cell: our ends of its pipes, and how it will have ended.

    The descriptors are non-blocking and belong to the sandbox; they are closed when the server is left.
    """

    stdin: int
    stdout: int
    ended: Awaitable[JobEnd]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """A regular file that a job left below `out/`."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """How a job ended. `result` is what a `function` returned; `message` is for people when the reason is not `exit`.

    `usage` holds `wall_ms`, `cpu_ms`, `memory_peak_bytes`, `bytes_out`, `temperature` (`hot` or `cold`); `limits` holds
    those in force. `passing` says that the cell was at fault and not the job: the same job may do better in a moment.
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
    passing: bool = False
