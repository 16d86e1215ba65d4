"""Shares: no principal can take so much of what all share that others get nothing."""

from __future__ import annotations

LEAST_SHARE = 8


def share_of(limit: int) -> int:
    """Return how many of *limit* places one principal may hold: a quarter, and never fewer than LEAST_SHARE."""
    return max(LEAST_SHARE, limit // 4)
