"""A running gateway: the call chain and its faces over opened engines, and how it stands."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog

from omni_mcp import __version__
from omni_mcp.chain.chain import Parts, call_chain
from omni_mcp.chain.decide import Decisions
from omni_mcp.chain.execute import Freeze
from omni_mcp.chain.limit import Limit, Shed
from omni_mcp.chain.record import Record
from omni_mcp.config import Settings, changed_keys, load_settings, surface_of
from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.call import Call, Principal
from omni_mcp.contracts.errors import ConfigError, LogUnavailable, OmniError, Problem
from omni_mcp.contracts.events import GatewayStopped, RunClosed, draft
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.memory import SERVER as MEMORY
from omni_mcp.contracts.ports import Catalog, Completer, Desk, Executor, Source
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.approvals.desk import ApprovalDesk
from omni_mcp.engines.artifacts.store import ArtifactStore
from omni_mcp.engines.catalog.catalog import CatalogDiff, MemoryCatalog
from omni_mcp.engines.catalog.schemas import JsonSchemas
from omni_mcp.engines.identity.keys import KeyRing
from omni_mcp.engines.memory.store import SqliteMemory
from omni_mcp.engines.policy.policy import CedarPolicy, Reload
from omni_mcp.engines.runlog.store import SqliteRunLog
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from omni_mcp.engines.sandbox.executor import SandboxExecutor
from omni_mcp.engines.sandbox.supplies import Supplies
from omni_mcp.engines.sandbox.workspaces import Workspaces
from omni_mcp.engines.secrets.masking import SecretMasker
from omni_mcp.engines.state.nonces import StoredNonces
from omni_mcp.engines.state.threads import StoredThreads
from omni_mcp.filewatch import FileWatch
from omni_mcp.paths import Home
from omni_mcp.plugins.executors import choose_executors
from omni_mcp.plugins.state import Plugins
from omni_mcp.protocol.capabilities import ServerInfo
from omni_mcp.serving.api.build import ApiParts, build_api
from omni_mcp.serving.calls import IdOf, fresh_id
from omni_mcp.serving.changes import Changes
from omni_mcp.serving.edge import Edge
from omni_mcp.serving.http import build_http
from omni_mcp.serving.in_process import InProcess
from omni_mcp.serving.masked_completer import MaskedCompleter
from omni_mcp.serving.memory_erasing import Forgetting
from omni_mcp.serving.memory_finding import Finding
from omni_mcp.serving.memory_items import ItemMaker
from omni_mcp.serving.memory_promoting import Quotes
from omni_mcp.serving.memory_server import MemoryExecutor
from omni_mcp.serving.memory_taint import Readings
from omni_mcp.serving.messages import Messages
from omni_mcp.serving.messages_server import SERVER as MESSAGES
from omni_mcp.serving.messages_server import MessagesExecutor
from omni_mcp.serving.metrics import Metrics
from omni_mcp.serving.rejections import Rejections
from omni_mcp.serving.reports import Reports
from omni_mcp.serving.run_streams import RunStreams
from omni_mcp.serving.runbook import Runbook
from omni_mcp.serving.runs_entries import SERVER as RUNS
from omni_mcp.serving.runs_server import RunsExecutor
from omni_mcp.serving.runs_standing import Budgets, Standing
from omni_mcp.serving.search_server import SERVER as TOOLS
from omni_mcp.serving.search_server import SearchableCatalog, SearchExecutor
from omni_mcp.serving.surface import Surfaces
from omni_mcp.serving.threads import ThreadNames
from omni_mcp.upstreams.behind import Behind
from omni_mcp.upstreams.live import LiveServers
from omni_mcp.upstreams.news import News

WATCH_S = 0.5
SWEEP_S = 30.0
LIVE_KEYS = frozenset({"servers"})  # of omni.toml: an edit is in force without a start
ENTRY_KINDS = ("tool", "resource", "resource_template", "prompt")
INSTRUCTIONS = (
    "Every call is decided by a policy, runs in a sandbox and is recorded. A refused call names its call id; "
    "the person who runs this gateway can see why with: omni-mcp explain CALL"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """What is opened, in the order in which it is opened."""

    masker: SecretMasker
    log: SqliteRunLog
    artifacts: ArtifactStore
    gateway_run: str
    recovered: int
    reports: Reports
    policy: CedarPolicy
    catalog: MemoryCatalog
    sandbox: BubblewrapSandbox
    profile_digests: Mapping[str, str]
    behind: Behind
    news: News
    plugins: Plugins
    supplies: Supplies
    desk: ApprovalDesk
    nonces: StoredNonces
    memory: SqliteMemory
    threads: StoredThreads
    identities: KeyRing


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIns:
    """What an offline replay puts in the place of people and chance: who is asked, and the ids of calls."""

    desk: Desk
    id_of: IdOf


class Gateway:
    """One running gateway: its edge, its HTTP application, and how it stands."""

    def __init__(
        self, settings: Settings, home: Home, engines: Engines, *, executors: Mapping[str, Executor],
        completers: Mapping[str, Completer], stand_ins: StandIns | None = None,
    ) -> None:  # fmt: skip
        self._settings_file_said: Settings | None = None  # at the first look: what options changed does not count
        self._at_next_start: list[str] = []
        self._home = home
        self._engines = engines
        self._metrics = Metrics()
        self._stopped = False
        self.process_facts: Callable[[], JsonObject] = dict  # who runs this process adds pid, address and clients
        self._record = Record(
            engines.log, engines.artifacts, engines.catalog, gateway_run=engines.gateway_run,
            round_ttl_s=settings.limits.round_ttl_s, keeps_bodies=settings.log.keeps_bodies,
        )  # fmt: skip
        self._limit = Limit(
            calls_per_minute=settings.limits.calls_per_minute,
            pending_per_principal=settings.limits.pending_per_principal,
            pending_in_all=settings.limits.pending_in_all,
        )
        self._decisions = Decisions(
            engines.policy, engines.log, engines.desk.standing, gateway_version=__version__,
            profile_digests=engines.profile_digests,
        )  # fmt: skip
        self.freeze = Freeze()
        self.changes = Changes(noticed=self._metrics.log_noticed)
        self._runbook = Runbook(engines.log, idle_s=settings.server.session_idle_s)
        rejections = Rejections(engines.log, engines.gateway_run, counted=self._metrics.rejected)
        messages = Messages(engines.log, self._runbook)
        self.run_streams = RunStreams(engines.log, self._runbook.owner_of)
        self._named = SearchableCatalog(engines.catalog)
        budgets = Budgets(
            limit=self._limit, events_per_run=settings.limits.events_per_run,
            artifact_bytes=settings.limits.artifact_bytes_per_principal, held_bytes=engines.artifacts.held_bytes,
        )  # fmt: skip
        runs = RunsExecutor(engines.log, engines.artifacts, Standing(engines.log, budgets, self._named, engines.policy))
        search = SearchExecutor(self._named, engines.policy)
        readings = Readings()
        self.forgetting = Forgetting(engines.memory, engines.log, home)
        memory = MemoryExecutor(
            engines.memory, engines.log, Finding(engines.memory, engines.log, engines.policy, readings),
            ItemMaker(engines.masker), Quotes(engines.log, engines.artifacts), readings, self.forgetting,
        )  # fmt: skip
        self._who_may_see = runs.may_see, memory.may_see
        parts = Parts(
            record=self._record,
            limit=self._limit,
            decisions=self._decisions,
            catalog=self._named,
            desk=stand_ins.desk if stand_ins is not None else engines.desk,
            schemas=JsonSchemas(),
            artifacts=engines.artifacts,
            masker=engines.masker,
            executors=self._chosen(
                {str(key): name for key, name in settings.plugins.select.items()},
                {
                    "sandbox_job": SandboxExecutor(
                        engines.sandbox,
                        engines.artifacts,
                        Workspaces(home.workspaces),
                        log=engines.log,
                        supplies=engines.supplies,
                    ),
                    "inproc_safe": InProcess(
                        {RUNS: runs, TOOLS: search, MEMORY: memory, MESSAGES: MessagesExecutor(messages)}
                    ),
                    "mcp_remote": engines.behind.executor,
                    **executors,
                },
            ),
            places={"sandbox_job": engines.sandbox.max_jobs, "openapi_proxy": engines.sandbox.max_jobs},
            shed=Shed(self._limit, rejections.note),
            freeze=self.freeze,
            readings=readings,
            settled=engines.behind.settled,
        )
        self.handle = call_chain(parts)
        self.edge = Edge(
            handle=self.handle,
            catalog=self._named,
            policy=engines.policy,
            log=engines.log,
            runbook=self._runbook,
            rejections=rejections,
            changes=self.changes,
            nonces=engines.nonces,
            seal_key=os.urandom(32),  # of this process alone: what was sealed before a restart is over
            info=ServerInfo(name="omni-mcp", version=__version__, title="omni-mcp", instructions=INSTRUCTIONS),
            metrics=self._metrics,
            admit=self._admit,
            may_see=self._may_see,
            completer_of=lambda entry: self._completer(completers, entry),
            watch=engines.behind.watch,
            end_round=self._record.end_round,
            id_of=stand_ins.id_of if stand_ins is not None else fresh_id,
            surfaces=Surfaces(engines.policy, lambda profile: surface_of(settings, profile)),
            is_profile=self.has_profile,
            thread_of=ThreadNames(engines.threads).of,
        )
        api = build_api(
            ApiParts(
                chain=self.handle, edge=self.edge, catalog=self._named, policy=engines.policy, log=engines.log,
                runbook=self._runbook, threads=engines.threads, messages=messages, streams=self.run_streams,
                artifacts=engines.artifacts, desk=engines.desk, gateway_run=engines.gateway_run, admit=self._admit,
                end_round=self._record.end_round, status=self.status, version=__version__,
                is_frozen=lambda project: project in self.freeze,
            )
        )  # fmt: skip
        self._documents = tuple(FileWatch(home.config / one.document) for one in settings.openapi.values())
        self._live_servers = None
        if stand_ins is None:
            self._live_servers = LiveServers(
                engines.behind, home, given=settings, report=partial(engines.reports.stands, "servers"),
                renew=lambda: self.renew_catalog(engines.behind.source),
            )  # fmt: skip
        self.http_app = build_http(self.edge, engines.identities, settings.server, status=self.status, api=api)

    def _admit(self, principal: Principal) -> None:
        self._limit.admit_request(principal.key)

    def _completer(self, given: Mapping[str, Completer], entry: Entry) -> Completer | None:
        found = given.get(entry.server) or self._engines.behind.completers.get(entry.server)
        return MaskedCompleter(found, self._engines.masker) if found is not None else None

    def _chosen(self, selected: Mapping[str, str], own: Mapping[str, Executor]) -> dict[str, Executor]:
        """Return the executor of each binding: the gateway's, or a plugin's that the resolver puts before it."""
        offered = self._engines.plugins.executors
        chosen, self._executor_choice = choose_executors(own, offered.offered if offered else [], selected)
        return chosen

    @property
    def version(self) -> str:
        """The package's version."""
        return __version__

    @property
    def log(self) -> SqliteRunLog:
        """The run log."""
        return self._engines.log

    @property
    def catalog(self) -> MemoryCatalog:
        """What can be named."""
        return self._engines.catalog

    @property
    def names(self) -> Catalog:
        """What a call can name, with the gateway's own tools."""
        return self._named

    @property
    def profile_digests(self) -> Mapping[str, str]:
        """Digests of the sandbox profiles by name."""
        return self._engines.profile_digests

    @property
    def policy_version(self) -> str:
        """The version of the rules in force."""
        return self._engines.policy.version

    @property
    def memory(self) -> SqliteMemory:
        """What agents remember."""
        return self._engines.memory

    @property
    def open_calls(self) -> int:
        """Calls that are under way, waiting ones included."""
        return self._limit.pending + self._record.open_rounds()

    def end_round(self, call: str, error: OmniError) -> None:
        """End a multi-round call that waits for a caller who will not come back."""
        self._record.end_round(call, error)

    def mask_text(self, text: str) -> str:
        """Take registered secrets out of a line of text."""
        return self._engines.masker.mask_text(text)

    def has_profile(self, name: str) -> bool:
        """Whether `/mcp/NAME` exists."""
        return name in self._engines.catalog.profiles

    def status(self) -> JsonObject:
        """One snapshot of what runs, what waits and what is in force."""
        engines = self._engines
        return {
            **self.process_facts(),
            "version": __version__,
            "open_calls": self.open_calls,
            "pending_approvals": engines.desk.pending,
            "standing_grants": len(engines.desk.standing),
            "sessions": self.edge.open_sessions,
            "policy": {
                "version": engines.policy.version,
                "rules": len(engines.policy.rules.rules) if engines.policy.rules else 0,
                "denies_all": engines.policy.rules is None,
                "problems": [*map(str, engines.policy.problems), *engines.reports.problems.get("policy", ())],
            },
            "catalog": {
                "version": engines.catalog.version,
                "tools": sum(entry.kind == "tool" for entry in engines.catalog.all_entries()),
                "refused": list(engines.catalog.refused),
                "waiting": engines.behind.waiting,
                "problems": list(engines.reports.problems.get("manifests", ())),
            },
            "settings": {
                "problems": list(engines.reports.problems.get("settings", ())),
                "at_next_start": self._at_next_start,
                "servers": list(engines.reports.problems.get("servers", ())),
            },
            "isolation": engines.sandbox.isolation().as_json(),
            "cells": engines.sandbox.held(),
            "servers": engines.behind.facts(),
            "paused": engines.behind.paused(),
            "plugins": engines.plugins.facts(),
            "executors": self._executor_choice,
            "log": {
                "file": str(self._home.log_file),
                "run": engines.gateway_run,
                "healthy": engines.log.healthy,
                "problems": list(engines.log.problems),
            },
        }

    async def reload(self) -> None:
        """Read policies and manifests again now.

        Raises:
            ConfigError: what is refused; the last good one stays in force.
        """
        problems = [*await self.renew_catalog(), *(await self._reload_policy()).problems]
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
            found = await self._engines.behind.reload_lock()
        except LogUnavailable as fault:
            structlog.get_logger("omni_mcp").error("acceptances are not on record yet", problem=fault.detail)
            return False
        self._engines.reports.stands("lockfile", found.problems)
        if not found.problems:
            await self.renew_catalog(self._engines.behind.source)
        return True

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
            self.changes.lists_changed()
            await engines.desk.recheck(reload.version, self._still_asks, self._is_current)

    def _still_asks(self, call: Call) -> bool:
        project = call.principal.project
        return self._decisions.still_asks(call, self._named.find(call.profile, call.kind, call.name, project=project))

    def _is_current(self, question: Approval) -> bool:
        versions = self._engines.catalog.versions  # the gateway's own two tools never ask
        entries = (entry for kind in ENTRY_KINDS for entry in versions(kind, question.server, question.tool))
        return any(entry.digest == question.definition_digest for entry in entries)

    def on_catalog(self, diff: CatalogDiff) -> None:
        """Write down what a reload brought, tell clients, and have open questions looked at again."""
        if diff.added or diff.changed or diff.removed:
            self._engines.reports.catalog_changed(self._engines.catalog.version, diff.added, diff.changed, diff.removed)
        self.changes.lists_changed()
        self._engines.desk.recheck_soon(self._engines.policy.version, self._still_asks, self._is_current)

    async def _may_see(self, principal: Principal, entry: Entry, uri: str) -> bool:
        return all([await may_see(principal, entry, uri) for may_see in self._who_may_see])

    async def drain(self, timeout_s: float, *, reason: str = "asked") -> None:
        """Take no new calls, give those under way *timeout_s*, end the rest, and say so on record."""
        cancelled = await self.edge.drain(timeout_s=timeout_s)
        if self._stopped:
            return
        self._stopped = True
        self._record.abandon_rounds()
        run = self._engines.gateway_run
        self.log.append(run, draft(GatewayStopped(reason=reason, cancelled_calls=cancelled), actor="gateway"))
        last = self.log.append(run, draft(RunClosed(reason="gateway_stopped"), actor="gateway"))
        try:
            await last.durable()
        except LogUnavailable as fault:
            structlog.get_logger("omni_mcp").error("the end could not be recorded", problem=fault.detail)

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
            if self._live_servers is not None and await self._live_servers.look():
                await self.renew_catalog(self._engines.behind.source)
            lock_is_due = await asyncio.to_thread(looks[2].settled_change) or lock_is_due
            if lock_is_due:
                lock_is_due = not await self.reload_lock()
            if time.monotonic() - swept_s > SWEEP_S:
                swept_s = time.monotonic()
                self._runbook.sweep()

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
                self.changes.resource_updated(uri)

    def check_settings(self) -> None:
        """Read omni.toml again: what is wrong is reported, what changed is named as waiting for the next start."""
        try:
            found = load_settings(self._home.settings_file)
        except ConfigError as error:
            self._engines.reports.stands("settings", error.problems)
            return
        self._engines.reports.stands("settings")
        self._settings_file_said = self._settings_file_said or found
        self._at_next_start = [key for key in changed_keys(self._settings_file_said, found) if key not in LIVE_KEYS]
        if self._at_next_start:
            structlog.get_logger("omni_mcp").warning("settings wait for the next start", keys=self._at_next_start)


def _settled_change(watches: Sequence[FileWatch]) -> bool:
    looks = [watch.settled_change() for watch in watches]  # at each of them, also after a change was found
    return any(looks)
