"""A running gateway: the call chain and its faces over opened engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from omni_mcp import __version__
from omni_mcp.chain.chain import Parts, call_chain
from omni_mcp.chain.decide import Decisions
from omni_mcp.chain.execute import Freeze
from omni_mcp.chain.limit import Limit, Shed
from omni_mcp.chain.record import Record
from omni_mcp.chain.retry import Retries
from omni_mcp.config import Settings, surface_of
from omni_mcp.contracts.call import Call, Principal
from omni_mcp.contracts.errors import LogUnavailable, OmniError, Problem
from omni_mcp.contracts.events import GatewayStopped, RunClosed, draft
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.ports import Catalog, Completer, Desk, Executor
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.catalog import MemoryCatalog
from omni_mcp.engines.catalog.schemas import JsonSchemas
from omni_mcp.engines.memory.store import SqliteMemory
from omni_mcp.engines.runlog.store import SqliteRunLog
from omni_mcp.engines.sandbox.executor import SandboxExecutor
from omni_mcp.engines.sandbox.workspaces import Workspaces
from omni_mcp.paths import Home
from omni_mcp.plugins.executors import choose_executors
from omni_mcp.protocol.capabilities import ServerInfo
from omni_mcp.running.doors import Doors
from omni_mcp.running.engines import Engines
from omni_mcp.running.own_servers import OwnServers
from omni_mcp.running.snapshot import snapshot
from omni_mcp.running.upkeep import Upkeep
from omni_mcp.serving.api.build import ApiParts, build_api
from omni_mcp.serving.api.face import ApiFace
from omni_mcp.serving.calls import IdOf, fresh_id
from omni_mcp.serving.changes import Changes
from omni_mcp.serving.edge import Edge
from omni_mcp.serving.http import build_http
from omni_mcp.serving.masked_completer import MaskedCompleter
from omni_mcp.serving.memory.erasing import Forgetting
from omni_mcp.serving.memory.sweeping import Sweeping
from omni_mcp.serving.metrics import Metrics
from omni_mcp.serving.rejections import Rejections
from omni_mcp.serving.run_streams import RunStreams
from omni_mcp.serving.runbook import Runbook
from omni_mcp.serving.runs.standing import Budgets
from omni_mcp.serving.search_server import SearchableCatalog
from omni_mcp.serving.surface import Surfaces
from omni_mcp.serving.threads import ThreadNames

INSTRUCTIONS = (
    "Every call is decided by a policy, runs in a sandbox and is recorded. A refused call names its call id; "
    "the person who runs this gateway can see why with: omni-mcp explain CALL"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIns:
    """What an offline replay puts in the place of people and chance: who is asked, and the ids of calls."""

    desk: Desk
    id_of: IdOf


class Gateway:
    """One running gateway: its chain, its edge, its HTTP application, its upkeep."""

    def __init__(
        self, settings: Settings, home: Home, engines: Engines, *, executors: Mapping[str, Executor],
        completers: Mapping[str, Completer], stand_ins: StandIns | None = None,
    ) -> None:  # fmt: skip
        self._home = home
        self._engines = engines
        self._completers = completers
        self._stopped = False
        self.process_facts: Callable[[], JsonObject] = dict  # who runs this process adds pid, address and clients
        self._metrics = Metrics()
        self.freeze = Freeze()
        self.changes = Changes(noticed=self._metrics.log_noticed)
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
        self._runbook = Runbook(engines.log, idle_s=settings.server.session_idle_s)
        self._rejections = Rejections(engines.log, engines.gateway_run, counted=self._metrics.rejected)
        self.run_streams = RunStreams(engines.log, self._runbook.owner_of)
        self._named = SearchableCatalog(engines.catalog)
        budgets = Budgets(
            limit=self._limit, events_per_run=settings.limits.events_per_run,
            artifact_bytes=settings.limits.artifact_bytes_per_principal, held_bytes=engines.artifacts.held_bytes,
        )  # fmt: skip
        self._own = OwnServers(
            engines, home, named=self._named, budgets=budgets, runbook=self._runbook, changes=self.changes
        )  # fmt: skip
        self.handle = call_chain(self._chain_parts(settings, executors, stand_ins))
        self.edge = self._open_edge(settings, stand_ins)
        self.doors = Doors(engines, self._limit, self._record, self.edge)
        self.http_app = build_http(
            self.edge, engines.identities, settings.server, status=self.status, api=self._open_api(stand_ins)
        )  # fmt: skip
        self.upkeep = Upkeep(
            settings, home, engines, self.changes, still_asks=self._still_asks, sweep=self._runbook.sweep,
            live=stand_ins is None,
        )  # fmt: skip

    def _chain_parts(self, settings: Settings, executors: Mapping[str, Executor], stand_ins: StandIns | None) -> Parts:
        engines = self._engines
        jobs = SandboxExecutor(
            engines.sandbox, engines.artifacts, Workspaces(self._home.workspaces), log=engines.log,
            supplies=engines.supplies,
        )  # fmt: skip
        own: Mapping[str, Executor] = {
            "sandbox_job": jobs, "inproc_safe": self._own.executor, "mcp_remote": engines.behind.executor,
        }  # fmt: skip
        return Parts(
            record=self._record,
            limit=self._limit,
            decisions=self._decisions,
            catalog=self._named,
            desk=stand_ins.desk if stand_ins is not None else engines.desk,
            schemas=JsonSchemas(),
            artifacts=engines.artifacts,
            masker=engines.masker,
            executors=self._chosen(settings, {**own, **executors}),
            places={"sandbox_job": engines.sandbox.max_jobs, "openapi_proxy": engines.sandbox.max_jobs},
            shed=Shed(self._limit, self._rejections.note),
            freeze=self.freeze,
            retries=Retries(engines.log, closed=lambda: self._limit.closed),
            readings=self._own.readings,
            settled=engines.behind.settled,
        )

    def _chosen(self, settings: Settings, own: Mapping[str, Executor]) -> dict[str, Executor]:
        """Return the executor of each binding: the gateway's, or a plugin's that the resolver puts before it."""
        offered = self._engines.plugins.executors
        selected = {str(key): name for key, name in settings.plugins.select.items()}
        chosen, self._executor_choice = choose_executors(own, offered.offered if offered else [], selected)
        return chosen

    def _open_edge(self, settings: Settings, stand_ins: StandIns | None) -> Edge:
        engines = self._engines
        return Edge(
            handle=self.handle,
            catalog=self._named,
            policy=engines.policy,
            log=engines.log,
            runbook=self._runbook,
            rejections=self._rejections,
            changes=self.changes,
            state_key=engines.log.key_for("the edge"),  # of this home: an offline replay gives the same texts
            info=ServerInfo(name="omni-mcp", version=__version__, title="omni-mcp", instructions=INSTRUCTIONS),
            metrics=self._metrics,
            admit=self._admit,
            may_see=self._own.may_see,
            completer_of=self._completer,
            watch=engines.behind.watch,
            end_round=self._record.end_round,
            id_of=stand_ins.id_of if stand_ins is not None else fresh_id,
            surfaces=Surfaces(engines.policy, lambda profile: surface_of(settings, profile)),
            is_profile=self._is_profile,
            thread_of=ThreadNames(engines.threads).of,
        )

    def _open_api(self, stand_ins: StandIns | None) -> ApiFace:
        engines = self._engines
        return build_api(
            ApiParts(
                chain=self.handle, edge=self.edge, catalog=self._named, policy=engines.policy, log=engines.log,
                runbook=self._runbook, threads=engines.threads, messages=self._own.messages, streams=self.run_streams,
                artifacts=engines.artifacts, desk=engines.desk, gateway_run=engines.gateway_run, admit=self._admit,
                end_round=self._record.end_round, status=self.status, version=__version__,
                is_frozen=lambda project: project in self.freeze,
                id_of=stand_ins.id_of if stand_ins is not None else fresh_id,
            )
        )  # fmt: skip

    def _admit(self, principal: Principal) -> None:
        self._limit.admit_request(principal.key)

    def _completer(self, entry: Entry) -> Completer | None:
        self._engines.behind.check_open(entry)
        found = self._completers.get(entry.server) or self._engines.behind.completers.get(entry.server)
        return MaskedCompleter(found, self._engines.masker) if found is not None else None

    def _still_asks(self, call: Call) -> bool:
        project = call.principal.project
        return self._decisions.still_asks(call, self._named.find(call.profile, call.kind, call.name, project=project))

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
    def forgetting(self) -> Forgetting:
        """What takes out of every file what agents were told to forget."""
        return self._own.forgetting

    @property
    def sweeping(self) -> Sweeping:
        """What lets go of memories that nobody finds any more."""
        return self._own.sweeping

    @property
    def open_calls(self) -> int:
        """Calls that are under way, waiting ones included."""
        return self.doors.inside

    def end_round(self, call: str, error: OmniError) -> None:
        """End a multi-round call that waits for a caller who will not come back."""
        self._record.end_round(call, error)

    def mask_text(self, text: str) -> str:
        """Take registered secrets out of a line of text."""
        return self._engines.masker.mask_text(text)

    def has_profile(self, name: str) -> bool:
        """Whether `/mcp/NAME` exists: a profile, or else a server by itself."""
        return self.edge.has_profile(name)

    def _is_profile(self, name: str) -> bool:
        return name in self._engines.catalog.profiles or self._engines.behind.defines(name)

    def status(self) -> JsonObject:
        """One snapshot of what runs, what waits and what is in force."""
        facts = snapshot(
            self._engines, self._home, open_calls=self.open_calls, is_draining=not self.edge.takes_calls,
            sessions=self.edge.open_sessions,
            at_next_start=self.upkeep.at_next_start, executors=self._executor_choice,
        )  # fmt: skip
        return {**self.process_facts(), "version": __version__, **facts}

    def in_force(self) -> JsonObject:
        """Which definitions of servers and which acceptances calls go by; see `upstreams/in_force.py`."""
        return self._engines.behind.in_force.facts()

    async def reload(self) -> None:
        """Read everything again that an operator writes; raises as `Upkeep.reload`."""
        await self.upkeep.reload()

    async def reload_lock(self) -> bool:
        """Read omni.lock again, as `Upkeep.reload_lock`."""
        return await self.upkeep.reload_lock()

    def reload_catalog(self) -> list[Problem]:
        """Ask all sources again at once, as `Upkeep.reload_catalog`."""
        return self.upkeep.reload_catalog()

    async def drain(self, timeout_s: float, *, reason: str = "asked") -> None:
        """Take no new calls, give those under way *timeout_s*, end the rest, and say so on record."""
        self._engines.desk.leave_open()
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
