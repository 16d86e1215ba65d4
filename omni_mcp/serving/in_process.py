"""InProcess hands calls of the gateway's own tools to the one of its parts that answers them."""

from __future__ import annotations

from collections.abc import Mapping

from omni_mcp.contracts.call import Call, Result
from omni_mcp.contracts.errors import Internal
from omni_mcp.contracts.ports import Executor


class InProcess:
    """Port `Executor` of the binding `inproc_safe`: one executor for each server of the gateway's own."""

    def __init__(self, executors: Mapping[str, Executor]) -> None:
        self._executors = dict(executors)

    async def execute(self, call: Call) -> Result:
        """As the port.

        Raises:
            Internal: the call is of a server that runs nothing in this process.
        """
        assert call.tool is not None
        executor = self._executors.get(call.tool.server)
        if executor is None:
            raise Internal(f"{call.name!r} cannot run here", detail=f"no part answers for {call.tool.server!r}")
        return await executor.execute(call)
