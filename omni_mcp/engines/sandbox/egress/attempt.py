"""Attempts: what is known about one connection of a job while it lasts, and the report when it is over."""

from __future__ import annotations

import time

from omni_mcp.contracts.sandbox import Connection
from omni_mcp.engines.sandbox.egress.ending import Ended, Reason, Verdict, verdict_of

_MOST_HOST_CHARACTERS = 255


class Allowance:
    """How many bytes all connections of one job may still move."""

    def __init__(self, bytes_total: int) -> None:
        self._left = bytes_total

    def take(self, count: int) -> None:
        """Raises:
        Ended: fewer than *count* are left; none is taken.
        """
        if count > self._left:
            raise Ended("limit")
        self._left -= count


class Attempt:
    """One connection. Starts its clock when made."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._began_at_ns = time.monotonic_ns()
        self._took_ns = 0
        self._host = ""
        self._reason: Reason | None = None
        self._open = False
        self._sent = 0
        self._received = 0
        self.port = 0
        self.method = ""
        self.address = ""
        self.credential = False
        self.answered = False  # whether the job has seen the beginning of an answer

    @property
    def host(self) -> str:
        return self._host

    def names(self, host: str, port: int) -> None:
        """Note what the job asked for, as text that is fit for a record."""
        self._host = "".join(c if " " < c < "\x7f" else "?" for c in host[:_MOST_HOST_CHARACTERS])
        self.port = port

    @property
    def is_open(self) -> bool:
        """Whether data has been exchanged."""
        return self._open

    def opened(self) -> None:
        """Note that the job and the host now exchange data."""
        self._open = True

    def sends(self, count: int) -> None:
        """Count bytes before they go to the host."""
        self._allowance.take(count)
        self._sent += count

    def receives(self, count: int) -> None:
        """Count bytes before they go to the job."""
        self._allowance.take(count)
        self._received += count

    def stops(self) -> None:
        """Stop the clock: what follows is courtesy."""
        self._took_ns = self._took_ns or time.monotonic_ns() - self._began_at_ns

    def ends(self, reason: Reason) -> None:
        """Note why it goes no further; the first reason stays, and none is added once the clock has stopped."""
        if not self._took_ns:
            self._reason = self._reason or reason

    def report(self) -> Connection:
        """Return what goes into the record. A connection that one side closes has been open all the same."""
        self.stops()
        return Connection(
            host=self._host,
            port=self.port,
            method=self.method,
            verdict=self._verdict(),
            reason=self._reason or "",
            address=self.address,
            bytes_sent=self._sent,
            bytes_received=self._received,
            duration_ms=round(self._took_ns / 1e6, 3),
            credential=self.credential,
        )

    def _verdict(self) -> Verdict:
        if self._open:
            return "open" if self._reason in (None, "closed", "ended") else "failed"
        return "failed" if self._reason is None else verdict_of(self._reason)
