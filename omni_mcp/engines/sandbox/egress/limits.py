"""Limits: how much and how long a job may use its way out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressLimits:
    """Of one job. Bytes are counted in both directions together, over all connections."""

    connections: int = 64
    bytes_total: int = 1 << 30
    head_s: float = 10.0  # for a request head, and for the start of TLS in a tunnel
    connect_s: float = 10.0  # from the name to a host that is connected and, where asked, speaks TLS
    answer_s: float = 60.0  # from the end of a request to the head of its response
    idle_s: float = 120.0  # without a byte in either direction
    linger_s: float = 1.0  # for a job to take the last answer and close


DEFAULT_LIMITS = EgressLimits()
