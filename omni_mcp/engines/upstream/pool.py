"""Upstreams: every MCP server behind the gateway, connected when it is needed, and what the rest of us has of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from omni_mcp.contracts.call import Era
from omni_mcp.contracts.errors import ConfigError, OmniError, Problem, UpstreamUnavailable
from omni_mcp.contracts.json import JsonObject, digest
from omni_mcp.contracts.ports import Completer
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.upstream.completer import UpstreamCompleter
from omni_mcp.engines.upstream.connection import Connection, Eras, OpenWire, State, Timing
from omni_mcp.engines.upstream.envelope import ClientInfo
from omni_mcp.engines.upstream.executor import UpstreamExecutor
from omni_mcp.engines.upstream.lister import Lister, Unlisted, ask
from omni_mcp.engines.upstream.listing import Listing, Listings, SchemaFaults
from omni_mcp.engines.upstream.parking import PARKED_S, Parking
from omni_mcp.engines.upstream.roots import Roots
from omni_mcp.engines.upstream.wire.event_stream import EventStreamWire
from omni_mcp.engines.upstream.wire.large import LargeParser
from omni_mcp.engines.upstream.wire.lines import Child, LinesWire
from omni_mcp.engines.upstream.wire.seam import Wire
from omni_mcp.engines.upstream.wire.streamable import StreamableWire
from omni_mcp.server_definition import ServerDefinition

ServerStatus = Literal["ready", "degraded", "offline"]
Launch = Callable[[str, ServerDefinition, Mapping[str, str]], Awaitable[Child]]
SHARED = ""  # in place of a principal
PRINCIPALS_LIMIT = 64  # connections of one stateful server
LISTS_AT_ONCE = 4
DRAIN_S = 610.0  # for the calls of a connection that is not used any more: longer than any call may take


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Whom the pool tells. None of them may wait or raise.

    `on_list_changed` is told of each notice of a server, `on_listed` how many notices a try to list it has answered.
    `schema_faults` says why a tool with such a schema is left out.
    """

    on_state: Callable[[str, ServerStatus, str], None] = lambda server, status, detail: None
    on_listing: Callable[[str, Listing], None] = lambda server, listing: None  # it differs from the one before
    on_list_changed: Callable[[str], None] = lambda server: None
    schema_faults: SchemaFaults = lambda schema: ()
    on_listed: Callable[[str, int], None] = lambda server, notices: None
    on_resource: Callable[[str, str], None] = lambda server, uri: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What an earlier process learned, so that nothing has to be waited for at the start."""

    listings: Mapping[str, Listing] = field(default_factory=dict)
    eras: dict[str, Era] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What one look at a server found: what it offers, how long it took to be ready, and to list that."""

    listing: Listing
    ready_ms: float
    list_ms: float


class Upstreams:
    """All servers. Opened by `open_upstreams`; `apply` says which there are."""

    def __init__(
        self, *, launch: Launch, info: ClientInfo, accept: Callable[[Entry], Entry], own_uri: Callable[[str], str],
        hooks: Hooks, eras: dict[str, Era], timing: Timing, parked_s: float, large: LargeParser | None = None,
    ) -> None:  # fmt: skip
        self._launch = launch
        self._info = info
        self._hooks = hooks
        self._timing = timing
        self._large = large or LargeParser()
        self.eras = Eras(eras)
        self.source = Listings(accept=accept)
        self.parking = Parking(parked_s=parked_s)
        self._rooted: set[str] = set()  # servers that take their directories from their client
        self.executor = UpstreamExecutor(
            self._connection_of, self._rooted_connection_of, rooted=self._rooted, parking=self.parking, own_uri=own_uri
        )
        self.completers: dict[str, Completer] = {}
        self._completer = UpstreamCompleter(self._connection_of)
        self._servers: dict[str, ServerDefinition] = {}
        self._secrets: Mapping[str, str] = {}
        self._connections: dict[tuple[str, str], Connection] = {}
        self._owners: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._listers: dict[str, tuple[Lister, asyncio.Task[None]]] = {}
        self._status: dict[str, ServerStatus] = {}
        self._listing_slots = asyncio.Semaphore(LISTS_AT_ONCE)
        self._closed = False

    def apply(
        self, servers: Mapping[str, ServerDefinition], secrets: Mapping[str, str], known: Mapping[str, Listing]
    ) -> None:
        """Use *servers*, those that are enabled, from now on.

        What is defined as before goes on undisturbed. Connections to one that is defined otherwise, or has another
        secret, take no new calls and end when those under way have ended.

        Args:
            known: what servers that come anew offered last.

        Raises:
            ConfigError: a server refers to a secret that is not there; nothing has changed then.
        """
        wanted = {name: definition for name, definition in servers.items() if definition.enabled}
        _check_secrets(wanted, secrets)
        before, old_secrets = self._servers, self._secrets
        self._servers, self._secrets = wanted, dict(secrets)
        for name, definition in before.items():
            now = wanted.get(name)
            if now is None or _reached(definition, old_secrets) != _reached(now, secrets):
                self._let_go_of(name, now)
            if now is None or definition.definition != now.definition:
                self._forget(name)
        self.source.use({name: definition.timeout_s for name, definition in wanted.items()}, known)
        self._rooted.update(name for name in wanted.keys() & known.keys() if known[name].asks_roots)
        for name in wanted.keys() - self._listers.keys():
            self._start_lister(name)
        self.completers.clear()
        self.completers.update(dict.fromkeys(wanted, self._completer))

    def facts(self) -> JsonObject:
        """What a person wants to know of each server. `idle`: it is there as far as we know, and nobody uses it yet."""
        return {
            name: {
                "status": self._status.get(name, "idle"),
                "problems": list(listing.problems) if (listing := self.source.find(name)) else [],
                "list_fault": self._listers[name][0].fault,
                "connections": {
                    key[1] or "shared": connection.facts()
                    for key, connection in self._connections.items()
                    if key[0] == name
                },
            }
            for name in self._servers
        }

    def refresh(self, server: str) -> None:
        """Ask a server for its lists again, soon."""
        self._listers[server][0].want()

    async def probe(self, server: str) -> Probe:
        """Connect to a server and list it, whatever is known of it.

        Raises:
            Unlisted: it cannot be reached, or gives no list.
            UpstreamUnavailable: there is no such server.
        """
        connection = self._connection_of(server, SHARED)
        begun = time.perf_counter()
        try:
            await connection.talk()
        except OmniError as error:
            raise Unlisted(error.detail) from error
        ready = time.perf_counter()
        listing = await ask(connection, self._hooks.schema_faults)
        listed = time.perf_counter()
        return Probe(listing=listing, ready_ms=(ready - begun) * 1000, list_ms=(listed - ready) * 1000)

    async def listed(self, server: str) -> None:
        """Wait until the lists of a server were asked for at least once, with or without success."""
        await self._listers[server][0].tried.wait()

    async def watch(self, server: str, principal: str, uri: str) -> None:
        """Have updates of a resource reported (the server's own URI), until `unwatch`.

        Raises:
            UpstreamUnavailable: there is no such server, or too many connections to it.
            Overloaded: too many resources are watched.
        """
        await self._connection_of(server, principal).watch(uri)

    def unwatch(self, server: str, principal: str, uri: str) -> None:
        """Undo one `watch`."""
        connection = self._connections.get(self._key(server, principal)) if server in self._servers else None
        if connection is not None:
            connection.unwatch(uri)

    def _key(self, server: str, principal: str) -> tuple[str, str]:
        return server, principal if self._servers[server].stateful else SHARED

    def _connection_of(self, server: str, principal: str) -> Connection:
        if server not in self._servers or self._closed:
            unused = UpstreamUnavailable("the server behind it is not in use", detail=f"{server} is not enabled")
            unused.passing = False
            raise unused
        return self._connection(self._key(server, principal))

    def _rooted_connection_of(self, server: str, principal: str, roots: Roots) -> Connection:
        """Return the connection of a server that takes its directories from its client, for these directories."""
        if not roots or server not in self._servers:
            return self._connection_of(server, principal)
        return self._connection((server, f"{self._key(server, principal)[1]} {digest(list(roots))}"), roots)

    def _connection(self, key: tuple[str, str], roots: Roots = ()) -> Connection:
        found = self._connections.get(key)
        if found is None:
            self._make_room(key[0])
            found = self._connect(key, roots)
        return found

    def _connect(self, key: tuple[str, str], roots: Roots = ()) -> Connection:
        server = key[0]
        definition = self._servers[server]
        made = self._connections[key] = Connection(
            server, definition=definition.definition, wires=self._wires(server, definition), info=self._info,
            listener=_Reports(self, server), eras=self.eras, timing=self._timing, roots=roots,
            on_state=lambda state, reason: self._on_state(key, made, state, reason),
            on_health=lambda reason: self._on_health(key, made, reason),
        )  # fmt: skip
        self._owners[key] = asyncio.create_task(made.run(), name=f"upstream {server}")
        return made

    def _make_room(self, server: str) -> None:
        """Let go of an idle connection of a stateful server where there are too many."""
        mine = [key for key in self._connections if key[0] == server]
        if len(mine) < PRINCIPALS_LIMIT:
            return
        for key in mine:
            connection = self._connections[key]
            if connection.state == "idle" and not connection.busy and not connection.watched:
                self._end(key)
                return
        raise UpstreamUnavailable(
            "too many callers use the server behind it; try again later", data={"retry_after_s": 10.0},
            detail=f"{server}: {PRINCIPALS_LIMIT} connections",
        )  # fmt: skip

    def _let_go_of(self, server: str, now: ServerDefinition | None) -> None:
        """End the connections to a server; one that is there again reports what the old one was asked to report."""
        for key in [key for key in self._connections if key[0] == server]:
            watched = self._end(key).watched
            if now is not None and watched and now.stateful == (key[1] != SHARED):
                self._connect(key).take_over(watched)
        self._status.pop(server, None)

    def _end(self, key: tuple[str, str]) -> Connection:
        connection = self._connections.pop(key)
        ending = asyncio.create_task(_drained(connection, self._owners.pop(key)), name=f"end of {key[0]}")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return connection

    def _wires(self, server: str, definition: ServerDefinition) -> list[OpenWire]:
        if definition.url is None:
            return [partial(self._launched, server, definition, definition.environment(self._secrets))]
        headers = definition.header_values(self._secrets)
        kinds: dict[str, list[OpenWire]] = {
            "http": [partial(self._over_http, StreamableWire, definition.url, headers)],
            "sse": [partial(self._over_http, EventStreamWire, definition.url, headers)],
        }
        return kinds["http"] + kinds["sse"] if definition.transport == "auto" else kinds[definition.transport]

    async def _launched(self, server: str, definition: ServerDefinition, environment: Mapping[str, str]) -> Wire:
        return LinesWire(await self._launch(server, definition, environment), large=self._large)

    async def _over_http(
        self, kind: type[StreamableWire | EventStreamWire], url: str, headers: Mapping[str, str]
    ) -> Wire:
        return kind(url, headers=lambda: headers, large=self._large)

    def _on_state(self, key: tuple[str, str], connection: Connection, state: State, reason: str) -> None:
        if not self._speaks_for_its_server(key, connection):
            return
        if state == "ready":
            self._tell_status(key[0], "ready", reason)
            self._listers[key[0]][0].connected()
        elif reason and state in ("waiting", "idle") and connection.health.failures_in_a_row:
            self._on_health(key, connection, reason)

    def _on_health(self, key: tuple[str, str], connection: Connection, reason: str) -> None:
        if not self._speaks_for_its_server(key, connection):
            return
        if not connection.health.failures_in_a_row:
            self._tell_status(key[0], "ready", reason)
        else:
            gone = connection.health.is_open or self.source.find(key[0]) is None
            self._tell_status(key[0], "offline" if gone else "degraded", reason)

    def _speaks_for_its_server(self, key: tuple[str, str], connection: Connection) -> bool:
        """Whether it is the shared connection, and the one in use."""
        return key[1] == SHARED and self._connections.get(key) is connection and not self._closed

    def _tell_status(self, server: str, status: ServerStatus, detail: str) -> None:
        if self._status.get(server) != status:
            self._status[server] = status
            self._hooks.on_state(server, status, detail)

    def list_changed(self, server: str) -> None:
        """A server says that a list of its is another one now."""
        if server in self._listers:
            self._listers[server][0].notice()
            self._hooks.on_list_changed(server)

    def resource_updated(self, server: str, uri: str) -> None:
        """A server says that one of its resources has changed."""
        self._hooks.on_resource(server, uri)

    def _start_lister(self, server: str) -> None:
        lister = Lister(
            partial(self._connection_of, server, SHARED), slots=self._listing_slots, timing=self._timing,
            is_known=self.source.find(server) is not None, on_listing=partial(self._listed, server),
            on_tried=partial(self._hooks.on_listed, server), schema_faults=self._hooks.schema_faults,
        )  # fmt: skip
        self._listers[server] = lister, asyncio.create_task(lister.run(), name=f"lists of {server}")

    def asks_roots(self, server: str) -> None:
        """A server asks for its client's directories outside of any call."""
        if server not in self._servers or server in self._rooted:
            return
        self._rooted.add(server)
        if (known := self.source.find(server)) is not None:
            self._listed(server, known)

    def _listed(self, server: str, listing: Listing) -> None:
        if server in self._rooted and not listing.asks_roots:
            listing = replace(listing, asks_roots=True)
        if self.source.put(server, listing):
            self._hooks.on_listing(server, listing)

    def _forget(self, server: str) -> None:
        """What a server offered when it was defined otherwise says nothing of it now."""
        lister, task = self._listers.pop(server)
        task.cancel()
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        self.source.forget(server)
        self._rooted.discard(server)
        self._hooks.on_listed(server, lister.noticed)

    async def close(self) -> None:
        """End everything: no process, socket or session remains when this returns."""
        self._closed = True
        self.parking.end_all()
        listers = [task for _, task in self._listers.values()]
        ending = [*listers, *self._owners.values(), *self._ending]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        await self._large.close()


class _Reports:
    """The listener of one server's talks."""

    def __init__(self, pool: Upstreams, server: str) -> None:
        self._pool = pool
        self._server = server

    def list_changed(self, kind: str) -> None:
        self._pool.list_changed(self._server)

    def resource_updated(self, uri: str) -> None:
        self._pool.resource_updated(self._server, uri)

    def asks_roots(self) -> None:
        self._pool.asks_roots(self._server)


async def _drained(connection: Connection, owner: asyncio.Task[None]) -> None:
    """End a connection when those who use it have done so."""
    try:
        async with asyncio.timeout(DRAIN_S):
            await connection.unused()
    except TimeoutError:
        return
    finally:
        owner.cancel()
        await asyncio.gather(owner, return_exceptions=True)


def _reached(definition: ServerDefinition, secrets: Mapping[str, str]) -> str:
    """Digest of what is reached, and how, with the values of its secrets."""
    values = {name: secrets[name] for name in sorted(definition.secret_names)}
    return digest([definition.definition, values])


def _check_secrets(servers: Mapping[str, ServerDefinition], secrets: Mapping[str, str]) -> None:
    missing = [
        Problem(file="omni.toml", line=0, path=f"$.servers.{name}", message=f"there is no secret {secret!r}")
        for name, definition in servers.items()
        for secret in sorted(definition.secret_names)
        if secret not in secrets
    ]
    if missing:
        raise ConfigError(missing)


@asynccontextmanager
async def open_upstreams(
    servers: Mapping[str, ServerDefinition],
    *,
    launch: Launch,
    secrets: Mapping[str, str],
    info: ClientInfo,
    accept: Callable[[Entry], Entry] = lambda entry: entry,
    own_uri: Callable[[str], str] = lambda uri: uri,
    hooks: Hooks | None = None,
    known: Known | None = None,
    timing: Timing | None = None,
    parked_s: float = PARKED_S,
    large: LargeParser | None = None,
) -> AsyncIterator[Upstreams]:
    """Open all enabled servers; waits for none of them. Leaving the context ends every connection and process.

    Args:
        launch: starts the command of a server in the sandbox: (name, definition, environment with secrets).
        secrets: by name.
        info: who the gateway says it is.
        accept: what is in force of a definition; without it everything stays quarantined.
        own_uri: from a public URI to the server's own.
        known: listings and eras that an earlier process learned.
        parked_s: how long a call waits for a modern caller's next round.
        large: handles large messages; closed with everything else.

    Raises:
        ConfigError: a server refers to a secret that is not there.
    """
    learned = known or Known()
    pool = Upstreams(
        launch=launch, info=info, accept=accept, own_uri=own_uri, hooks=hooks or Hooks(), eras=learned.eras,
        timing=timing or Timing(), parked_s=parked_s, large=large,
    )  # fmt: skip
    try:
        pool.apply(servers, secrets, learned.listings)
        yield pool
    finally:
        await pool.close()
