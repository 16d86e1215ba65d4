"""Settings become engines: opened in order, closed in reverse."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

import structlog

from omni_mcp.config import PluginSettings, Settings, read_secrets
from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.json import digest
from omni_mcp.contracts.ports import Source
from omni_mcp.engines.approvals.desk import ApprovalDesk, open_desk
from omni_mcp.engines.catalog.catalog import BUILTIN_PROFILES, MemoryCatalog
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.catalog.versions import Pins
from omni_mcp.engines.catalog.views import ProfileSpec
from omni_mcp.engines.identity.keys import KeyRing, tokens_in_clear
from omni_mcp.engines.memory.embedders import embedder_of
from omni_mcp.engines.memory.rows import Limits
from omni_mcp.engines.memory.store import SqliteMemory, open_memory
from omni_mcp.engines.policy.policy import open_policy
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox, open_sandbox
from omni_mcp.engines.sandbox.launcher import seen_by_all
from omni_mcp.engines.sandbox.profiles import Profile, load_profiles
from omni_mcp.engines.secrets.masking import SecretMasker
from omni_mcp.engines.state.database import open_state
from omni_mcp.engines.state.threads import StoredThreads
from omni_mcp.host_places import HostPlaces
from omni_mcp.opening.books import Books, open_books
from omni_mcp.opening.sources import LastGood, NoSource, manifests_of
from omni_mcp.opening.supplies import supplies_of
from omni_mcp.opening.tasks import end_task
from omni_mcp.paths import Home, bundled, make_private_dir
from omni_mcp.plugins.executors import open_executors
from omni_mcp.plugins.found import find_plugins
from omni_mcp.plugins.state import Plugins
from omni_mcp.plugins.tools import PluginTools
from omni_mcp.running.engines import Engines
from omni_mcp.server_definition import RESERVED_NAMES
from omni_mcp.serving.memory.entries import MemoryEntries
from omni_mcp.serving.messages_server import MessagesSource
from omni_mcp.serving.runs.entries import RunsSource
from omni_mcp.upstreams.behind import open_behind
from omni_mcp.upstreams.definitions import Defined, read_definitions
from omni_mcp.upstreams.news import News
from omni_mcp.upstreams.reporter import Reporter


async def open_engines(
    stack: AsyncExitStack, settings: Settings, home: Home, sources: Sequence[Source], documents: Sequence[Source],
    *, offline: bool, cells: bool,
) -> Engines:  # fmt: skip
    """Open everything on *stack*.

    Args:
        sources: further entries for the catalog.
        documents: entries of OpenAPI documents; one that is refused brings nothing, and that is said.
        offline: for a replay; no server is started.
        cells: False makes none.

    Raises:
        ConfigError: shipped files or secret references are broken, or every cell would see files of the gateway.
        LogCorrupt: the run log does not open.
    """
    _make_directories(home)
    if cells:
        _check_out_of_sight(home)
    secrets = read_secrets(settings, dict(os.environ))
    supplies = supplies_of(settings, secrets, home)
    defined = read_definitions(settings.servers, home, secrets=secrets, environment=os.environ)
    defined = replace(defined, servers={}) if offline else defined
    masker = SecretMasker(defined.secrets)
    masker.add(tokens_in_clear(home.token_file))
    books = await open_books(stack, settings, home, masker)
    policy = open_policy(home.policies, bundled("policies"))
    books.reports.stands("policy", policy.problems)
    lock, manifests = LockFile(home.lock_file), manifests_of(home, books.reports)
    ahead = asyncio.create_task(asyncio.to_thread(_read_ahead, lock, manifests), name="reading ahead")
    stack.push_async_callback(end_task, ahead)
    profiles = load_profiles(bundled("sandbox") / "profiles", own=home.profiles)
    sandbox = await _open_sandbox(stack, settings, profiles, cells=cells)
    books.reports.stands("servers", defined.problems)
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
            reporter=Reporter(books.log, books.run, masker.mask_text),
            news=news,
            plugins=plugins.tools,
            lock=lock,
        )
    )
    await ahead
    await asyncio.to_thread(behind.keep_plugins)
    books.reports.stands("lockfile", (await behind.reload_lock()).problems)
    described = [LastGood(one, fallback=NoSource(), reports=books.reports) for one in documents]
    catalog = _open_catalog(settings, [manifests, *sources, behind.source, *described], behind.pins)
    desk = await _open_desk(stack, settings, home, books, masker)
    memory = await _open_memory(stack, settings, home, secrets, offline=offline)
    threads = StoredThreads(open_state(home.state_file), masker)
    stack.push_async_callback(threads.close)
    return Engines(
        masker=masker, log=books.log, artifacts=books.artifacts, gateway_run=books.run, recovered=books.recovered,
        reports=books.reports, policy=policy, catalog=catalog, sandbox=sandbox, behind=behind, news=news,
        plugins=plugins, supplies=supplies, desk=desk,
        profile_digests={name: digest(profile.model_dump(mode="json")) for name, profile in profiles.items()},
        threads=threads, identities=KeyRing(home.keys_file), memory=memory,
    )  # fmt: skip


def _make_directories(home: Home) -> None:
    for directory in (
        home.config, home.data, home.secrets, home.policies, home.manifests, home.profiles, home.workspaces,
    ):  # fmt: skip
        make_private_dir(directory)


def _check_out_of_sight(home: Home) -> None:
    """Refuse to keep anything in a directory that is shown to every cell.

    Raises:
        ConfigError: something is there.
    """
    if fault := HostPlaces(home).seen_in(seen_by_all(bundled("sandbox"))):
        message = f"{fault}: move it, and say where it is with OMNI_HOME"
        raise ConfigError([Problem(file=str(home.config), line=0, path="", message=message)])


def _read_ahead(lock: LockFile, manifests: LastGood) -> None:
    """Read what takes longest to read, while others of the start wait; whoever needs it looks at the files again."""
    with suppress(ConfigError):
        lock.read()
    manifests.look()


async def _open_sandbox(
    stack: AsyncExitStack, settings: Settings, profiles: Mapping[str, Profile], *, cells: bool
) -> BubblewrapSandbox:
    return await stack.enter_async_context(
        open_sandbox(
            profiles=profiles,
            sandbox_dir=bundled("sandbox"),
            max_jobs=settings.sandbox.max_jobs,
            use_cgroups=settings.sandbox.cgroups,
            closed=not cells,
        )
    )


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


def _open_catalog(settings: Settings, sources: Sequence[Source], pins: Callable[[], Pins]) -> MemoryCatalog:
    """Load everything."""
    profiles = {
        **BUILTIN_PROFILES,
        **{name: ProfileSpec(servers=p.servers, names=p.names) for name, p in settings.profiles.items()},
    }
    catalog = MemoryCatalog([RunsSource(), MemoryEntries(), MessagesSource(), *sources], profiles, pins=pins)
    catalog.reload()
    return catalog


async def _open_desk(
    stack: AsyncExitStack, settings: Settings, home: Home, books: Books, masker: SecretMasker
) -> ApprovalDesk:
    return await stack.enter_async_context(
        open_desk(
            open_state(home.state_file),
            log=books.log,
            masker=masker,
            gateway_run=books.run,
            wait_s=settings.approvals.wait_s,
            max_open_per_principal=settings.approvals.open_per_principal,
            max_open=settings.approvals.open_in_all,
        )
    )


async def _open_memory(
    stack: AsyncExitStack, settings: Settings, home: Home, secrets: Mapping[str, str], *, offline: bool
) -> SqliteMemory:
    token = secrets.get(settings.memory.secret or "")
    embedder = None if offline else embedder_of(settings.memory, lambda: token)
    limits = Limits.of(settings.memory)
    return await stack.enter_async_context(open_memory(home.memory_file, embedder=embedder, limits=limits))
