"""What a gateway writes to is opened first: the run log, the artifacts, and the run of the gateway itself."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from omni_mcp import __version__
from omni_mcp.config import Settings
from omni_mcp.contracts.call import Principal
from omni_mcp.engines.artifacts.store import ArtifactStore, open_artifacts
from omni_mcp.engines.runlog.store import SqliteRunLog, open_run_log
from omni_mcp.engines.secrets.masking import SecretMasker
from omni_mcp.paths import Home
from omni_mcp.serving.reports import Reports

GATEWAY = Principal(kind="User", id="gateway", project="-")  # no key or socket can stand for it: "-" is no project


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """Where everything is written. `recovered` calls of a gateway that crashed have their outcome now."""

    log: SqliteRunLog
    artifacts: ArtifactStore
    run: str
    recovered: int
    reports: Reports


async def open_books(stack: AsyncExitStack, settings: Settings, home: Home, masker: SecretMasker) -> Books:
    """Open log and artifacts, and begin the run of this gateway.

    Raises:
        LogCorrupt: the run log does not open.
    """
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
    return Books(log=log, artifacts=artifacts, run=run, recovered=recovered, reports=Reports(log, run))
