"""FirstConnections: a job's first connections are told one by one, the rest of each verdict in one piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from omni_mcp.contracts.sandbox import Connection

MOST_TOLD = 32  # of each verdict: a flood of one kind hides nothing of the others


class FirstConnections:
    """Bounds what a job can have us keep and write by knocking at many doors.

    Args:
        tell: gets a connection as soon as it is over, and how many more of its verdict it stands for.
    """

    def __init__(self, tell: Callable[[Connection, int], None]) -> None:
        self._tell = tell
        self._told: dict[str, int] = {}
        self._rest: dict[str, tuple[Connection, int]] = {}

    def note(self, connection: Connection) -> None:
        """Take one connection that is over."""
        verdict = connection.verdict
        told = self._told.get(verdict, 0)
        if told < MOST_TOLD:
            self._told[verdict] = told + 1
            self._tell(connection, 0)
        elif verdict not in self._rest:
            self._rest[verdict] = connection, 0
        else:
            before, more = self._rest[verdict]
            self._rest[verdict] = _added(connection, before), more + 1

    def close(self) -> None:
        """Tell of the rest; to be called when the job is over."""
        rest, self._rest = self._rest, {}
        for connection, more in rest.values():
            self._tell(connection, more)


def _added(last: Connection, before: Connection) -> Connection:
    """Return the last connection with the bytes and milliseconds of those before it."""
    return replace(
        last,
        bytes_sent=last.bytes_sent + before.bytes_sent,
        bytes_received=last.bytes_received + before.bytes_received,
        duration_ms=last.duration_ms + before.duration_ms,
    )
