"""Health: when a server may be tried again, and what is known of how it does."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from omni_mcp.contracts.errors import UpstreamUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long failures are waited out."""

    backoff_s: float = 0.1  # as between a call's attempts; doubles with each failure in a row, the wait is a part of it
    backoff_limit_s: float = 60.0
    failures_to_open: int = 5  # in a row; then calls fail at once
    open_s: float = 10.0  # doubles each time the one call that is let through fails, too
    open_limit_s: float = 300.0
    starts_per_window: int = 20
    window_s: float = 600.0
    steady_s: float = 10.0  # a connection that lived shorter than this counts as a failure


class Health:
    """Counts failures in a row; a breaker over calls and a backoff over connections are both made of that count."""

    def __init__(
        self, server: str, patience: Patience, *, now_s: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self._server = server
        self._patience = patience
        self._now_s = now_s
        self._chance = chance
        self._failures = 0
        self._next_s = 0.0
        self._open_until_s = 0.0
        self._ready_s = 0.0
        self._starts: deque[float] = deque(maxlen=patience.starts_per_window)
        self.calls = 0
        self.failed_calls = 0
        self.latency_ms: float | None = None  # of answered calls, smoothed
        self.last_fault = ""

    @property
    def failures_in_a_row(self) -> int:
        """Since the last success."""
        return self._failures

    @property
    def is_open(self) -> bool:
        """Whether calls are refused without trying."""
        return self._failures >= self._patience.failures_to_open and self._now_s() < self._open_until_s

    def admit(self) -> None:
        """Let a call try; while the breaker is open only one in its interval.

        Raises:
            UpstreamUnavailable: too many tries failed lately.
        """
        if self._failures < self._patience.failures_to_open:
            return
        now = self._now_s()
        if now < self._open_until_s:
            wait_s = round(self._open_until_s - now, 1)
            raise UpstreamUnavailable(
                f"the server behind it does not answer; try again in {wait_s:g} s", data={"retry_after_s": wait_s},
                detail=f"{self._server}: {self._failures} failures in a row, the last: {self.last_fault}",
            )  # fmt: skip
        self._open_until_s = now + self._open_for()

    def delay_s(self) -> float:
        """How long the next connection has to wait."""
        now = self._now_s()
        wait_s = max(0.0, self._next_s - now)
        if len(self._starts) == self._patience.starts_per_window:
            wait_s = max(wait_s, self._starts[0] + self._patience.window_s - now)
        return wait_s

    def connecting(self) -> None:
        """A connection is tried."""
        self._starts.append(self._now_s())

    def connected(self) -> None:
        """It stands. Failures are forgotten once it has stood for a while, or has answered."""
        self._ready_s = self._now_s()

    def disconnected(self, reason: str) -> None:
        """It broke. One that stood for long is no failure."""
        if self._now_s() - self._ready_s >= self._patience.steady_s:
            self._failures = 0
        self.failed(reason)

    def failed(self, reason: str) -> None:
        """A connection could not be made, or a call could not be brought to the server."""
        now = self._now_s()
        self._failures += 1
        self.last_fault = reason
        ceiling = min(self._patience.backoff_limit_s, self._patience.backoff_s * 2 ** min(self._failures - 1, 30))
        self._next_s = now + self._chance() * ceiling
        if self._failures >= self._patience.failures_to_open:
            self._open_until_s = now + self._open_for()

    def answered(self, latency_ms: float) -> bool:
        """A call was answered, be it with an error of the server's own; returns whether there were failures before."""
        had_failed, self._failures = self._failures > 0, 0
        self._next_s = 0.0
        self.calls += 1
        before = self.latency_ms
        self.latency_ms = latency_ms if before is None else before + 0.1 * (latency_ms - before)
        return had_failed

    def heard(self) -> None:
        """Something other than a call was answered: the next call may try at once."""
        self._open_until_s = self._now_s()

    def call_failed(self, reason: str) -> None:
        """A call got no answer."""
        self.calls += 1
        self.failed_calls += 1
        self.failed(reason)

    def _open_for(self) -> float:
        more = min(self._failures - self._patience.failures_to_open, 30)
        return min(self._patience.open_limit_s, self._patience.open_s * 2.0 ** max(more, 0))
