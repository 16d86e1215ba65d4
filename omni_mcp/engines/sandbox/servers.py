"""ServerCells: starts MCP servers that speak over pipes, each in a cell with a home, caches and hosts of its own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from omni_mcp.contracts.errors import SandboxUnavailable
from omni_mcp.contracts.ports import ServerSandbox
from omni_mcp.contracts.sandbox import Connection, Credential, Job, Mount, Served
from omni_mcp.engines.sandbox.failures import StartFailed
from omni_mcp.engines.sandbox.launcher import HOME
from omni_mcp.engines.sandbox.profiles import Profile
from omni_mcp.engines.sandbox.sources import Sources
from omni_mcp.engines.sandbox.uids import running_as_root
from omni_mcp.engines.sandbox.workspaces import WorkspaceRefused, Workspaces
from omni_mcp.host_places import HostPlaces

_TAIL_BYTES = 64 * 1024
# A package runner looks at its source before it uses what it has; without a network it would retry for many seconds.
_WITHOUT_HOSTS = {"UV_OFFLINE": "1", "npm_config_offline": "true"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLaunch:
    """What it takes to start one server. `environment` holds secrets, so it stays out of every `repr`.

    `directories` are what the operator named, each seen at its own path; `hosts` come on top of the profile's;
    `networks` as in `Job`.
    """

    name: str
    argv: tuple[str, ...]
    profile: str = "server"
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    directories: tuple[Mount, ...] = ()
    hosts: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    credentials: tuple[Credential, ...] = ()


class Tail:
    """The last that a server wrote to its stderr."""

    def __init__(self, limit_bytes: int = _TAIL_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._kept = bytearray()

    def add(self, data: bytes) -> None:
        """Keep *data*, and forget the oldest where that is too much."""
        self._kept += data
        del self._kept[: max(0, len(self._kept) - self._limit_bytes)]

    def text(self) -> str:
        """Return what is kept; a line that was cut at the front is left out. Not masked."""
        kept = bytes(self._kept)
        if len(kept) == self._limit_bytes:
            kept = kept.partition(b"\n")[2]
        return kept.decode(errors="replace")


class ServerCells:
    """Starts servers in *sandbox*. Homes and caches stand below *root*, by server, and survive restarts.

    *secrets* are the operator's, by name, for profiles that hand some to their servers. *shown* judges what they are to
    see, at each start.
    """

    def __init__(
        self, sandbox: ServerSandbox, profiles: Mapping[str, Profile], root: Path, *, secrets: Mapping[str, str],
        shown: HostPlaces,
    ) -> None:  # fmt: skip
        self._sandbox = sandbox
        self._shown = shown
        self._profiles = profiles
        self._places = Workspaces(root)
        self._secrets = secrets
        self._sources = Sources()

    def give(self, secrets: Mapping[str, str]) -> None:
        """Replace the secrets that servers which start from now on are given."""
        self._secrets = secrets

    def remember(self, directories: Iterable[Mount]) -> None:
        """Learn what the servers of all definitions are given, before the first of them starts.

        No link is followed in what one of them may write, and so may have written before the gateway started.
        """
        for mount in directories:
            with suppress(StartFailed):
                self._sources.find_mount(mount)

    @asynccontextmanager
    async def start(
        self, launch: ServerLaunch, *, tail: Tail, on_connection: Callable[[Connection], None] | None = None
    ) -> AsyncIterator[Served]:
        """Run the server until the context is left; its stderr goes to *tail*.

        Raises:
            SandboxUnavailable: it cannot be started as it is to be; nothing was started.
            RateLimited: as many servers run as may.
        """
        job = self._job(launch)
        async with self._sandbox.serve(job, on_stderr=tail.add, on_connection=on_connection) as served:
            yield served

    def may_reach(self, launch: ServerLaunch) -> tuple[str, ...]:
        """Return the `host:port` that the server may reach, by its profile and by itself."""
        profile = self._profiles.get(launch.profile)
        return (*(profile.hosts if profile is not None else ()), *launch.hosts)

    def fetches(self, launch: ServerLaunch) -> bool:
        """Whether its profile is one for servers that fetch what they run: it keeps a cache."""
        profile = self._profiles.get(launch.profile)
        return profile is not None and bool(profile.caches)

    def _job(self, launch: ServerLaunch) -> Job:
        profile = self._profiles.get(launch.profile)
        if profile is None:
            raise _refused(f"there is no sandbox profile {launch.profile!r}; there are: {', '.join(self._profiles)}")
        missing = sorted(name for name in profile.secrets.values() if name not in self._secrets)
        if missing:
            raise _refused(f"the profile hands out secrets that omni.toml does not have: {', '.join(missing)}")
        directories = tuple(self._resolved(mount) for mount in launch.directories)
        owner = _owner_of(directories)
        try:
            kept = self._kept(launch, profile, owner)
        except (WorkspaceRefused, OSError) as error:
            raise _refused(f"the server's home or cache: {error}") from error
        hosts = self.may_reach(launch)
        return Job(
            profile=launch.profile, argv=launch.argv, mounts=(*kept, *directories), limits=profile.limits,
            posture=profile.posture,
            environment={
                **({} if hosts else _WITHOUT_HOSTS),
                **{variable: self._secrets[name] for variable, name in profile.secrets.items()},
                **launch.environment,
            },
            egress=hosts, networks=launch.networks, credentials=launch.credentials, lasting=True,
        )  # fmt: skip

    def _resolved(self, mount: Mount) -> Mount:
        """Follow the links on the way to its source, and judge it; a plain process has to go that way itself."""
        _facts_of(mount.source)
        try:
            source = self._sources.find_mount(mount)
        except StartFailed as error:
            raise _refused(str(error)) from error
        for path in (str(mount.source), source.path):
            if fault := self._shown.fault(path, writable=mount.writable):
                raise _refused(fault)
        if self._sandbox.isolation().posture == "landlock":
            return mount
        return replace(mount, source=Path(source.path), identity=(source.device, source.inode))

    def _kept(self, launch: ServerLaunch, profile: Profile, owner: int | None) -> tuple[Mount, ...]:
        """Return the mounts of what survives the server: its home, its caches."""
        wanted = {"home": HOME} if profile.home == "kept" else {}
        if wanted and profile.caches:
            places = ", ".join(profile.caches.values())
            raise _refused(
                f"profile {launch.profile!r} keeps caches ({places}) in a home that it keeps too, where a server could "
                'lead them elsewhere: use home = "fresh", or do without the caches'
            )
        wanted |= {f"cache-{name}": inside for name, inside in profile.caches.items()}
        share = (profile.cache_mib << 20) // max(1, len(wanted))
        return tuple(
            Mount(
                source=self._places.directory(launch.name, kind, owner=owner), inside=inside, writable=True,
                most_bytes=share, most_entries=profile.limits.inodes, as_owner=True,
            )
            for kind, inside in wanted.items()
        )  # fmt: skip


def _owner_of(directories: tuple[Mount, ...]) -> int | None:
    """Return whom the server has to run as under a root gateway; None if anybody will do.

    The owner of what it may write; else of what it may only read, since that can be closed to everybody else.

    Raises:
        SandboxUnavailable: a directory cannot be given to it.
    """
    owners = {mount.source: _facts_of(mount.source).st_uid for mount in directories}
    if not running_as_root():
        _check_access(directories)
        return None
    to_write = {owners[mount.source] for mount in directories if mount.writable}
    roots = next((mount.source for mount in directories if mount.writable and owners[mount.source] == 0), None)
    if roots is not None:
        raise _refused(f"{roots} belongs to root and no server runs as root: give it to another user (chown)")
    if len(to_write) > 1:
        uids = ", ".join(map(str, sorted(to_write)))
        raise _refused(f"its writable directories belong to several users ({uids}), and it can run as one only")
    to_read = {owners[mount.source] for mount in directories if mount.as_owner} - {0}
    return next(iter(to_write), next(iter(to_read), None) if len(to_read) == 1 else None)


def _check_access(directories: tuple[Mount, ...]) -> None:
    """An ordinary user's server can do what they can do."""
    for mount in directories:
        wanted = os.R_OK | (os.W_OK if mount.writable else 0)
        if not os.access(mount.source, wanted):
            verb = "write to" if mount.writable else "read"
            raise _refused(f"the user of the gateway cannot {verb} {mount.source}")


def _facts_of(place: Path) -> os.stat_result:
    try:
        return os.stat(place)
    except OSError as error:
        raise _refused(f"{place}, which the server is to see: {error.strerror}") from error


def _refused(detail: str) -> SandboxUnavailable:
    return SandboxUnavailable("the server cannot be started here", detail=detail)
