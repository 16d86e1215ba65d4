"""Settings become engines, and engines a gateway: opened in order, closed in reverse."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import structlog

from omni_mcp import __version__
from omni_mcp.config import PluginSettings, Settings, read_secrets
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.events import GatewayStarted, draft
from omni_mcp.contracts.hosts import host_of_url
from omni_mcp.contracts.json import digest
from omni_mcp.contracts.ports import Completer, Executor, Source
from omni_mcp.contracts.sandbox import Credential
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.approvals.desk import open_desk
from omni_mcp.engines.artifacts.store import open_artifacts
from omni_mcp.engines.catalog.catalog import BUILTIN_PROFILES, MemoryCatalog
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.catalog.manifests import ManifestDirectory, ManifestSource
from omni_mcp.engines.catalog.schemas import JsonSchemas
from omni_mcp.engines.catalog.versions import Pins
from omni_mcp.engines.catalog.views import ProfileSpec
from omni_mcp.engines.identity.keys import KeyRing
from omni_mcp.engines.memory.embedders import embedder_of
from omni_mcp.engines.memory.store import open_memory
from omni_mcp.engines.memory.unfinished import has_unfinished
from omni_mcp.engines.openapi.executor import OpenApiExecutor
from omni_mcp.engines.openapi.source import OpenApiSource
from omni_mcp.engines.policy.policy import open_policy
from omni_mcp.engines.policy.watcher import PolicyWatcher
from omni_mcp.engines.runlog.store import open_run_log
from omni_mcp.engines.sandbox.cells import open_sandbox
from omni_mcp.engines.sandbox.executor import SandboxExecutor
from omni_mcp.engines.sandbox.profiles import load_profiles
from omni_mcp.engines.sandbox.supplies import Supplies, ToolCredential
from omni_mcp.engines.sandbox.workspaces import Workspaces
from omni_mcp.engines.secrets.masking import SecretMasker
from omni_mcp.engines.state.database import open_state
from omni_mcp.engines.state.nonces import StoredNonces
from omni_mcp.engines.state.threads import StoredThreads
from omni_mcp.gateway import Engines, Gateway, StandIns
from omni_mcp.paths import Home, bundled, make_private_dir
from omni_mcp.plugins.executors import open_executors
from omni_mcp.plugins.found import find_plugins
from omni_mcp.plugins.state import Plugins
from omni_mcp.plugins.tools import PluginTools
from omni_mcp.server_definition import RESERVED_NAMES
from omni_mcp.serving.memory_entries import MemoryEntries
from omni_mcp.serving.messages_server import MessagesSource
from omni_mcp.serving.reports import Reports
from omni_mcp.serving.runs_entries import RunsSource
from omni_mcp.upstreams.behind import open_behind
from omni_mcp.upstreams.definitions import Defined, read_definitions
from omni_mcp.upstreams.news import News
from omni_mcp.upstreams.reporter import Reporter

GATEWAY = Principal(kind="User", id="gateway", project="-")  # no key or socket can stand for it: "-" is no project


@asynccontextmanager
async def open_gateway(
    settings: Settings,
    home: Home,
    *,
    sources: Sequence[Source] = (),
    executors: Mapping[str, Executor] | None = None,
    completers: Mapping[str, Completer] | None = None,
    stand_ins: StandIns | None = None,
) -> AsyncIterator[Gateway]:
    """Open a whole gateway; leaving the context drains and closes it. Who calls holds the lock on `home.data`.

    Args:
        sources: further entries for the catalog.
        executors: further executors, by binding.
        completers: who suggests argument values, by server.
        stand_ins: for a replay; no server is started, and no cell before it is wanted.

    Raises:
        ConfigError: shipped files or secret references are broken.
        LogCorrupt: the run log does not open.
    """
    async with AsyncExitStack() as stack:
        documents = [document_source(name, settings, home) for name in settings.openapi]
        engines = await _open_engines(stack, settings, home, sources, documents, offline=stand_ins is not None)
        gateway = Gateway(
            settings, home, engines, executors={**_operations(engines, home, documents), **(executors or {})},
            completers=completers or {}, stand_ins=stand_ins,
        )  # fmt: skip
        engines.catalog.listen(gateway.on_catalog)
        await _say_started(engines)
        watcher = PolicyWatcher(engines.policy, gateway.on_policy)
        for name, work in (
            ("policy watcher", watcher.run()),
            ("file watcher", gateway.watch()),
            ("change notices", gateway.changes.follow(engines.log)),
            ("run streams", gateway.run_streams.follow()),
            ("first cells", _warm_up(engines, not_yet=stand_ins is not None)),
            ("servers behind us", gateway.follow(engines.news)),
        ):
            task = asyncio.create_task(work, name=name)
            task.add_done_callback(_say_if_failed)
            stack.push_async_callback(_end_task, task)
        stack.push_async_callback(gateway.forgetting.close)
        if await asyncio.to_thread(has_unfinished, home.memory_file):
            gateway.forgetting.finish_later()
        stack.push_async_callback(gateway.drain, 0.0)
        yield gateway


async def _open_engines(
    stack: AsyncExitStack, settings: Settings, home: Home, sources: Sequence[Source], documents: Sequence[Source],
    *, offline: bool = False,
) -> Engines:  # fmt: skip
    for directory in (
        home.config, home.data, home.secrets, home.policies, home.manifests, home.profiles, home.workspaces,
    ):  # fmt: skip
        make_private_dir(directory)
    secrets = read_secrets(settings, dict(os.environ))
    supplies = supplies_of(settings, secrets, home)
    defined = read_definitions(settings.servers, home, secrets=secrets, environment=os.environ)
    defined = replace(defined, servers={}) if offline else defined
    masker = SecretMasker(defined.secrets)
    log = await stack.enter_async_context(
        open_run_log(
            home.log_file,
            keys=home.secrets,
            masker=masker,
            events_per_run=settings.limits.events_per_run,
            gateway_version=__version__,
        )
    )
    recovered = len(await log.recover_orphans())
    artifacts = await stack.enter_async_context(
        open_artifacts(home.artifacts, masker, owner_quota_bytes=settings.limits.artifact_bytes_per_principal)
    )
    run = await log.create_run(kind="gateway", principal=GATEWAY, actor="gateway", client={}, title="gateway")
    reports = Reports(log, run)
    policy = open_policy(home.policies, bundled("policies"))
    reports.stands("policy", policy.problems)
    lock, manifests = LockFile(home.lock_file), _manifests(home, reports)
    ahead = asyncio.create_task(asyncio.to_thread(_read_ahead, lock, manifests), name="reading ahead")
    stack.push_async_callback(_end_task, ahead)
    profiles = load_profiles(bundled("sandbox") / "profiles", own=home.profiles)
    sandbox = await stack.enter_async_context(
        open_sandbox(
            profiles=profiles,
            sandbox_dir=bundled("sandbox"),
            max_jobs=settings.sandbox.max_jobs,
            use_cgroups=settings.sandbox.cgroups,
            closed=offline,
        )
    )
    reports.stands("servers", defined.problems)
    news = News()
    plugins = await _open_plugins(stack, settings, defined, offline=offline)
    behind = await stack.enter_async_context(
        open_behind(
            defined,
            sandbox=sandbox,
            profiles=profiles,
            home=home,
            networks=settings.egress.networks,
            masker=masker,
            reporter=Reporter(log, run, masker.mask_text),
            news=news,
            plugins=plugins.tools,
            lock=lock,
        )
    )
    await ahead
    await asyncio.to_thread(behind.keep_plugins)
    reports.stands("lockfile", (await behind.reload_lock()).problems)
    described = [LastGood(one, fallback=NoSource(), reports=reports) for one in documents]
    catalog = _open_catalog(settings, [manifests, *sources, behind.source, *described], behind.pins)
    desk = await stack.enter_async_context(
        open_desk(
            open_state(home.state_file),
            log=log,
            masker=masker,
            gateway_run=run,
            wait_s=settings.approvals.wait_s,
            max_open_per_principal=settings.approvals.open_per_principal,
            max_open=settings.approvals.open_in_all,
        )
    )
    nonces = StoredNonces(open_state(home.state_file))
    stack.push_async_callback(nonces.close)
    token = secrets.get(settings.memory.secret or "")
    embedder = None if offline else embedder_of(settings.memory, lambda: token)
    memory = await stack.enter_async_context(open_memory(home.memory_file, embedder=embedder))
    threads = StoredThreads(open_state(home.state_file), masker)
    stack.push_async_callback(threads.close)
    return Engines(
        masker=masker, log=log, artifacts=artifacts, gateway_run=run, recovered=recovered, reports=reports,
        policy=policy, catalog=catalog, sandbox=sandbox, behind=behind, news=news, plugins=plugins, supplies=supplies,
        desk=desk,
        profile_digests={name: digest(profile.model_dump(mode="json")) for name, profile in profiles.items()},
        nonces=nonces, threads=threads, identities=KeyRing(home.keys_file), memory=memory,
    )  # fmt: skip


async def _open_plugins(stack: AsyncExitStack, settings: Settings, defined: Defined, *, offline: bool) -> Plugins:
    """Look at what is installed, and open what is enabled; says what of it is broken. A replay opens none."""
    found = find_plugins() if settings.plugins != PluginSettings() else []
    wanted = PluginSettings() if offline else settings.plugins
    taken = RESERVED_NAMES | defined.servers.keys() | settings.openapi.keys()
    tools = PluginTools(found, wanted.tools, code=bundled("sandbox") / "tools", taken=frozenset(taken))
    executors = await stack.enter_async_context(open_executors(found, wanted.executors))
    for name, problems in {**tools.problems, **executors.problems}.items():
        structlog.get_logger("omni_mcp").error("a plugin is left out", plugin=name, problems=[*map(str, problems)])
    return Plugins(
        found=found, enabled_tools=wanted.tools, enabled_executors=list(wanted.executors), tools=tools,
        executors=executors,
    )  # fmt: skip


def _manifests(home: Home, reports: Reports) -> LastGood:
    """All manifests; if the operator's are refused at the start, they are served without them, and that is said."""
    shipped = ManifestDirectory(path=bundled("manifests"), bundled=True)
    code = bundled("sandbox") / "tools"
    everything = ManifestSource([shipped, ManifestDirectory(path=home.manifests)], code=code)
    return LastGood(everything, fallback=ManifestSource([shipped], code=code), reports=reports)


def _read_ahead(lock: LockFile, manifests: LastGood) -> None:
    """Read what takes longest to read, while others of the start wait; whoever needs it looks at the files again."""
    lock.reload()
    manifests.look()


def _open_catalog(settings: Settings, sources: Sequence[Source], pins: Callable[[], Pins]) -> MemoryCatalog:
    """Load everything."""
    profiles = {
        **BUILTIN_PROFILES,
        **{name: ProfileSpec(servers=p.servers, names=p.names) for name, p in settings.profiles.items()},
    }
    catalog = MemoryCatalog([RunsSource(), MemoryEntries(), MessagesSource(), *sources], profiles, pins=pins)
    catalog.reload()
    return catalog


def supplies_of(settings: Settings, secrets: Mapping[str, str], home: Home) -> Supplies:
    """Return what the settings give to jobs.

    Raises:
        ConfigError: a secret cannot stand in a header, or a shared directory holds files of the gateway's own.
    """
    problems: list[Problem] = []
    wanted = {
        f"$.egress.credentials.{number}.secret": one.secret for number, one in enumerate(settings.egress.credentials)
    } | {
        f"$.openapi.{name}.credentials.{number}.secret": one.secret
        for name, document in settings.openapi.items()
        for number, one in enumerate(document.credentials)
    }
    for path, secret in wanted.items():
        value = secrets.get(secret, "")
        if not value or not all(" " <= letter <= "~" for letter in value):
            text = f"the value of {secret!r} is empty, or cannot stand in a header"
            problems.append(Problem(file="omni.toml", line=0, path=path, message=text))
    own = [place.resolve() for place in (home.config, home.data, home.runtime)]
    for name, text in settings.shares.items():
        place = Path(text).resolve()
        if any(place.is_relative_to(mine) or mine.is_relative_to(place) for mine in own):
            message = f"{place} holds files of the gateway's own, or lies among them"
            problems.append(Problem(file="omni.toml", line=0, path=f"$.shares.{name}", message=message))
    if problems:
        raise ConfigError(problems)
    return Supplies(
        networks=settings.egress.networks,
        credentials=tuple(
            ToolCredential(
                credential=Credential(host=one.host, header=one.header, value=one.prefix + secrets[one.secret]),
                tools=frozenset(one.tools),
            )
            for one in settings.egress.credentials
        )
        + tuple(
            ToolCredential(
                credential=Credential(
                    host=host_of_url(document.base_url), header=one.header, value=one.prefix + secrets[one.secret]
                ),
                documents=frozenset({name}),
            )
            for name, document in settings.openapi.items()
            for one in document.credentials
        ),
        secrets=secrets,
        shares={name: Path(place) for name, place in settings.shares.items()},
    )


def document_source(name: str, settings: Settings, home: Home, *, say_left_out: bool = True) -> OpenApiSource:
    """Return the operations of `[openapi.NAME]`; those that cannot become tools are named in the log."""
    document = settings.openapi[name]
    say = structlog.get_logger("omni_mcp")

    def left_out(problems: Sequence[Problem]) -> None:
        if problems and say_left_out:
            say.warning("operations left out", document=name, problems=[str(one) for one in problems[:20]])

    return OpenApiSource(
        name, document, file=home.config / document.document, code=bundled("sandbox") / "tools",
        refusals=JsonSchemas(keep=16).refusals, left_out=left_out,
    )  # fmt: skip


def known_operations(settings: Settings, home: Home) -> list[Entry]:
    """Return what a gateway on *home* would know of OpenAPI documents at its start; a refused one brings nothing."""
    sources = [document_source(name, settings, home, say_left_out=False) for name in settings.openapi]
    found: list[Entry] = []
    for source in sources:
        with suppress(ConfigError):
            found += source.load()
    return found


def _operations(engines: Engines, home: Home, documents: Sequence[OpenApiSource]) -> dict[str, Executor]:
    """Return what runs the operations of OpenAPI documents: jobs like all others."""
    jobs = SandboxExecutor(
        engines.sandbox, engines.artifacts, Workspaces(home.workspaces), log=engines.log, supplies=engines.supplies
    )
    plans = [document.plan_of for document in documents]
    found = OpenApiExecutor(jobs, lambda entry: next((plan for of in plans if (plan := of(entry)) is not None), None))
    return {"openapi_proxy": found}


class NoSource:
    """A source of nothing."""

    def load(self) -> Iterable[Entry]:
        """As the port."""
        return []


class LastGood:
    """A source that may fail after its first load, and falls back to what ships if it fails at the first."""

    def __init__(self, source: Source, *, fallback: Source, reports: Reports) -> None:
        self._source = source
        self._fallback: Source | None = fallback
        self._reports = reports

    def look(self) -> None:
        """Have the source read what it will be asked for; what is wrong is said when it is."""
        with suppress(ConfigError):
            list(self._source.load())

    def load(self) -> Iterable[Entry]:
        """As the source; at the start a refusal is reported and the shipped entries are served."""
        fallback, self._fallback = self._fallback, None
        try:
            return list(self._source.load())
        except ConfigError as error:
            if fallback is None:
                raise
            self._reports.stands("manifests", error.problems)
            return list(fallback.load())


async def _say_started(engines: Engines) -> None:
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
    for notice in engines.log.notices:
        structlog.get_logger("omni_mcp").warning("look at the run log", notice=notice)


async def _warm_up(engines: Engines, *, not_yet: bool) -> None:
    """Have cells ready for tools that say they are hot and that need no directory of a project."""
    if not_yet:
        return
    hot = {
        entry.profile
        for entry in engines.catalog.all_entries()
        if entry.manifest is not None and entry.manifest.tier == "hot" and entry.manifest.binding.workspace == "none"
    }
    for profile in sorted(hot):
        await engines.sandbox.warm_up(profile)


def _say_if_failed(task: asyncio.Task[None]) -> None:
    """A watcher that ends is a fault that somebody must hear of when it happens, not when the gateway closes."""
    if not task.cancelled() and (error := task.exception()) is not None:
        structlog.get_logger("omni_mcp").critical(
            "a part of the gateway ended", part=task.get_name(), error=repr(error)
        )


async def _end_task(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
