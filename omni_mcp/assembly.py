"""A whole gateway: its engines, its chain and faces, and the tasks that go on beside calls; closed in reverse."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from omni_mcp import __version__
from omni_mcp.config import Settings
from omni_mcp.contracts.events import GatewayStarted, draft
from omni_mcp.contracts.ports import Completer, Executor, Source
from omni_mcp.engines.policy.watcher import PolicyWatcher
from omni_mcp.gateway import Gateway, StandIns
from omni_mcp.opening.documents import document_source
from omni_mcp.opening.engines import open_engines
from omni_mcp.opening.operations import operations
from omni_mcp.opening.tasks import keep_running
from omni_mcp.paths import Home
from omni_mcp.running.engines import Engines


@asynccontextmanager
async def open_gateway(
    settings: Settings,
    home: Home,
    *,
    sources: Sequence[Source] = (),
    executors: Mapping[str, Executor] | None = None,
    completers: Mapping[str, Completer] | None = None,
    stand_ins: StandIns | None = None,
    cells: bool = True,
) -> AsyncIterator[Gateway]:
    """Open a whole gateway; leaving the context drains and closes it. Who calls holds the lock on `home.data`.

    Args:
        sources: further entries for the catalog.
        executors: further executors, by binding.
        completers: who suggests argument values, by server.
        stand_ins: for a replay; no server is started, and no cell.
        cells: False makes none, as where no isolation can be had: whatever needs one is refused.

    Raises:
        ConfigError: shipped files or secret references are broken.
        LogCorrupt: the run log does not open.
    """
    async with AsyncExitStack() as stack:
        documents = [document_source(name, settings, home) for name in settings.openapi]
        replays = stand_ins is not None
        engines = await open_engines(
            stack, settings, home, sources, documents, offline=replays, cells=cells and not replays
        )
        gateway = Gateway(
            settings, home, engines, executors={**operations(engines, home, documents), **(executors or {})},
            completers=completers or {}, stand_ins=stand_ins,
        )  # fmt: skip
        engines.catalog.listen(gateway.upkeep.on_catalog)
        await _say_started(engines)
        keep_running(stack, "policy watcher", PolicyWatcher(engines.policy, gateway.upkeep.on_policy).run())
        keep_running(stack, "file watcher", gateway.upkeep.watch())
        keep_running(stack, "change notices", gateway.changes.follow(engines.log))
        keep_running(stack, "run streams", gateway.run_streams.follow())
        keep_running(stack, "first cells", _warm_up(engines))
        keep_running(stack, "servers behind us", gateway.upkeep.follow(engines.news))
        stack.push_async_callback(gateway.forgetting.close)
        if not replays:
            keep_running(stack, "memory sweeper", gateway.sweeping.run())
        stack.push_async_callback(gateway.drain, 0.0)
        yield gateway


async def _say_started(engines: Engines) -> None:
    started = GatewayStarted(
        gateway_version=__version__,
        pid=os.getpid(),
        platform=_platform(),
        policy_version=engines.policy.version,
        catalog_version=engines.catalog.version,
        isolation=engines.sandbox.isolation().as_json(),
        recovered_calls=engines.recovered,
    )
    await engines.log.append(engines.gateway_run, draft(started, actor="gateway")).durable()
    for notice in engines.log.notices:
        structlog.get_logger("omni_mcp").warning("look at the run log", notice=notice)


def _platform() -> str:
    """Return system, release and machine. The standard library's way would start a process to learn the processor."""
    facts = os.uname()
    return f"{facts.sysname}-{facts.release}-{facts.machine}"


async def _warm_up(engines: Engines) -> None:
    """Have cells ready for tools that say they are hot and that need no directory of a project."""
    hot = {
        entry.profile
        for entry in engines.catalog.all_entries()
        if entry.manifest is not None and entry.manifest.tier == "hot" and entry.manifest.binding.workspace == "none"
    }
    for profile in sorted(hot):
        await engines.sandbox.warm_up(profile)
