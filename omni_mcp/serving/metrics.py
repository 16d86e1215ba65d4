"""Metrics: what `/metrics` shows, in one registry of its own.

Events are tallied in plain numbers and written out when somebody looks: the library's own counters take ten times as
long for each, and calls and requests are counted all the time. All of it belongs to the event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """Counters and gauges of one gateway. Labels come from closed lists only."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = _Count("omni_calls", "Calls by kind and outcome.", ("kind", "outcome"))
        self._seconds = _Times("omni_call_seconds", "Time from request to reply of a call.", ("kind",))
        self._requests = _Count(
            "omni_requests", "Requests by method, era and transport.", ("method", "era", "transport")
        )  # fmt: skip
        self._rejected = _Count("omni_rejected", "Messages that were no request.", ("transport", "reason"))
        self._notices = _Count("omni_run_log_notices", "Commits that the run log told its subscribers.", ())
        for tallied in (self._calls, self._seconds, self._requests, self._rejected, self._notices):
            self.registry.register(tallied)

    def call_ended(self, kind: str, outcome: str, seconds: float) -> None:
        """Count one call; *outcome* is `ok`, `tool_error`, `input_required` or a code of the failure catalogue."""
        self._calls.found[kind, outcome] += 1
        self._seconds.add((kind,), seconds)

    def request_seen(self, method: str, era: str, transport: str) -> None:
        """Count one request; unknown methods must come as `other`."""
        self._requests.found[method, era, transport] += 1

    def rejected(self, transport: str, reason: str) -> None:
        """Count one message that was refused before it was a request."""
        self._rejected.found[transport, reason] += 1

    def log_noticed(self) -> None:
        """Count one commit notice of the run log."""
        self._notices.found[()] += 1

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when somebody looks, such as `omni_open_sessions`."""
        Gauge(name, help_text, registry=self.registry).set_function(read)

    def render(self) -> bytes:
        """Return everything in the text format of Prometheus."""
        return generate_latest(self.registry)


class _Count(Collector):
    """How often something happened, by labels."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        self._name = name
        self._help_text = help_text
        self._labels = labels
        self.found: Counter[tuple[str, ...]] = Counter()
        if not labels:
            self.found[()] = 0  # what has no labels is shown from the start

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._help_text, labels=self._labels)
        for labels, count in self.found.items():
            family.add_metric(labels, count)
        return [family]


class _Times(Collector):
    """How long something took, by labels."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        self._name = name
        self._help_text = help_text
        self._labels = labels
        self._counts: dict[tuple[str, ...], list[int]] = {}  # by bucket; the last is of what took longer than all
        self._sums: dict[tuple[str, ...], float] = {}

    def add(self, labels: tuple[str, ...], seconds: float) -> None:
        if labels not in self._counts:
            self._counts[labels] = [0] * (len(_SECONDS) + 1)
        self._counts[labels][bisect_left(_SECONDS, seconds)] += 1
        self._sums[labels] = self._sums.get(labels, 0.0) + seconds

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._help_text, labels=self._labels)
        bounds = [*map(floatToGoString, _SECONDS), "+Inf"]
        for labels, counts in self._counts.items():
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            family.add_metric(labels, buckets, self._sums[labels])
        return [family]
