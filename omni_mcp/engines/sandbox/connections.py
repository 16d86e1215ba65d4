"""The record of one job's connections, so many of them as `FirstConnections` tells."""

from __future__ import annotations

from dataclasses import asdict

from omni_mcp.contracts.call import Call
from omni_mcp.contracts.events import EgressConnection, draft
from omni_mcp.contracts.ports import RunLog
from omni_mcp.contracts.sandbox import Connection
from omni_mcp.engines.sandbox.first_connections import FirstConnections


class ConnectionRecord:
    """Appends what a job reached for to the run of its call, while the job runs. Nobody waits for the disk here."""

    def __init__(self, log: RunLog, call: Call) -> None:
        self._log = log
        self._call = call
        self._first = FirstConnections(self._append)
        self.note = self._first.note

    def close(self) -> None:
        """Append what stands for the rest; to be called when the job is over, before its outcome is on record."""
        self._first.close()

    def _append(self, connection: Connection, more: int) -> None:
        event = draft(EgressConnection(**asdict(connection), more=more), actor="gateway", call=self._call.id)
        self._log.append(self._call.run, event, parent=self._call.parent)
