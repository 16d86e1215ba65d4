"""Refusals of requests that are no calls: on record in the caller's run; when they repeat, counted instead."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from omni_mcp.contracts.events import AccessRefusedEvent, draft
from omni_mcp.contracts.ports import RunLog
from omni_mcp.serving.rejections import Rejections

WINDOW_S = 1.0
FULL_LIMIT = 8  # refusals of one run and one window that are written down in full
RUNS_KEPT = 4096


@dataclass(slots=True)
class _Window:
    began_s: float
    told: set[tuple[str, str]] = field(default_factory=set)


class Refusals:
    """Writes down each principal's first refusal of a target within a second, and counts the rest as rejections."""

    def __init__(self, log: RunLog, rejections: Rejections, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._rejections = rejections
        self._now_s = now_s
        self._windows: dict[tuple[str, str], _Window] = {}

    async def note(self, run: str, transport: str, refusal: AccessRefusedEvent) -> None:
        """Return when the refusal is on record, or counted.

        Raises:
            LogUnavailable: it could not be written.
            QuotaExceeded: the run is full.
        """
        told = self._window((run, refusal.principal)).told
        key = (refusal.method, refusal.target)
        if key in told or len(told) >= FULL_LIMIT:
            self._rejections.note(transport, "access_refused")
            return
        told.add(key)
        await self._log.append(run, draft(refusal, actor=refusal.principal)).durable()

    def _window(self, whose: tuple[str, str]) -> _Window:
        """One for each principal, also where several are told apart by nothing else: no one's noise hides another."""
        now = self._now_s()
        found = self._windows.get(whose)
        if found is None or found.began_s <= now - WINDOW_S:
            if len(self._windows) >= RUNS_KEPT:
                self._windows = {one: w for one, w in self._windows.items() if w.began_s > now - WINDOW_S}
            found = self._windows[whose] = _Window(now)
        return found
