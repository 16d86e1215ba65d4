"""Settings become parts, parts become the call chain, the chain gets its faces. Opens engines in order, closes them in reverse."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_mcp import __version__
from omni_mcp.chain.chain import Parts, call_chain
from omni_mcp.chain.decide import Decisions
from omni_mcp.chain.execute import Freeze
from omni_mcp.chain.limit import Limit
from omni_mcp.chain.record import Record
from omni_mcp.config import Settings, load_settings, read_secrets
from omni_mcp.contracts.call import Call, Principal
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.events import GatewayStarted, GatewayStopped, RunClosed, draft
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.ports import Completer, Executor, Source
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.approvals.desk import ApprovalDesk, open_desk
from omni_mcp.engines.artifacts.store import ArtifactStore, open_artifacts
from omni_mcp.engines.catalog.catalog import BUILTIN_PROFILES, CatalogDiff, MemoryCatalog, ProfileSpec
from omni_mcp.engines.catalog.manifests import ManifestDirectory, ManifestSource
from omni_mcp.engines.catalog.schemas import JsonSchemas
from omni_mcp.engines.identity.keys import KeyRing
from omni_mcp.engines.policy.policy import CedarPolicy, Reload, open_policy
from omni_mcp.engines.policy.watcher import PolicyWatcher
from omni_mcp.engines.runlog.store import SqliteRunLog, open_run_log
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox, open_sandbox
from omni_mcp.engines.sandbox.executor import SandboxExecutor
from omni_mcp.engines.sandbox.profiles import load_profiles
from omni_mcp.engines.sandbox.workspaces import Workspaces
from omni_mcp.engines.secrets.masking import SecretMasker
from omni_mcp.engines.state.database import open_state
from omni_mcp.engines.state.nonces import StoredNonces
from omni_mcp.paths import Home, bundled, make_private_dir
from omni_mcp.protocol.capabilities import ServerInfo
from omni_mcp.serving.changes import Changes
from omni_mcp.serving.edge import Edge
from omni_mcp.serving.http import build_http
from omni_mcp.serving.metrics import Metrics
from omni_mcp.serving.rejections import Rejections
from omni_mcp.serving.reports import Reports
from omni_mcp.serving.runbook import Runbook
from omni_mcp.serving.runs_server import RunsExecutor, RunsSource

WATCH_S = 1.0
SWEEP_S = 30.0
GATEWAY = Principal(kind="User", id="gateway", project="-")  # no key or socket can stand for it: "-" is no project
INSTRUCTIONS = (
    "Every call is decided by a policy, runs in a sandbox and is recorded. A refused call names its call id; "
    "the person who runs this gateway can see why with: omni-mcp explain CALL"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Engines:
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
    desk: ApprovalDesk
    nonces: StoredNonces
    identities: KeyRing


class Gateway:
    """One running gateway: its edge, its HTTP application, and how it stands."""

    def __init__(
        self, settings: Settings, home: Home, engines: _Engines, *, executors: Mapping[str, Executor],
        completers: Mapping[str, Completer],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._home = home
        self._engines = engines
        self._metrics = Metrics()
        self._started_ns = time.time_ns()
        self._stopped = False
        self._record = Record(
            engines.log, engines.artifacts, engines.catalog, gateway_run=engines.gateway_run,
            round_ttl_s=settings.limits.round_ttl_s,
        )  # fmt: skip
        self._limit = Limit(
            calls_per_minute=settings.limits.calls_per_minute,
            pending_per_principal=settings.limits.pending_per_principal,
            pending_in_all=settings.limits.pending_in_all,
        )
        self._decisions = Decisions(engines.policy, engines.log, gateway_version=__version__)
        self.freeze = Freeze()
        self.changes = Changes()
        self._runbook = Runbook(engines.log, idle_s=settings.server.session_idle_s)
        parts = Parts(
            record=self._record,
            limit=self._limit,
            decisions=self._decisions,
            catalog=engines.catalog,
            desk=engines.desk,
            schemas=JsonSchemas(),
            artifacts=engines.artifacts,
            masker=engines.masker,
            executors={
                "sandbox_job": SandboxExecutor(engines.sandbox, engines.artifacts, Workspaces(home.workspaces)),
                "inproc_safe": RunsExecutor(engines.log, engines.artifacts),
                **executors,
            },
            freeze=self.freeze,
        )
        self.handle = call_chain(parts)
        self.edge = Edge(
            handle=self.handle,
            catalog=engines.catalog,
            policy=engines.policy,
            log=engines.log,
            runbook=self._runbook,
            rejections=Rejections(engines.log, engines.gateway_run, counted=self._metrics.rejected),
            changes=self.changes,
            nonces=engines.nonces,
            seal_key=os.urandom(32),  # of this process alone: what was sealed before a restart is over
            info=ServerInfo(name="omni-mcp", version=__version__, title="omni-mcp", instructions=INSTRUCTIONS),
            metrics=self._metrics,
            completer_of=lambda entry: completers.get(entry.server),
            end_round=self._record.end_round,
        )
        self.http_app = build_http(self.edge, engines.identities, settings.server, status=self.status)

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
    def open_calls(self) -> int:
        """Calls that are under way, waiting ones included."""
        return self._limit.pending + self._record.open_rounds()

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
            "version": __version__,
            "open_calls": self.open_calls,
            "pending_approvals": engines.desk.pending,
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
                "problems": list(engines.reports.problems.get("manifests", ())),
            },
            "settings": {"problems": list(engines.reports.problems.get("settings", ()))},
            "isolation": engines.sandbox.isolation().as_json(),
            "log": {"file": str(self._home.log_file), "run": engines.gateway_run},
        }

    async def reload(self) -> None:
        """Read policies and manifests again now.

        Raises:
            ConfigError: what is refused; the last good one stays in force.
        """
        problems = [*self.reload_catalog(), *(await self._reload_policy()).problems]
        if problems:
            raise ConfigError(problems)

    def reload_catalog(self) -> list[Any]:
        """Read the manifests again; returns what is wrong with them."""
        engines = self._engines
        try:
            engines.catalog.reload()
        except ConfigError as error:
            engines.reports.rejected("manifests", error.problems)
            return list(error.problems)
        engines.reports.mended("manifests")
        return []

    async def _reload_policy(self) -> Reload:
        reload = await asyncio.to_thread(self._engines.policy.reload)
        await self.on_policy(reload)
        return reload

    async def on_policy(self, reload: Reload) -> None:
        """Write down what a reload brought, tell clients that lists may differ, and look at open questions again."""
        engines = self._engines
        if reload.problems:
            engines.reports.rejected("policy", reload.problems)
        else:
            engines.reports.mended("policy")
        if reload.changed:
            engines.reports.policy_changed(reload.version, reload.previous, reload.rules)
            self.changes.lists_changed()
            await engines.desk.recheck(reload.version, self._still_asks)

    def _still_asks(self, call: Call) -> bool:
        return self._decisions.still_asks(call, self._engines.catalog.find(call.profile, call.kind, call.name))

    def on_catalog(self, diff: CatalogDiff) -> None:
        """Write down what a reload brought, and tell clients."""
        self._engines.reports.catalog_changed(self._engines.catalog.version, diff.added, diff.changed, diff.removed)
        self.changes.lists_changed()

    async def drain(self, timeout_s: float, *, reason: str = "asked") -> None:
        """Take no new calls, give those under way *timeout_s*, end the rest with their outcome, and say so on record."""
        cancelled = await self.edge.drain(timeout_s=timeout_s)
        if self._stopped:
            return
        self._stopped = True
        self._record.abandon_rounds()
        run = self._engines.gateway_run
        self.log.append(run, draft(GatewayStopped(reason=reason, cancelled_calls=cancelled), actor="gateway"))
        last = self.log.append(run, draft(RunClosed(reason="gateway_stopped"), actor="gateway"))
        await last.durable()

    async def watch(self) -> None:
        """Keep settings, manifests and idle runs under observation until cancelled."""
        looks = FileWatch(self._home.manifests), FileWatch(self._home.settings_file)
        swept_s = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_S)
            if await asyncio.to_thread(looks[0].settled_change):
                self.reload_catalog()
            if await asyncio.to_thread(looks[1].settled_change):
                self._check_settings()
            if time.monotonic() - swept_s > SWEEP_S:
                swept_s = time.monotonic()
                self._runbook.sweep()

    def _check_settings(self) -> None:
        try:
            load_settings(self._home.settings_file)
        except ConfigError as error:
            self._engines.reports.rejected("settings", error.problems)
        else:
            self._engines.reports.mended("settings")


class FileWatch:
    """Notices that files below a path changed, once they have stopped changing for one look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._seen = self._signature()

    def settled_change(self) -> bool:
        """Whether the files differ from what was last reported, and were the same at the look before."""
        now = self._signature()
        settled, self._seen = now == self._seen, now
        if not settled or now == self._known:
            return False
        self._known = now
        return True

    def _signature(self) -> tuple[object, ...]:
        found = []
        for file in sorted([self._path, *self._path.rglob("*")] if self._path.is_dir() else [self._path]):
            try:
                facts = file.lstat()
            except OSError:
                continue
            found.append((str(file), facts.st_mtime_ns, facts.st_size, facts.st_ino, facts.st_mode, facts.st_uid))
        return tuple(found)


@asynccontextmanager
async def open_gateway(
    settings: Settings,
    home: Home,
    *,
    sources: Sequence[Source] = (),
    executors: Mapping[str, Executor] | None = None,
    completers: Mapping[str, Completer] | None = None,
) -> AsyncIterator[Gateway]:
    """Open a whole gateway; leaving the context drains and closes it. Who calls holds the lock on `home.data`.

    Args:
        sources: further entries for the catalog.
        executors: further executors, by binding.
        completers: who suggests argument values, by server.

    Raises:
        ConfigError: shipped files or secret references are broken.
        LogCorrupt: the run log does not open.
    """
    async with AsyncExitStack() as stack:
        engines = await _open_engines(stack, settings, home, sources)
        gateway = Gateway(settings, home, engines, executors=executors or {}, completers=completers or {})
        engines.catalog.listen(gateway.on_catalog)
        await _say_started(engines)
        watcher = PolicyWatcher(engines.policy, gateway.on_policy)
        for work in (watcher.run(), gateway.watch(), gateway.changes.follow(engines.log)):
            stack.push_async_callback(_end_task, asyncio.create_task(work))
        stack.push_async_callback(gateway.drain, 0.0)
        yield gateway


async def _open_engines(stack: AsyncExitStack, settings: Settings, home: Home, sources: Sequence[Source]) -> _Engines:
    for directory in (home.config, home.data, home.secrets, home.policies, home.manifests, home.workspaces):
        make_private_dir(directory)
    masker = SecretMasker(read_secrets(settings, dict(os.environ)))
    log = await stack.enter_async_context(
        open_run_log(
            home.log_file, keys=home.secrets, masker=masker, events_per_run=settings.limits.events_per_run,
            gateway_version=__version__,
        )  # fmt: skip
    )
    recovered = len(await log.recover_orphans())
    artifacts = await stack.enter_async_context(open_artifacts(home.artifacts))
    run = await log.create_run(kind="gateway", principal=GATEWAY, actor="gateway", client={}, title="gateway")
    reports = Reports(log, run)
    policy = open_policy(home.policies, bundled("policies"))
    if policy.problems:
        reports.rejected("policy", policy.problems)
    catalog = _open_catalog(settings, home, sources, reports)
    sandbox = await stack.enter_async_context(
        open_sandbox(
            profiles=load_profiles(bundled("sandbox") / "profiles"), sandbox_dir=bundled("sandbox"),
            max_jobs=settings.sandbox.max_jobs, use_cgroups=settings.sandbox.cgroups,
        )  # fmt: skip
    )
    desk = await stack.enter_async_context(
        open_desk(
            open_state(home.state_file), log=log, masker=masker, wait_s=settings.approvals.wait_s,
            max_open_per_principal=settings.approvals.open_per_principal, max_open=settings.approvals.open_in_all,
        )  # fmt: skip
    )
    state = open_state(home.state_file)
    stack.callback(state.close)
    return _Engines(
        masker=masker, log=log, artifacts=artifacts, gateway_run=run, recovered=recovered, reports=reports,
        policy=policy, catalog=catalog, sandbox=sandbox, desk=desk, nonces=StoredNonces(state),
        identities=KeyRing(home.keys_file),
    )  # fmt: skip


def _open_catalog(settings: Settings, home: Home, sources: Sequence[Source], reports: Reports) -> MemoryCatalog:
    """Load everything; if the operator's manifests are refused at the start, serve without them and say so."""
    shipped = ManifestDirectory(path=bundled("manifests"), bundled=True)
    code = bundled("sandbox") / "tools"
    profiles = {
        **BUILTIN_PROFILES,
        **{name: ProfileSpec(servers=p.servers, names=p.names) for name, p in settings.profiles.items()},
    }
    everything = ManifestSource([shipped, ManifestDirectory(path=home.manifests)], code=code)
    source = LastGood(everything, fallback=ManifestSource([shipped], code=code), reports=reports)
    catalog = MemoryCatalog([RunsSource(), source, *sources], profiles)
    catalog.reload()
    return catalog


class LastGood:
    """A source that may fail after its first load, and falls back to what ships if it fails at the first."""

    def __init__(self, source: Source, *, fallback: Source, reports: Reports) -> None:
        self._source = source
        self._fallback: Source | None = fallback
        self._reports = reports

    def load(self) -> Iterable[Entry]:
        """As the source; at the start a refusal is reported and the shipped entries are served."""
        fallback, self._fallback = self._fallback, None
        try:
            return list(self._source.load())
        except ConfigError as error:
            if fallback is None:
                raise
            self._reports.rejected("manifests", error.problems)
            return list(fallback.load())


async def _say_started(engines: _Engines) -> None:
    started = GatewayStarted(
        gateway_version=__version__,
        pid=os.getpid(),
        platform=platform.platform(),
        policy_version=engines.policy.version,
        catalog_version=engines.catalog.version,
        isolation=engines.sandbox.isolation().as_json(),
        recovered_calls=engines.recovered,
    )
    await engines.log.append(engines.gateway_run, draft(started, actor="gateway")).durable()


async def _end_task(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
