"""Metrics: what `/metrics` shows, in one registry of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
LABELS_KEPT = 512


class Metrics:
    """Counters and gauges of one gateway. Labels come from closed lists only."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter(
            "omni_calls_total", "Calls by kind and outcome.", ("kind", "outcome"), registry=self.registry
        )
        self._seconds = Histogram(
            "omni_call_seconds", "Time from request to reply of a call.", ("kind",), buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._requests = Counter(
            "omni_requests_total", "Requests by method, era and transport.", ("method", "era", "transport"),
            registry=self.registry,
        )  # fmt: skip
        self._rejected = Counter(
            "omni_rejected_total", "Messages that were no request.", ("transport", "reason"), registry=self.registry
        )
        # A look-up by labels takes longer than counting.
        self._calls_of = lru_cache(maxsize=LABELS_KEPT)(self._calls.labels)
        self._seconds_of = lru_cache(maxsize=LABELS_KEPT)(self._seconds.labels)
        self._requests_of = lru_cache(maxsize=LABELS_KEPT)(self._requests.labels)
        self._notices = Counter(
            "omni_run_log_notices_total", "Commits that the run log told its subscribers.", registry=self.registry
        )

    def call_ended(self, kind: str, outcome: str, seconds: float) -> None:
        """Count one call; *outcome* is `ok`, `tool_error`, `input_required` or a code of the failure catalogue."""
        self._calls_of(kind, outcome).inc()
        self._seconds_of(kind).observe(seconds)

    def request_seen(self, method: str, era: str, transport: str) -> None:
        """Count one request; unknown methods must come as `other`."""
        self._requests_of(method, era, transport).inc()

    def rejected(self, transport: str, reason: str) -> None:
        """Count one message that was refused before it was a request."""
        self._rejected.labels(transport, reason).inc()

    def log_noticed(self) -> None:
        """Count one commit notice of the run log."""
        self._notices.inc()

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when somebody looks, such as `omni_open_sessions`."""
        Gauge(name, help_text, registry=self.registry).set_function(read)

    def render(self) -> bytes:
        """Return everything in the text format of Prometheus."""
        return generate_latest(self.registry)
