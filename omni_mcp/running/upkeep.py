"""Upkeep: what an operator's files and the servers behind us say is in force soon after they say it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from omni_mcp.config import Settings, changed_keys, load_settings
from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.call import Call
from omni_mcp.contracts.errors import ConfigError, LogUnavailable, Problem
from omni_mcp.contracts.ports import Source
from omni_mcp.engines.catalog.catalog import CatalogDiff
from omni_mcp.engines.policy.policy import Reload
from omni_mcp.filewatch import FileWatch
from omni_mcp.paths import Home
from omni_mcp.running.engines import Engines
from omni_mcp.serving.changes import Changes, ListKind
from omni_mcp.upstreams.live import LiveServers
from omni_mcp.upstreams.news import News

WATCH_S = 0.5
SWEEP_S = 30.0
LIVE_KEYS = frozenset({"servers"})  # of omni.toml: an edit is in force without a start
ENTRIES_OF: dict[ListKind, tuple[str, ...]] = {
    "tools": ("tool",), "resources": ("resource", "resource_template"), "prompts": ("prompt",),
}  # fmt: skip
ENTRY_KINDS = ("tool", "resource", "resource_template", "prompt")


class Upkeep:
    """Reads again what changed; what is refused is reported, and the last good one stays in force.

    Args:
        still_asks: whether the policy in force would still ask a person about a call.
        sweep: ends runs that nobody uses; called now and then.
        live: whether edits of the files that define servers are followed.
    """

    def __init__(
        self, settings: Settings, home: Home, engines: Engines, changes: Changes, *,
        still_asks: Callable[[Call], bool], sweep: Callable[[], object], live: bool,
    ) -> None:  # fmt: skip
        self._home = home
        self._engines = engines
        self._changes = changes
        self._still_asks = still_asks
        self._sweep = sweep
        self._settings_file_said: Settings | None = None  # at the first look: what options changed does not count
        self.at_next_start: list[str] = []
        self._documents = tuple(FileWatch(home.config / one.document) for one in settings.openapi.values())
        self._of_servers: tuple[Problem, ...] = ()
        self.live_servers: LiveServers | None = None
        if live:
            self.live_servers = LiveServers(
                engines.behind, home, given=settings, report=self._report_servers,
                renew=lambda: self.renew_catalog(engines.behind.source),
            )  # fmt: skip

    async def reload(self) -> None:
        """Read settings, servers, omni.lock, manifests, documents and policies again now, each for itself.

        Raises:
            ConfigError: what is refused of all of them. The last good one of a refused part stays in force, and what
                is good of the others is in force.
        """
        problems = [
            *self.check_settings(),
            *await self._reload_servers(),
            *await self._try_lock(),
            *await self.renew_catalog(),
            *(await self._reload_policy()).problems,
        ]
        if problems:
            raise ConfigError(problems)

    async def renew_catalog(self, *asked: Source) -> list[Problem]:
        """Ask *asked*, or all sources, again while others get their turn; returns what is wrong with what they say."""
        with suppress(ConfigError):  # it stands in `problems` until the source is good again
            await self._engines.catalog.renew(*asked)
        return self._report_manifests()

    def reload_catalog(self) -> list[Problem]:
        """Ask all sources again at once, in one piece; returns what is wrong with what they say."""
        with suppress(ConfigError):
            self._engines.catalog.reload()
        return self._report_manifests()

    def _report_manifests(self) -> list[Problem]:
        problems = list(self._engines.catalog.problems)
        self._engines.reports.stands("manifests", problems)
        return problems

    async def reload_lock(self) -> bool:
        """Read omni.lock again; what it accepts is in force once that is on record, what is wrong with it is reported.

        False if the log could not be written: nothing new is in force then, and it has to be tried again.
        """
        try:
            await self._reload_lock()
        except LogUnavailable as fault:
            structlog.get_logger("omni_mcp").error("acceptances are not on record yet", problem=fault.detail)
            return False
        return True

    async def _reload_lock(self) -> Sequence[Problem]:
        found = await self._engines.behind.reload_lock()
        self._engines.reports.stands("lockfile", found.problems)
        if not found.problems:
            await self.renew_catalog(self._engines.behind.source)
            self._engines.behind.follows_lock()
        return found.problems

    async def _try_lock(self) -> Sequence[Problem]:
        try:
            return await self._reload_lock()
        except LogUnavailable as fault:
            return [Problem(file=str(self._home.lock_file), line=0, path="", message=fault.message)]

    async def _reload_servers(self) -> Sequence[Problem]:
        if self.live_servers is None:
            return ()
        await self.live_servers.follow()
        return self._of_servers

    def _report_servers(self, problems: Sequence[Problem]) -> None:
        self._of_servers = tuple(problems)
        self._engines.reports.stands("servers", problems)

    async def _reload_policy(self) -> Reload:
        reload = await asyncio.to_thread(self._engines.policy.reload)
        await self.on_policy(reload)
        return reload

    async def on_policy(self, reload: Reload) -> None:
        """Write down what a reload brought, tell clients that lists may differ, and look at open questions again."""
        engines = self._engines
        engines.reports.stands("policy", reload.problems)
        if reload.changed:
            engines.reports.policy_changed(reload.version, reload.previous, reload.rules)
            self._changes.lists_changed()
            await engines.desk.recheck(reload.version, self._still_asks, self._is_current)

    def _is_current(self, question: Approval) -> bool:
        versions = self._engines.catalog.versions  # the gateway's own two tools never ask
        entries = (entry for kind in ENTRY_KINDS for entry in versions(kind, question.server, question.tool))
        return any(entry.digest == question.definition_digest for entry in entries)

    def on_catalog(self, diff: CatalogDiff) -> None:
        """Write down what a reload brought, tell clients, and have open questions looked at again."""
        if diff.added or diff.changed or diff.removed:
            self._engines.reports.catalog_changed(self._engines.catalog.version, diff.added, diff.changed, diff.removed)
        self._changes.lists_changed(
            concerns=lambda profile, kind: any(entry in diff.lists_of(profile) for entry in ENTRIES_OF[kind])
        )
        self._engines.desk.recheck_soon(self._engines.policy.version, self._still_asks, self._is_current)

    async def watch(self) -> None:
        """Keep settings, manifests and idle runs under observation until cancelled."""
        looks = FileWatch(self._home.manifests), FileWatch(self._home.settings_file), FileWatch(self._home.lock_file)
        swept_s = time.monotonic()
        lock_is_due = False
        while True:
            await asyncio.sleep(WATCH_S)
            if await asyncio.to_thread(_settled_change, (looks[0], *self._documents)):
                await self.renew_catalog()
            if await asyncio.to_thread(looks[1].settled_change):
                self.check_settings()
            if self.live_servers is not None:
                await self.live_servers.look()
            lock_is_due = await asyncio.to_thread(looks[2].settled_change) or lock_is_due
            if lock_is_due:
                lock_is_due = not await self.reload_lock()
            if time.monotonic() - swept_s > SWEEP_S:
                swept_s = time.monotonic()
                self._sweep()

    async def follow(self, news: News) -> None:
        """Pass on what the servers behind us report, until cancelled."""
        while True:
            listings, updates = await news.next()
            if listings:
                try:
                    await asyncio.to_thread(self._engines.behind.keep, listings)
                except OSError as fault:  # what a server offers now counts, also where it cannot be written down
                    structlog.get_logger("omni_mcp").error("lists of servers cannot be kept", problem=str(fault))
                await self.renew_catalog(self._engines.behind.source)
            news.caught_up()
            for uri in updates:
                self._changes.resource_updated(uri)

    def check_settings(self) -> Sequence[Problem]:
        """Read omni.toml again: what is wrong is reported, what changed is named as waiting for the next start."""
        try:
            found = load_settings(self._home.settings_file)
        except ConfigError as error:
            self._engines.reports.stands("settings", error.problems)
            return error.problems
        self._engines.reports.stands("settings")
        self._settings_file_said = self._settings_file_said or found
        self.at_next_start = [key for key in changed_keys(self._settings_file_said, found) if key not in LIVE_KEYS]
        if self.at_next_start:
            structlog.get_logger("omni_mcp").warning("settings wait for the next start", keys=self.at_next_start)
        return ()


def _settled_change(watches: Sequence[FileWatch]) -> bool:
    looks = [watch.settled_change() for watch in watches]  # at each of them, also after a change was found
    return any(looks)
