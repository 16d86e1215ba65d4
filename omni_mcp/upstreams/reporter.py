"""Reporter: what happens to servers goes on record in the gateway's own run."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from omni_mcp.contracts.call import Durable
from omni_mcp.contracts.events import EgressConnection, ServerState, draft
from omni_mcp.contracts.manifest import Closed
from omni_mcp.contracts.ports import RunLog
from omni_mcp.contracts.sandbox import Connection
from omni_mcp.upstreams.launcher import Mask

CONNECTIONS_A_MINUTE = 32  # events of one server and one verdict


@dataclass(slots=True)
class _Told:
    """Connections of one server and one verdict that were told of."""

    minute: int = 0
    events: int = 0
    more: int = 0


class Reporter:
    """Writes down what happens to servers, in the gateway's own run."""

    def __init__(self, log: RunLog, run: str, mask: Mask) -> None:
        self._log = log
        self._run = run
        self._mask = mask
        self._told: dict[tuple[str, str], _Told] = {}

    def note(self, payload: Closed) -> Durable:
        """Something happened to a definition."""
        return self._log.append(self._run, draft(payload, actor="gateway"))

    def state(self, server: str, state: str, detail: str) -> None:
        """A server is ready, degraded or offline now."""
        self.note(ServerState.model_validate({"server": server, "state": state, "detail": self._mask(detail)}))

    def connection(self, server: str, connection: Connection) -> None:
        """A server in a cell reached for a host: so many a minute have an event each, the next one counts the rest."""
        told = self._told.setdefault((server, connection.verdict), _Told())
        minute = int(time.monotonic() // 60)
        if minute != told.minute:
            told.minute, told.events = minute, 0
        if told.events >= CONNECTIONS_A_MINUTE:
            told.more += 1
            return
        event = EgressConnection(**asdict(connection), more=told.more)
        told.events, told.more = told.events + 1, 0
        self._log.append(self._run, draft(event, actor=f"server:{server}"))
