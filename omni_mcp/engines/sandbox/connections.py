"""The record of one job's connections: the first ones each have an event, the rest of each verdict share one."""

from __future__ import annotations

from dataclasses import asdict, replace

from omni_mcp.contracts.call import Call
from omni_mcp.contracts.events import EgressConnection, draft
from omni_mcp.contracts.ports import RunLog
from omni_mcp.contracts.sandbox import Connection

MOST_EVENTS = 32  # of each verdict: a flood of one kind hides nothing of the others


class ConnectionRecord:
    """Appends what a job reached for to the run of its call, while the job runs. Nobody waits for the disk here.

    Args:
        most_events: of each verdict, beside the one that stands for the rest.
    """

    def __init__(self, log: RunLog, call: Call, *, most_events: int = MOST_EVENTS) -> None:
        self._log = log
        self._call = call
        self._most_events = most_events
        self._told: dict[str, int] = {}
        self._rest: dict[str, tuple[Connection, int]] = {}

    def note(self, connection: Connection) -> None:
        """Take one connection that is over."""
        verdict = connection.verdict
        told = self._told.get(verdict, 0)
        if told < self._most_events:
            self._told[verdict] = told + 1
            self._append(connection, more=0)
        elif verdict not in self._rest:
            self._rest[verdict] = connection, 0
        else:
            before, more = self._rest[verdict]
            self._rest[verdict] = _added(connection, before), more + 1

    def close(self) -> None:
        """Append what stands for the rest; to be called when the job is over, before its outcome is on record."""
        rest, self._rest = self._rest, {}
        for connection, more in rest.values():
            self._append(connection, more=more)

    def _append(self, connection: Connection, *, more: int) -> None:
        event = draft(EgressConnection(**asdict(connection), more=more), actor="gateway", call=self._call.id)
        self._log.append(self._call.run, event, parent=self._call.parent)


def _added(last: Connection, before: Connection) -> Connection:
    """Return the last connection with the bytes and milliseconds of those before it."""
    return replace(
        last,
        bytes_sent=last.bytes_sent + before.bytes_sent,
        bytes_received=last.bytes_received + before.bytes_received,
        duration_ms=last.duration_ms + before.duration_ms,
    )
