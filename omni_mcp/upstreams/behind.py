"""Behind: the servers behind the gateway: definitions become connections, and what they offer becomes entries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import structlog

from omni_mcp import __version__
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import ConfigError, Paused, Quarantined
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.lock import item_name
from omni_mcp.contracts.ports import Completer, Executor, Source
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.acceptance_record import AcceptanceRecord
from omni_mcp.engines.catalog.lock import LockedSource
from omni_mcp.engines.catalog.lock_listing import KeptListing, keep_listing, listings_dir
from omni_mcp.engines.catalog.lockfile import LockFile, LockReload
from omni_mcp.engines.catalog.names import is_marked, unmarked_uri
from omni_mcp.engines.catalog.pins import pins_by_key
from omni_mcp.engines.catalog.versions import Pins
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from omni_mcp.engines.sandbox.profiles import Profile
from omni_mcp.engines.sandbox.servers import ServerCells
from omni_mcp.engines.secrets.masking import SecretMasker
from omni_mcp.engines.upstream.envelope import ClientInfo
from omni_mcp.engines.upstream.listing import Listing
from omni_mcp.engines.upstream.pool import Hooks, Known, Upstreams, open_upstreams
from omni_mcp.engines.upstream.wire.large import LargeParser
from omni_mcp.host_places import HostPlaces
from omni_mcp.paths import Home
from omni_mcp.plugins.tools import PluginTools
from omni_mcp.upstreams.definitions import Defined, Together, known_listings, launch_of
from omni_mcp.upstreams.in_force import InForce
from omni_mcp.upstreams.large_program import PROGRAM as LARGE_PROGRAM
from omni_mcp.upstreams.launcher import Launcher, mounts_of
from omni_mcp.upstreams.news import News
from omni_mcp.upstreams.reporter import Reporter
from omni_mcp.upstreams.usable_schemas import UsableSchemas

STDERR_SHOWN = 2000  # characters


class Behind:
    """All servers behind the gateway, as the rest of it sees them."""

    def __init__(
        self, defined: Defined, upstreams: Upstreams, cells: Cells, *, lock: LockFile, home: Home, reporter: Reporter,
        news: News, plugins: PluginTools,
    ) -> None:  # fmt: skip
        self._defined = defined
        self._upstreams = upstreams
        self._cells = cells
        self._lock = lock
        self._home = home
        self._listings = listings_dir(home.data)
        self._recorded = AcceptanceRecord(home.data / "acceptances.json")
        self._reporter = reporter
        self._news = news
        self._plugins = plugins
        self._reloading = asyncio.Lock()
        self._locked = LockedSource(Together([upstreams.source, plugins]), lock, launch_of=self._launch_of)
        self._locked.listen(reporter.note)
        self.in_force = InForce(defined, lock.now)

    def _launch_of(self, name: str) -> Mapping[str, str]:
        definition = self._defined.servers.get(name)
        return launch_of(definition) if definition is not None else self._plugins.launch_of(name)

    async def apply(self, defined: Defined, renew: Callable[[], Awaitable[object]]) -> bool:
        """Use what *defined* says from now on; calls under way are not disturbed. False if nothing is different.

        What was accepted of another launch is out of force before the new one can be reached.

        Args:
            renew: has the catalog ask this source again.

        Raises:
            ValueError: a secret is too short to be masked; nothing has changed then.
        """
        before = self._defined
        if defined.says_the_same_as(before):
            return False
        known = await asyncio.to_thread(known_listings, self._home, defined.servers)
        self._cells.learn(defined)
        self._defined = defined
        await renew()
        self._upstreams.apply(defined.servers, defined.secrets, known)
        for name in sorted(_enabled(before) - _enabled(defined)):
            self._reporter.state(name, "disabled", "disabled" if name in defined.servers else "removed")
        return True

    async def settled(self, entry: Entry) -> None:
        """Wait until it is known what the server of *entry* offers, if it said that this changed.

        Raises:
            Paused, Quarantined: as `check_open`.
            UpstreamUnavailable: what its server offers is not known, for too long.
        """
        self.check_open(entry)
        if entry.binding == "mcp_remote" and not self._news.is_settled(entry.server):
            await self._news.settled(entry.server)
            self.check_open(entry)

    def check_open(self, entry: Entry) -> None:
        """Refuse what must not be asked for anything now.

        Raises:
            Paused: an operator paused it.
            Quarantined: it is a plugin's, and other code was installed since it was accepted.
        """
        lock = self._lock.now
        if lock.paused and (pause := lock.find_pause(entry.server, item_name(entry.kind, entry.name))) is not None:
            detail = f"{entry.server}/{entry.name}: paused by {pause.by} at {pause.at}: {pause.note or 'no note'}"
            raise Paused("an operator paused this tool, or its server; try again later", detail=detail)
        if not self._plugins.is_as_read(entry.server):
            detail = f"a package of the plugin {entry.server} changed since the start; start again, then accept it"
            raise Quarantined("the tool changed and is not accepted as it is now", detail=detail)

    @property
    def source(self) -> Source:
        """What they offer: in force is what the operator accepted, the rest is quarantined."""
        return self._locked

    def pins(self) -> Pins:
        """Which project is kept at which version of what."""
        return pins_by_key(self._lock.now)

    def defines(self, name: str) -> bool:
        """Whether the operator's files define an enabled server *name*, whatever it offers now."""
        definition = self._defined.servers.get(name)
        return definition is not None and definition.enabled

    @property
    def waiting(self) -> int:
        """How many definitions wait for the operator."""
        return self._locked.quarantined

    async def reload_lock(self) -> LockReload:
        """Read omni.lock again, put on record what was accepted since, and only then put it in force.

        With problems, what was in force before still is. Whatever asks for the catalog anew meanwhile goes by that too.

        Raises:
            LogUnavailable: it is not on record; what was in force before still is.
        """
        async with self._reloading:  # or what was read first could be put in force last
            try:
                found = await asyncio.to_thread(self._lock.read)
            except ConfigError as error:
                return LockReload(problems=error.problems)
            for written in [self._reporter.note(payload) for payload in self._recorded.news(found)]:
                await written.durable()
            changed = self._lock.put(found)
            try:
                await asyncio.to_thread(self._recorded.keep, found)
            except OSError as fault:  # it is on record; the next start tells of it again
                structlog.get_logger("omni_mcp").error("what is on record cannot be noted", problem=str(fault))
            return LockReload(changed=changed)

    @property
    def executor(self) -> Executor:
        """Runs calls at them."""
        return self._upstreams.executor

    @property
    def completers(self) -> Mapping[str, Completer]:
        """Who suggests values, by server."""
        return self._upstreams.completers

    async def watch(self, entry: Entry, principal: Principal, uri: str) -> Callable[[], None]:
        """Have a server report updates of one of its resources; returns how to undo that, once the server was asked.

        Raises:
            UpstreamUnavailable, Overloaded: it cannot be watched.
        """
        if entry.server not in self.completers or entry.binding != "mcp_remote":
            return lambda: None
        own = own_uri(uri)
        await self._upstreams.watch(entry.server, principal.key, own)
        return lambda: self._upstreams.unwatch(entry.server, principal.key, own)

    def keep(self, listings: Mapping[str, Listing]) -> None:
        """Write down what servers offer, for the next start and for commands that need no gateway.

        Raises:
            OSError: it cannot be written.
        """
        for server, listing in listings.items():
            definition = self._defined.servers.get(server)
            if definition is None or self._upstreams.source.find(server) is not listing:
                continue  # removed or defined otherwise meanwhile, or listed again
            seen_at = datetime.now(UTC).isoformat()
            kept = KeptListing.model_validate(
                {"server": server, "seen_at": seen_at, "launch": launch_of(definition), "items": listing.items,
                 "problems": listing.problems, "asks_roots": listing.asks_roots}
            )  # fmt: skip
            keep_listing(self._listings, kept)

    def follows_lock(self) -> None:
        """The catalog has caught up with omni.lock."""
        self.in_force.lock = self._lock.now

    def paused(self) -> JsonObject:
        """Return what takes no new calls, and why."""
        return {name: pause.model_dump() for name, pause in self._lock.now.paused.items()}

    def keep_plugins(self) -> None:
        """Write down what plugins offer, for the commands that accept it; forget what was off.

        Raises:
            OSError: it cannot be written.
        """
        for name in sorted(self._plugins.names):
            keep_listing(self._listings, self._plugins.listing(name))

    def facts(self) -> JsonObject:
        """What `status` and `doctor` say of each server."""
        return {
            name: {**facts, "stderr": self._cells.launcher.stderr_of(name)[-STDERR_SHOWN:]}
            for name, facts in self._upstreams.facts().items()
        }


def own_uri(uri: str) -> str:
    """Return a server's own URI for the one that clients know it by."""
    return unmarked_uri(uri)[1] if is_marked(uri) else uri


def _enabled(defined: Defined) -> set[str]:
    return {name for name, definition in defined.servers.items() if definition.enabled}


class Cells:
    """The cells in which commands run, and what they have to know of definitions."""

    def __init__(
        self, cells: ServerCells, launcher: Launcher, learn_secrets: Callable[[Mapping[str, str]], None]
    ) -> None:
        self._cells = cells
        self._learn_secrets = learn_secrets
        self.launcher = launcher

    def learn(self, defined: Defined) -> None:
        """Have secrets masked and mounts known before anything uses them.

        Raises:
            ValueError: a secret is too short to be masked.
        """
        self._learn_secrets(defined.secrets)
        self._cells.give(defined.secrets)
        self._cells.remember(mount for definition in defined.servers.values() for mount in mounts_of(definition))


@asynccontextmanager
async def open_behind(
    defined: Defined,
    *,
    sandbox: BubblewrapSandbox,
    profiles: Mapping[str, Profile],
    home: Home,
    networks: tuple[str, ...],
    masker: SecretMasker,
    reporter: Reporter,
    news: News,
    plugins: PluginTools,
    lock: LockFile,
) -> AsyncIterator[Behind]:
    """Open all enabled servers; waits for none of them: what they offered last time is known.

    Args:
        home: where their homes and what they offer stand.
        networks: special address ranges in which hosts of theirs may be.
        news: where their reports go.
        plugins: what packages offer beside them.
        lock: what is accepted.
    """
    cells = ServerCells(sandbox, profiles, home.servers, secrets=defined.secrets, shown=HostPlaces(home))
    launcher = Launcher(cells, networks=networks, mask=masker.mask_text, on_connection=reporter.connection)
    here = Cells(cells, launcher, masker.add)
    here.learn(defined)
    hooks = Hooks(
        on_state=reporter.state, on_listing=news.listed, on_list_changed=news.noticed, on_listed=news.answered,
        on_resource=news.updated, schema_faults=UsableSchemas().faults,
    )  # fmt: skip
    async with open_upstreams(
        defined.servers, launch=launcher, secrets=defined.secrets, info=ClientInfo(version=__version__),
        own_uri=own_uri, hooks=hooks, known=Known(listings=known_listings(home, defined.servers)),
        large=LargeParser(program=LARGE_PROGRAM, marks=lambda: masker.marks),
    ) as upstreams:  # fmt: skip
        yield Behind(
            defined, upstreams, here, lock=lock, home=home, reporter=reporter, news=news, plugins=plugins
        )  # fmt: skip
