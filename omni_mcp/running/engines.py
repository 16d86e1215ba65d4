"""Engines: everything that a gateway has opened, in the order in which it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from omni_mcp.engines.approvals.desk import ApprovalDesk
from omni_mcp.engines.artifacts.store import ArtifactStore
from omni_mcp.engines.catalog.catalog import MemoryCatalog
from omni_mcp.engines.identity.keys import KeyRing
from omni_mcp.engines.memory.store import SqliteMemory
from omni_mcp.engines.policy.policy import CedarPolicy
from omni_mcp.engines.runlog.store import SqliteRunLog
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from omni_mcp.engines.sandbox.supplies import Supplies
from omni_mcp.engines.secrets.masking import SecretMasker
from omni_mcp.engines.state.threads import StoredThreads
from omni_mcp.plugins.state import Plugins
from omni_mcp.serving.reports import Reports
from omni_mcp.upstreams.behind import Behind
from omni_mcp.upstreams.news import News


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
    memory: SqliteMemory
    threads: StoredThreads
    identities: KeyRing
