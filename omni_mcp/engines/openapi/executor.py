"""OpenApiExecutor: a call of an operation is a job that gets the plan of its request beside the caller's arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from omni_mcp.contracts.call import Call, Result
from omni_mcp.contracts.errors import Internal, SandboxUnavailable
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.ports import Executor
from omni_mcp.contracts.tool import Entry


class OpenApiExecutor:
    """Port `Executor` for bindings of kind `openapi_proxy`.

    Args:
        jobs: runs the job in a cell, with the hosts of the call's grant and no others.
        plan_of: how the request of an entry is written.
    """

    def __init__(self, jobs: Executor, plan_of: Callable[[Entry], JsonObject | None]) -> None:
        self._jobs = jobs
        self._plan_of = plan_of

    async def execute(self, call: Call) -> Result:
        """As the port; errors are those of the jobs.

        Raises:
            SandboxUnavailable: the document was changed and this definition is no more; nothing was dispatched.
        """
        if call.tool is None or call.tool.binding != "openapi_proxy":
            raise Internal("the call cannot be run", detail="the executor was given a tool that is no operation")
        plan = self._plan_of(call.tool)
        if plan is None:
            raise SandboxUnavailable("the tool's document changed; list the tools again", detail="no plan for it")
        return await self._jobs.execute(replace(call, arguments={"plan": plan, "arguments": call.arguments}))
