"""Link: the way back to the caller of one call: progress, log messages, questions."""

from __future__ import annotations

from omni_mcp.contracts.call import AskRefused, Era
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.protocol.eras import LOG_LEVELS, PAGES_SINCE, at_least
from omni_mcp.protocol.rpc import notification
from omni_mcp.serving.session import Outlet, Session

_RANK = {level: rank for rank, level in enumerate(LOG_LEVELS)}


class Link:
    """A `CallerLink` over the outlet of one request."""

    def __init__(
        self, session: Session, outlet: Outlet, *, era: Era, progress_token: str | int | None, log_level: str | None
    ) -> None:
        self._session = session
        self._outlet = outlet
        self._era = era
        self._token = progress_token
        self._log_level = log_level  # of a modern request, None for silence; a handshake session has its own

    @property
    def client(self) -> object:
        """The connection. A modern request over HTTP is one for itself: nothing says which of them belong together."""
        return self._session

    async def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """Send `notifications/progress` if the request brought a token."""
        if self._token is None:
            return
        params: JsonObject = {"progressToken": self._token, "progress": progress}
        if total is not None:
            params["total"] = total
        if message is not None:
            params["message"] = message
        self._outlet.send(notification("notifications/progress", params))

    async def log(self, level: str, data: JsonValue, logger: str | None) -> None:
        """Send `notifications/message` if the client wants messages of *level*."""
        wanted = self._session.log_level if self._era == "handshake" else self._log_level
        if wanted is None or level not in _RANK or _RANK[level] < _RANK[wanted]:
            return
        params: JsonObject = {"level": level, "data": data}
        if logger is not None:
            params["logger"] = logger
        self._outlet.send(notification("notifications/message", params))

    async def ask(self, method: str, params: JsonObject) -> JsonObject:
        """Push a request to a handshake client and wait for its answer.

        Raises:
            AskRefused: a modern client, one without the capability, or one that is gone or says no.
        """
        if not self.can_ask(method):
            raise AskRefused(f"the client cannot be asked {method}")
        return await self._session.ask(method, params, self._outlet)

    def can_ask(self, method: str) -> bool:
        """Modern clients are never pushed to: what they must answer goes into a multi-round result."""
        return self._era == "handshake" and self._session.can_ask(method)

    def page_done(self, elicitation: str) -> None:
        """Send `notifications/elicitation/complete`, which came with 2025-11-25 and went with 2026-07-28."""
        if self._era == "handshake" and at_least(self._session.version, PAGES_SINCE):
            told = notification("notifications/elicitation/complete", {"elicitationId": elicitation})
            if not self._outlet.send(told) and self._outlet is not self._session.outlet:
                self._session.outlet.send(told)
