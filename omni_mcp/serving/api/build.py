"""The JSON API over the parts of a gateway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from omni_mcp.contracts.call import Handler as Chain
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.ports import Catalog, Policy
from omni_mcp.engines.approvals.desk import ApprovalDesk
from omni_mcp.engines.artifacts.store import ArtifactStore
from omni_mcp.engines.runlog.store import SqliteRunLog
from omni_mcp.engines.state.threads import StoredThreads
from omni_mcp.serving.api.access import Access
from omni_mcp.serving.api.artifacts import ArtifactRoutes
from omni_mcp.serving.api.calls import CallRoutes, EndRound
from omni_mcp.serving.api.face import ApiFace
from omni_mcp.serving.api.lookups import LookupRoutes, about_handlers
from omni_mcp.serving.api.memory import MemoryRoutes
from omni_mcp.serving.api.runs import RunRoutes
from omni_mcp.serving.api.streaming import HEARTBEAT_S, StreamRoutes
from omni_mcp.serving.calls import IdOf, fresh_id
from omni_mcp.serving.edge import Edge
from omni_mcp.serving.messages import Messages
from omni_mcp.serving.refusals import Refusals
from omni_mcp.serving.run_sources import Places
from omni_mcp.serving.run_streams import RunStreams
from omni_mcp.serving.runbook import Runbook


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiParts:
    """What the API stands on."""

    chain: Chain
    edge: Edge
    catalog: Catalog
    policy: Policy
    log: SqliteRunLog
    runbook: Runbook
    threads: StoredThreads
    messages: Messages
    streams: RunStreams
    artifacts: ArtifactStore
    desk: ApprovalDesk
    gateway_run: str
    admit: Callable[[Principal], None]
    end_round: EndRound
    status: Callable[[], JsonObject]
    version: str
    id_of: IdOf = fresh_id  # of calls; a replay gives those that were recorded
    heartbeat_s: float = HEARTBEAT_S
    is_frozen: Callable[[str], bool] = lambda project: False  # whether an operator stopped a project


def build_api(parts: ApiParts) -> ApiFace:
    """Return the face that serves every route of the table."""
    log, edge, runbook = parts.log, parts.edge, parts.runbook
    access = Access(
        parts.catalog, parts.policy, log, Refusals(log, edge.rejections), gateway_run=parts.gateway_run,
        is_frozen=parts.is_frozen,
    )  # fmt: skip
    calls = CallRoutes(
        parts.chain, edge, log, runbook, parts.threads, edge.metrics, end_round=parts.end_round, id_of=parts.id_of
    )
    places = Places(log.arguments_hmac("places of streams"))
    edge.metrics.watch("omni_event_streams", "Open streams of run events.", lambda: parts.streams.open)
    return ApiFace(
        edge,
        {
            **about_handlers(parts.status, version=parts.version, is_draining=lambda: not edge.takes_calls),
            **LookupRoutes(parts.desk, edge).handlers(),
            **RunRoutes(log, runbook, parts.threads, parts.messages).handlers(),
            **ArtifactRoutes(parts.artifacts, log, runbook, places).handlers(),
            **calls.handlers(),
            **MemoryRoutes(calls).handlers(),
            **StreamRoutes(log, parts.streams, places, access, edge.drains, heartbeat_s=parts.heartbeat_s).handlers(),
        },
        access=access,
        admit=parts.admit,
    )
