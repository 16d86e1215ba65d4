"""Doors: whether new calls are let in, and which are still inside."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import structlog

from omni_mcp.chain.limit import Limit
from omni_mcp.chain.record import Record
from omni_mcp.contracts.call import Call
from omni_mcp.contracts.events import GatewayDraining, draft
from omni_mcp.contracts.json import JsonObject
from omni_mcp.running.engines import Engines
from omni_mcp.serving.edge import Edge

LOOK_S = 0.05
SHOWN = 100  # calls


class Doors:
    """Closed, the gateway refuses every new call and serves the rest: lists, reads of the log, answers of callers.

    A call that waits for its caller's input is inside, and its next round is let in. A restart opens the doors.
    """

    def __init__(self, engines: Engines, limit: Limit, record: Record, edge: Edge) -> None:
        self._engines = engines
        self._limit = limit
        self._record = record
        self._edge = edge
        self._by = ""
        self._ends_s: float | None = None

    @property
    def inside(self) -> int:
        """How many calls are under way, those included that wait for a person or for their caller."""
        return self._limit.pending + self._record.open_rounds()

    def close(self, *, by: str, deadline_s: float | None) -> None:
        """Let no new call in, and put that on record; *deadline_s* is what those inside are given, None for no end."""
        self._by = by
        self._ends_s = None if deadline_s is None else time.monotonic() + deadline_s
        self._turn(closed=True, by=by, deadline_s=deadline_s)

    def open(self, *, by: str) -> None:
        """Let calls in again."""
        if self._limit.closed:
            self._turn(closed=False, by=by, deadline_s=None)

    async def empty(self) -> bool:
        """Wait until no call is inside; False if the deadline passed first, or the doors were opened again."""
        while self.inside:
            if not self._limit.closed or self._is_late():
                return False
            await asyncio.sleep(LOOK_S)
        return self._limit.closed

    def facts(self) -> JsonObject:
        """Return whether new calls are refused, what is inside, oldest first, and how many are at each server.

        What waits for its caller is at its server, too, and so is its next round from the moment that it comes: no
        pause keeps it out.
        """
        calls = self._limit.under_way()
        begun = [call.trail.server for call, _ in calls if call.trail.dispatched or call.round is not None]
        at_servers = Counter(server for server in (*begun, *self._record.waiting_servers()) if server is not None)
        left_s = None if self._ends_s is None else max(0.0, round(self._ends_s - time.monotonic(), 1))
        closing: JsonObject = {"by": self._by, "left_s": left_s} if self._limit.closed else {}
        return {
            "draining": not self._edge.takes_calls,
            **closing,
            "inside": self.inside,
            "waiting_for_input": self._record.open_rounds(),
            "paused": sorted(self._engines.behind.paused()),
            "running": at_servers,
            "calls": [self._fact(call, since_s) for call, since_s in calls[:SHOWN]],
        }

    def _fact(self, call: Call, since_s: float) -> JsonObject:
        return {
            "call": call.id,
            "name": call.name,
            "server": call.trail.server,
            "principal": call.principal.key,
            "since_s": round(since_s, 1),
            "dispatched": call.trail.dispatched,
        }

    def _is_late(self) -> bool:
        return self._ends_s is not None and time.monotonic() >= self._ends_s

    def _turn(self, *, closed: bool, by: str, deadline_s: float | None) -> None:
        self._limit.closed = self._edge.held = closed
        said = GatewayDraining(draining=closed, by=by, deadline_s=deadline_s)
        self._engines.log.append(self._engines.gateway_run, draft(said, actor=by))
        structlog.get_logger("omni_mcp").info("draining" if closed else "taking calls again", by=by, inside=self.inside)
