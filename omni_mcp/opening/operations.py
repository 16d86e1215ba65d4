"""What runs the operations of OpenAPI documents: jobs like all others."""

from __future__ import annotations

from collections.abc import Sequence

from omni_mcp.contracts.ports import Executor
from omni_mcp.engines.openapi.executor import OpenApiExecutor
from omni_mcp.engines.openapi.source import OpenApiSource
from omni_mcp.engines.sandbox.executor import SandboxExecutor
from omni_mcp.engines.sandbox.workspaces import Workspaces
from omni_mcp.paths import Home
from omni_mcp.running.engines import Engines


def operations(engines: Engines, home: Home, documents: Sequence[OpenApiSource]) -> dict[str, Executor]:
    """Return the executor of the operations in *documents*, by its binding."""
    jobs = SandboxExecutor(
        engines.sandbox, engines.artifacts, Workspaces(home.workspaces), log=engines.log, supplies=engines.supplies
    )
    plans = [document.plan_of for document in documents]
    found = OpenApiExecutor(jobs, lambda entry: next((plan for of in plans if (plan := of(entry)) is not None), None))
    return {"openapi_proxy": found}
