"""The servers behind the gateway: definitions become connections, and what they offer becomes entries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from omni_mcp import __version__
from omni_mcp.contracts.call import Durable, Principal
from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.events import EgressConnection, ServerState, draft
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.lock import launch_parts
from omni_mcp.contracts.manifest import Closed
from omni_mcp.contracts.ports import Completer, Executor, RunLog, Source
from omni_mcp.contracts.sandbox import Connection, Mount
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.acceptance_record import AcceptanceRecord
from omni_mcp.engines.catalog.lock import LockedSource
from omni_mcp.engines.catalog.lock_listing import KeptListing, keep_listing, listings_dir, load_listings
from omni_mcp.engines.catalog.lockfile import LockFile, LockReload
from omni_mcp.engines.catalog.names import is_marked, marked_uri, unmarked_uri
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from omni_mcp.engines.sandbox.profiles import Profile
from omni_mcp.engines.sandbox.server_child import ServerChild, start_child
from omni_mcp.engines.sandbox.servers import ServerCells, ServerLaunch, Tail
from omni_mcp.engines.upstream.envelope import ClientInfo
from omni_mcp.engines.upstream.listing import Listing, Listings
from omni_mcp.engines.upstream.pool import Hooks, Known, Upstreams, open_upstreams
from omni_mcp.engines.upstream.settings import MountSettings, UpstreamSettings
from omni_mcp.paths import Home
from omni_mcp.server_definition import ServerDefinition, Servers, secret_of_header
from omni_mcp.servers_file import check_disjoint, load_servers, read_server_secrets, servers_file_of

CONNECTIONS_A_MINUTE = 32  # events of one server and one verdict
STDERR_SHOWN = 2000  # characters
UPDATES_LIMIT = 10_000  # URIs that wait to be passed on

Mask = Callable[[str], str]


class Launcher:
    """Starts the commands of servers in cells, and keeps what each wrote to its stderr."""

    def __init__(
        self, definitions: Mapping[str, ServerDefinition], cells: ServerCells, *, networks: tuple[str, ...],
        mask: Mask, on_connection: Callable[[str, Connection], None],
    ) -> None:  # fmt: skip
        self._definitions = definitions
        self._cells = cells
        self._networks = networks
        self._mask = mask
        self._on_connection = on_connection
        self._tails: dict[str, Tail] = {}

    async def __call__(self, name: str, settings: UpstreamSettings, environment: Mapping[str, str]) -> ServerChild:
        """Start server *name*.

        Raises:
            SandboxUnavailable, RateLimited: it cannot be started as it is to be.
        """
        definition = self._definitions[name]
        launch = ServerLaunch(
            name=name, argv=_command(definition), profile=definition.profile,
            environment=environment, directories=_mounts(definition), hosts=definition.hosts, networks=self._networks,
        )  # fmt: skip
        tail = self._tails[name] = Tail()
        return await start_child(
            self._cells, launch, mask=self._mask, tail=tail,
            on_connection=lambda connection: self._on_connection(name, connection),
        )  # fmt: skip

    def stderr_of(self, name: str) -> str:
        """Return the last that a server wrote there, masked."""
        tail = self._tails.get(name)
        return self._mask(tail.text()) if tail is not None else ""


def _command(definition: ServerDefinition) -> tuple[str, ...]:
    where = ("env", f"--chdir={definition.cwd}") if definition.cwd else ()
    return (*where, definition.command, *definition.args)


def _mounts(definition: ServerDefinition) -> tuple[Mount, ...]:
    return tuple(
        Mount(source=Path(mount.source), inside=mount.source, writable=mount.writable, as_owner=True)
        for mount in definition.mounts
    )


def upstream_settings(definition: ServerDefinition) -> UpstreamSettings:
    """Return what the upstream engine needs of a definition; secrets become references in its own spelling."""
    if definition.url is not None:
        headers = {}
        for header, value in definition.headers.items():
            secret = secret_of_header(value)
            headers[header] = f"{secret[0]}${{secret:{secret[1]}}}" if secret else value
        return UpstreamSettings(
            url=definition.url, headers=headers, stateful=definition.stateful, enabled=definition.enabled,
            timeout_s=definition.timeout_s,
            transport="streamable" if definition.transport == "http" else definition.transport,
        )  # fmt: skip
    named = {variable: f"${{secret:{secret}}}" for variable, secret in definition.secrets.items()}
    return UpstreamSettings(
        command=definition.command, args=definition.args, env={**definition.env, **named},
        profile=definition.profile, hosts=definition.hosts, stateful=definition.stateful, enabled=definition.enabled,
        timeout_s=definition.timeout_s,
        mounts=tuple(MountSettings(path=mount.source, writable=mount.writable) for mount in definition.mounts),
    )  # fmt: skip


@dataclass(slots=True)
class _Told:
    """Connections of one server and one verdict that were told of."""

    minute: int = 0
    events: int = 0
    more: int = 0


class Reporter:
    """Writes down what happens to servers, in the gateway's own run."""

    def __init__(self, log: RunLog, run: str, mask: Mask) -> None:
        self._log = log
        self._run = run
        self._mask = mask
        self._told: dict[tuple[str, str], _Told] = {}

    def note(self, payload: Closed) -> Durable:
        """Something happened to a definition."""
        return self._log.append(self._run, draft(payload, actor="gateway"))

    def state(self, server: str, state: str, detail: str) -> None:
        """A server is ready, degraded or offline now."""
        self.note(ServerState.model_validate({"server": server, "state": state, "detail": self._mask(detail)}))

    def connection(self, server: str, connection: Connection) -> None:
        """A server in a cell reached for a host: so many a minute have an event each, the next one counts the rest."""
        told = self._told.setdefault((server, connection.verdict), _Told())
        minute = int(time.monotonic() // 60)
        if minute != told.minute:
            told.minute, told.events = minute, 0
        if told.events >= CONNECTIONS_A_MINUTE:
            told.more += 1
            return
        event = EgressConnection(**asdict(connection), more=told.more)
        told.events, told.more = told.events + 1, 0
        self._log.append(self._run, draft(event, actor=f"server:{server}"))


class Behind:
    """All servers behind the gateway, as the rest of it sees them."""

    def __init__(
        self, defined: Defined, upstreams: Upstreams, launcher: Launcher, *, lock: LockFile, data: Path,
        reporter: Reporter,
    ) -> None:  # fmt: skip
        self._defined = defined
        self._upstreams = upstreams
        self._launcher = launcher
        self._lock = lock
        self._listings = listings_dir(data)
        self._recorded = AcceptanceRecord(data / "acceptances.json")
        self._reporter = reporter
        self._locked = LockedSource(upstreams.source, lock, launch_of=lambda name: _launch(defined.servers[name]))
        self._locked.listen(reporter.note)

    @property
    def source(self) -> Source:
        """What they offer: in force is what the operator accepted, the rest is quarantined."""
        return self._locked

    @property
    def waiting(self) -> int:
        """How many definitions wait for the operator."""
        return len(self._locked.waiting)

    async def reload_lock(self) -> LockReload:
        """Read omni.lock again, and put on record what was accepted since.

        With problems, what was in force before still is.
        """
        found = await asyncio.to_thread(self._lock.reload)
        news = self._recorded.news(self._lock.now)
        if news:
            for written in [self._reporter.note(payload) for payload in news]:
                await written.durable()
        await asyncio.to_thread(self._recorded.keep, self._lock.now)
        return found

    @property
    def executor(self) -> Executor:
        """Runs calls at them."""
        return self._upstreams.executor

    @property
    def completers(self) -> Mapping[str, Completer]:
        """Who suggests values, by server."""
        return self._upstreams.completers

    def watch(self, entry: Entry, principal: Principal, uri: str) -> Callable[[], None]:
        """Have a server report updates of one of its resources; returns how to undo that.

        Raises:
            UpstreamUnavailable, Overloaded: it cannot be watched.
        """
        if entry.server not in self.completers or entry.binding != "mcp_remote":
            return lambda: None
        own = own_uri(uri)
        self._upstreams.watch(entry.server, principal.key, own)
        return lambda: self._upstreams.unwatch(entry.server, principal.key, own)

    def keep(self, listings: Mapping[str, Listing]) -> None:
        """Write down what servers offer, for the next start and for commands that need no gateway.

        Raises:
            OSError: it cannot be written.
        """
        for server, listing in listings.items():
            launch = _launch(self._defined.servers[server])
            seen_at = datetime.now(UTC).isoformat()
            kept = KeptListing.model_validate(
                {"server": server, "seen_at": seen_at, "launch": launch, "items": listing.items,
                 "problems": listing.problems}
            )  # fmt: skip
            keep_listing(self._listings, kept)

    def facts(self) -> JsonObject:
        """What `status` and `doctor` say of each server."""
        return {
            name: {**facts, "stderr": self._launcher.stderr_of(name)[-STDERR_SHOWN:]}
            for name, facts in self._upstreams.facts().items()
        }


def _launch(definition: ServerDefinition) -> dict[str, str]:
    return launch_parts(definition.as_json())


def own_uri(uri: str) -> str:
    """Return a server's own URI for the one that clients know it by."""
    return unmarked_uri(uri)[1] if is_marked(uri) else uri


class News:
    """What servers report, kept until the gateway looks: which offer something else, which resources changed."""

    def __init__(self) -> None:
        self._listings: dict[str, Listing] = {}
        self._updates: dict[str, None] = {}
        self._some = asyncio.Event()

    def listed(self, server: str, listing: Listing) -> None:
        """A server offers something else now."""
        self._listings[server] = listing
        self._some.set()

    def updated(self, server: str, uri: str) -> None:
        """A resource of a server changed; clients may know it by either URI."""
        if len(self._updates) < UPDATES_LIMIT:
            self._updates.update(dict.fromkeys((marked_uri(server, uri), uri)))
        self._some.set()

    async def next(self) -> tuple[dict[str, Listing], list[str]]:
        """Wait for news and return all there is: listings by server, and URIs."""
        await self._some.wait()
        self._some.clear()
        listings, self._listings = self._listings, {}
        updates, self._updates = list(self._updates), {}
        return listings, updates


@dataclass(frozen=True, slots=True, kw_only=True)
class Defined:
    """What the operator's files define: servers by name, the values of their secrets, and what is wrong."""

    servers: Mapping[str, ServerDefinition]
    secrets: Mapping[str, str] = field(repr=False)
    problems: tuple[Problem, ...] = ()


def read_definitions(
    by_hand: Mapping[str, ServerDefinition], home: Home, *, secrets: Mapping[str, str], environment: Mapping[str, str]
) -> Defined:
    """Read servers.toml beside what omni.toml says. A faulty file or secret takes no other server down.

    Args:
        by_hand: the servers of omni.toml.
        secrets: those of omni.toml by name.
    """
    file = servers_file_of(home)
    problems: list[Problem] = []
    written = Servers()
    try:
        written = load_servers(file)
        check_disjoint(file, written, frozenset(by_hand))
    except ConfigError as error:
        problems += error.problems
        written = Servers()
    everything = Servers(servers={**by_hand, **written.servers}, secrets=written.secrets)
    values, lacking = read_server_secrets(everything, environment, known=secrets)
    problems += [
        Problem(file=str(file), line=0, path=f"$.servers.{name}", message=text) for name, text in lacking.items()
    ]
    usable = {
        name: definition.model_copy(update={"enabled": False}) if name in lacking else definition
        for name, definition in everything.servers.items()
    }
    return Defined(servers=usable, secrets=values, problems=tuple(problems))


def known_entries(by_hand: Mapping[str, ServerDefinition], home: Home) -> list[Entry]:
    """Return what servers offered last and what is in force of it, as a gateway on *home* would start with.

    Raises:
        ConfigError: a kept listing is not what the gateway writes.
    """
    defined = read_definitions(by_hand, home, secrets={}, environment={}).servers
    source = Listings({name: one.timeout_s for name, one in defined.items()}, known=_known(home, defined))
    lock = LockFile(home.lock_file)
    lock.reload()
    return list(LockedSource(source, lock, launch_of=lambda name: _launch(defined[name])).load())


def _known(home: Home, servers: Mapping[str, ServerDefinition]) -> dict[str, Listing]:
    """Return what servers offered last, as far as they are launched as they were then."""
    return {
        server: Listing(items={str(kind): items for kind, items in kept.items.items()}, problems=kept.problems)
        for server, kept in load_listings(listings_dir(home.data)).items()
        if server in servers and dict(kept.launch) == _launch(servers[server])
    }


@asynccontextmanager
async def open_behind(
    defined: Defined,
    *,
    sandbox: BubblewrapSandbox,
    profiles: Mapping[str, Profile],
    home: Home,
    networks: tuple[str, ...],
    mask: Mask,
    reporter: Reporter,
    news: News,
) -> AsyncIterator[Behind]:
    """Open all enabled servers; waits for none of them: what they offered last time is known.

    Args:
        home: where their homes, what they offer and what is accepted stand.
        networks: special address ranges in which hosts of theirs may be.
        news: where their reports go.
    """
    cells = ServerCells(sandbox, profiles, home.servers, secrets=defined.secrets)
    cells.remember(mount for definition in defined.servers.values() for mount in _mounts(definition))
    launcher = Launcher(
        defined.servers, cells, networks=networks, mask=mask, on_connection=reporter.connection
    )  # fmt: skip
    hooks = Hooks(on_state=reporter.state, on_listing=news.listed, on_resource=news.updated)
    async with open_upstreams(
        {name: upstream_settings(definition) for name, definition in defined.servers.items()},
        launch=launcher, secrets=defined.secrets, info=ClientInfo(version=__version__), own_uri=own_uri, hooks=hooks,
        known=Known(listings=_known(home, defined.servers)),
    ) as upstreams:  # fmt: skip
        lock = LockFile(home.lock_file)
        yield Behind(defined, upstreams, launcher, lock=lock, data=home.data, reporter=reporter)
