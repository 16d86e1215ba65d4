"""How an MCP request names the thread that its run is to belong to."""

from __future__ import annotations

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import BadRequest
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.state.threads import StoredThreads

META_THREAD = "io.omni-mcp/thread"


class ThreadNames:
    """Looks up the thread in a `_meta`."""

    def __init__(self, threads: StoredThreads) -> None:
        self._threads = threads

    async def of(self, principal: Principal, meta: JsonObject) -> str | None:
        """Return the thread that is named; None if none is.

        Raises:
            NotFound: it is none of the principal's.
            BadRequest: it is no name of one.
        """
        named = meta.get(META_THREAD)
        if named is None:
            return None
        if not isinstance(named, str):
            raise BadRequest(f"{META_THREAD} is the id of a thread", data={"path": f"$.params._meta.{META_THREAD}"})
        return (await self._threads.get(named, principal=principal.key)).id
