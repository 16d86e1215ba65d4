"""Rejections: bytes that could not be taken as a request are on record, however many of them come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from omni_mcp.contracts.events import RequestRejected, draft
from omni_mcp.contracts.ports import RunLog

WINDOW_S = 1.0  # at most one event per window, transport and reason, so that a flood cannot fill the log


class Rejections:
    """Counts refused requests and records them in the gateway's own run."""

    def __init__(self, log: RunLog, gateway_run: str, *, counted: Callable[[str, str], None] | None = None) -> None:
        self._log = log
        self._run = gateway_run
        self._counted = counted
        self._held: dict[tuple[str, str], int] = {}
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}

    def note(self, transport: str, reason: str) -> None:
        """Record one rejection: the first of its kind at once, the next ones of the same second together."""
        if self._counted is not None:
            self._counted(transport, reason)
        key = (transport, reason)
        if key in self._timers:
            self._held[key] = self._held.get(key, 0) + 1
            return
        self._append(key, 1)
        self._arm(key)

    def close(self) -> None:
        """Record what is held back."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for key, count in self._held.items():
            self._append(key, count)
        self._held.clear()

    def _arm(self, key: tuple[str, str]) -> None:
        self._timers[key] = asyncio.get_running_loop().call_later(WINDOW_S, self._flush, key)

    def _flush(self, key: tuple[str, str]) -> None:
        del self._timers[key]
        count = self._held.pop(key, 0)
        if count:
            self._append(key, count)
            self._arm(key)

    def _append(self, key: tuple[str, str], count: int) -> None:
        payload = RequestRejected(transport=key[0], reason=key[1], count=count)
        self._log.append(self._run, draft(payload, actor="gateway"))
