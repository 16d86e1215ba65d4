"""Greetings: what a client says and hears first, and what it sets for its whole connection."""

from __future__ import annotations

from omni_mcp.contracts.call import ClientFacts
from omni_mcp.contracts.errors import LogUnavailable
from omni_mcp.contracts.json import JsonObject
from omni_mcp.protocol.capabilities import ServerInfo, discover_result, initialize_result
from omni_mcp.protocol.eras import LOG_LEVELS, negotiate, short_text
from omni_mcp.protocol.rpc import INVALID_PARAMS, INVALID_REQUEST, RpcError
from omni_mcp.serving.calls import Asked
from omni_mcp.serving.run_of import ThreadOf
from omni_mcp.serving.runbook import Runbook


class Greetings:
    """Answers `initialize`, `server/discover`, `ping` and `logging/setLevel`.

    Args:
        thread_of: the thread that a `_meta` names, which raises NotFound where it is none of the principal's.
    """

    def __init__(self, info: ServerInfo, runbook: Runbook, *, thread_of: ThreadOf) -> None:
        self._info = info
        self._runbook = runbook
        self._thread_of = thread_of

    async def initialize(self, asked: Asked) -> JsonObject:
        """Do the handshake and open the run of this connection.

        Raises:
            RpcError: it was done before.
            NotFound: there is no such thread.
        """
        session = asked.session
        if session.opened:
            raise RpcError(INVALID_REQUEST, "initialize was already sent on this connection")
        version = negotiate(asked.params["protocolVersion"])
        session.thread = await self._thread_of(session.principal, asked.meta)
        client = asked.params.get("clientInfo") or {}
        session.version = version
        session.client = ClientFacts(
            name=short_text(client.get("name")),
            version=short_text(client.get("version")),
            era="handshake",
            protocol_version=version,
            transport=session.transport,
            capabilities=asked.params.get("capabilities") or {},
        )
        try:
            session.run = await self._runbook.open(session.principal, session.client, thread=session.thread)
        except LogUnavailable:
            session.run = None  # its first call opens the run, or is refused: the client need not connect again
        return initialize_result(self._info, version)

    async def discover(self, asked: Asked) -> JsonObject:
        """Say what is served."""
        return discover_result(self._info)

    async def ping(self, asked: Asked) -> JsonObject:
        """Answer that somebody is there."""
        return {}

    async def set_level(self, asked: Asked) -> JsonObject:
        """Set from which level on log messages are sent to a handshake client.

        Raises:
            RpcError: there is no such level.
        """
        level = asked.params["level"]
        if level not in LOG_LEVELS:
            raise RpcError(INVALID_PARAMS, f"level must be one of {', '.join(LOG_LEVELS)}", {"path": "$.params.level"})
        asked.session.log_level = level
        return {}
