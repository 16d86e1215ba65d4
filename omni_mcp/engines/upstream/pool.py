"""Upstreams: every MCP server behind the gateway, connected when it is needed, and what the rest of us has of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from omni_mcp.contracts.call import Era
from omni_mcp.contracts.errors import ConfigError, OmniError, Problem, UpstreamUnavailable
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.upstream.completer import UpstreamCompleter
from omni_mcp.engines.upstream.connection import Connection, Eras, OpenWire, State, Timing
from omni_mcp.engines.upstream.envelope import ClientInfo
from omni_mcp.engines.upstream.executor import UpstreamExecutor
from omni_mcp.engines.upstream.faults import Garbled, RemoteError
from omni_mcp.engines.upstream.listing import Listing, Listings, fetch
from omni_mcp.engines.upstream.parking import PARKED_S, Parking
from omni_mcp.engines.upstream.settings import UpstreamSettings, filled
from omni_mcp.engines.upstream.wire.event_stream import EventStreamWire
from omni_mcp.engines.upstream.wire.large import LargeParser
from omni_mcp.engines.upstream.wire.lines import Child, LinesWire
from omni_mcp.engines.upstream.wire.seam import Wire, WireFault
from omni_mcp.engines.upstream.wire.streamable import StreamableWire

ServerStatus = Literal["ready", "degraded", "offline"]
Launch = Callable[[str, UpstreamSettings, Mapping[str, str]], Awaitable[Child]]
SHARED = ""  # in place of a principal
PRINCIPALS_LIMIT = 64  # connections of one stateful server
LISTS_AT_ONCE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Whom the pool tells. None of them may wait or raise."""

    on_state: Callable[[str, ServerStatus, str], None] = lambda server, status, detail: None
    on_listing: Callable[[str, Listing], None] = lambda server, listing: None  # it differs from the one before
    on_list_changed: Callable[[str, str], None] = lambda server, kind: None  # the server said so, whatever it lists
    on_resource: Callable[[str, str], None] = lambda server, uri: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What an earlier process learned, so that nothing has to be waited for at the start."""

    listings: dict[str, Listing] = field(default_factory=dict)
    eras: dict[str, Era] = field(default_factory=dict)


class Upstreams:
    """All servers. Opened by `open_upstreams`."""

    def __init__(
        self, servers: Mapping[str, UpstreamSettings], *, launch: Launch, secrets: Mapping[str, str],
        info: ClientInfo, accept: Callable[[Entry], Entry], own_uri: Callable[[str], str], hooks: Hooks,
        known: Known, timing: Timing, parked_s: float,
    ) -> None:  # fmt: skip
        self._servers = {name: settings for name, settings in servers.items() if settings.enabled}
        self._launch = launch
        self._secrets = dict(secrets)
        self._info = info
        self._hooks = hooks
        self._timing = timing
        self._large = LargeParser()
        self.eras = Eras(known.eras)
        self.source = Listings(
            {name: settings.timeout_s for name, settings in self._servers.items()}, accept=accept, known=known.listings
        )
        self.parking = Parking(parked_s=parked_s)
        self.executor = UpstreamExecutor(self._connection_of, parking=self.parking, own_uri=own_uri)
        completer = UpstreamCompleter(self._connection_of)
        self.completers = dict.fromkeys(self._servers, completer)
        self._connections: dict[tuple[str, str], Connection] = {}
        self._owners: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._listers = {name: _Lister() for name in self._servers}
        self._status: dict[str, ServerStatus] = {}
        self._listing_slots = asyncio.Semaphore(LISTS_AT_ONCE)
        self._closed = False

    def facts(self) -> JsonObject:
        """What a person wants to know of each server."""
        return {
            name: {
                "status": self._status.get(name, "offline" if self.source.find(name) is None else "degraded"),
                "problems": list(listing.problems) if (listing := self.source.find(name)) else [],
                "list_fault": self._listers[name].fault,
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
        self._listers[server].wanted.set()

    async def listed(self, server: str) -> None:
        """Wait until the lists of a server were asked for at least once, with or without success."""
        await self._listers[server].tried.wait()

    def watch(self, server: str, principal: str, uri: str) -> None:
        """Have updates of a resource reported (the server's own URI), until `unwatch`.

        Raises:
            UpstreamUnavailable: there is no such server, or too many connections to it.
            Overloaded: too many resources are watched.
        """
        self._connection_of(server, principal).watch(uri)

    def unwatch(self, server: str, principal: str, uri: str) -> None:
        """Undo one `watch`."""
        connection = self._connections.get(self._key(server, principal))
        if connection is not None:
            connection.unwatch(uri)

    # --- connections ---

    def _key(self, server: str, principal: str) -> tuple[str, str]:
        return server, principal if self._servers[server].stateful else SHARED

    def _connection_of(self, server: str, principal: str) -> Connection:
        if server not in self._servers or self._closed:
            raise UpstreamUnavailable("the server behind it is not in use", detail=f"{server} is not enabled")
        key = self._key(server, principal)
        found = self._connections.get(key)
        if found is None:
            self._make_room(server)
            found = self._connections[key] = self._new_connection(*key)
            self._owners[key] = asyncio.create_task(found.run(), name=f"upstream {server}")
        return found

    def _new_connection(self, server: str, principal: str) -> Connection:
        settings = self._servers[server]
        listener = _Reports(self, server)
        return Connection(
            server, definition=settings.definition, wires=self._wires(server, settings), info=self._info,
            listener=listener, eras=self.eras, timing=self._timing,
            on_state=partial(self._on_state, server, principal),
        )  # fmt: skip

    def _make_room(self, server: str) -> None:
        """Let go of an idle connection of a stateful server where there are too many."""
        mine = [key for key in self._connections if key[0] == server]
        if len(mine) < PRINCIPALS_LIMIT:
            return
        for key in mine:
            connection = self._connections[key]
            if connection.state == "idle" and not connection.busy and not connection.watched:
                owner = self._owners.pop(key)
                owner.cancel()
                self._ending.add(owner)
                owner.add_done_callback(self._ending.discard)
                del self._connections[key]
                return
        raise UpstreamUnavailable(
            "too many callers use the server behind it; try again later", data={"retry_after_s": 10.0},
            detail=f"{server}: {PRINCIPALS_LIMIT} connections",
        )  # fmt: skip

    def _wires(self, server: str, settings: UpstreamSettings) -> list[OpenWire]:
        if settings.url is None:
            return [partial(self._launched, server, settings)]
        kinds: dict[str, list[OpenWire]] = {
            "streamable": [partial(self._over_http, StreamableWire, settings)],
            "sse": [partial(self._over_http, EventStreamWire, settings)],
        }
        return kinds["streamable"] + kinds["sse"] if settings.transport == "auto" else kinds[settings.transport]

    async def _launched(self, server: str, settings: UpstreamSettings) -> Wire:
        environment = {name: filled(text, self._secrets) for name, text in settings.env.items()}
        return LinesWire(await self._launch(server, settings, environment), large=self._large)

    async def _over_http(self, kind: type[StreamableWire | EventStreamWire], settings: UpstreamSettings) -> Wire:
        assert settings.url is not None
        headers = {name: filled(text, self._secrets) for name, text in settings.headers.items()}
        return kind(settings.url, headers=lambda: headers, large=self._large)

    # --- states and lists ---

    def _on_state(self, server: str, principal: str, state: State, reason: str) -> None:
        if principal == SHARED and state == "ready":
            self._tell_status(server, "ready", reason)
            self._listers[server].connected()
        elif principal == SHARED and reason and state in ("waiting", "idle") and not self._closed:
            healthy = self._connections[server, principal].health.failures_in_a_row == 0
            if not healthy:
                self._tell_status(server, "degraded" if self.source.find(server) else "offline", reason)

    def _tell_status(self, server: str, status: ServerStatus, detail: str) -> None:
        if self._status.get(server) != status:
            self._status[server] = status
            self._hooks.on_state(server, status, detail)

    def list_changed(self, server: str, kind: str) -> None:
        """A server says that a list of its is another one now."""
        self._listers[server].wanted.set()
        self._hooks.on_list_changed(server, kind)

    def resource_updated(self, server: str, uri: str) -> None:
        """A server says that one of its resources has changed."""
        self._hooks.on_resource(server, uri)

    async def keep_listed(self, server: str) -> None:
        """Fetch the lists of a server whenever they may have changed, until cancelled."""
        lister = self._listers[server]
        if self.source.find(server) is None:
            lister.wanted.set()
        while True:
            await self._due(lister)
            await asyncio.sleep(self._timing.list_settle_s if lister.tried.is_set() else 0)
            lister.wanted.clear()
            async with self._listing_slots:
                await self._list(server, lister)
            lister.tried.set()
            await asyncio.sleep(self._timing.list_pause_s)

    async def _due(self, lister: _Lister) -> None:
        """Wait until a listing is wanted, or one that failed may be tried again."""
        ceiling, first = self._timing.list_retry_limit_s, self._timing.list_retry_s
        retry_s = min(ceiling, first * 2.0 ** min(lister.failures - 1, 30)) if lister.failures else None
        try:
            async with asyncio.timeout(retry_s):
                await lister.wanted.wait()
        except TimeoutError:
            return

    async def _list(self, server: str, lister: _Lister) -> None:
        """Fetch once; what was known stays in force if that fails."""
        lister.failures += 1
        try:
            connection = self._connection_of(server, SHARED)
            release = connection.hold()
            try:
                lister.fetching = True
                listing = await fetch(await connection.talk())
            finally:
                lister.fetching = False
                release()
        except OmniError as error:
            lister.fault = error.detail
        except RemoteError as error:
            lister.fault = str(error)
        except Garbled as fault:
            lister.fault = f"no valid list: {fault.reason}"
        except WireFault as fault:
            lister.fault = fault.reason
        except TimeoutError:
            lister.fault = "a list did not come in time"
        else:
            lister.fault, lister.failures = "", 0
            if self.source.put(server, listing):
                self._hooks.on_listing(server, listing)

    async def close(self) -> None:
        """End everything: no process, socket or session remains when this returns."""
        self._closed = True
        self.parking.end_all()
        for owner in self._owners.values():
            owner.cancel()
        await asyncio.gather(*self._owners.values(), *self._ending, return_exceptions=True)
        await self._large.close()


class _Lister:
    """When the lists of one server are due."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self.tried = asyncio.Event()
        self.fetching = False
        self.fault = ""
        self.failures = 0

    def connected(self) -> None:
        """A connection stands anew: what changed meanwhile went unheard, unless it was made for the lists."""
        if self.tried.is_set() and not self.fetching:
            self.wanted.set()


class _Reports:
    """The listener of one server's talks."""

    def __init__(self, pool: Upstreams, server: str) -> None:
        self._pool = pool
        self._server = server

    def list_changed(self, kind: str) -> None:
        self._pool.list_changed(self._server, kind)

    def resource_updated(self, uri: str) -> None:
        self._pool.resource_updated(self._server, uri)


@asynccontextmanager
async def open_upstreams(
    servers: Mapping[str, UpstreamSettings],
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
) -> AsyncIterator[Upstreams]:
    """Open all enabled servers; waits for none of them. Leaving the context ends every connection and process.

    Args:
        launch: starts the command of a server in the sandbox: (name, settings, environment with secrets).
        secrets: by name, for the references in settings.
        info: who the gateway says it is.
        accept: what is in force of a definition; without it everything stays quarantined.
        own_uri: from a public URI to the server's own.
        known: listings and eras that an earlier process learned.
        parked_s: how long a call waits for a modern caller's next round.

    Raises:
        ConfigError: a server refers to a secret that is not there.
    """
    missing = [
        Problem(file="omni.toml", line=0, path=f"$.servers.{name}", message=f"there is no secret {secret!r}")
        for name, settings in servers.items()
        for secret in settings.secrets
        if settings.enabled and secret not in secrets
    ]
    if missing:
        raise ConfigError(missing)
    pool = Upstreams(
        servers, launch=launch, secrets=secrets, info=info, accept=accept, own_uri=own_uri, hooks=hooks or Hooks(),
        known=known or Known(), timing=timing or Timing(), parked_s=parked_s,
    )  # fmt: skip
    listers = [asyncio.create_task(pool.keep_listed(name), name=f"lists of {name}") for name in pool.completers]
    try:
        yield pool
    finally:
        for lister in listers:
            lister.cancel()
        await asyncio.gather(*listers, return_exceptions=True)
        await pool.close()
