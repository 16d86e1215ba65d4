"""Runbook: which run a request belongs to.

A handshake session is a run. Modern requests join the run that their trace id names, else the caller's open one; both
only within one principal, so nobody can write into another's run by sending its trace id.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from omni_mcp.contracts.call import ClientFacts, Principal
from omni_mcp.contracts.errors import QuotaExceeded
from omni_mcp.contracts.events import RunClosed, draft
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.contracts.ports import RunLog

CloseReason = Literal["client_left", "idle", "gateway_stopped", "recovered"]
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def trace_id_of(meta: JsonObject) -> str | None:
    """Return the trace id of a W3C `traceparent` in a request's `_meta`; None if there is no valid one."""
    value: JsonValue = meta.get("traceparent")
    found = _TRACEPARENT.fullmatch(value) if isinstance(value, str) else None
    return found[1] if found and set(found[1]) != {"0"} else None


@dataclass(slots=True)
class _OpenRun:
    run: asyncio.Future[str]
    principal: str
    users: int = 0
    touched_s: float = 0.0


class Runbook:
    """Opens, finds and closes the runs of clients."""

    def __init__(
        self,
        log: RunLog,
        *,
        idle_s: float = 1800.0,
        runs_per_principal: int = 256,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._idle_s = idle_s
        self._runs_per_principal = runs_per_principal
        self._now_s = now_s
        self._creating: set[asyncio.Task[None]] = set()
        self._open: dict[tuple[str, str | None], _OpenRun] = {}

    async def open(self, principal: Principal, client: ClientFacts, *, trace_id: str | None = None) -> str:
        """Create a run and return its id.

        Raises:
            LogUnavailable: it could not be recorded.
        """
        return await self._log.create_run(
            kind="session", principal=principal, actor=principal.key, client=client_facts(client), trace_id=trace_id
        )

    def close(self, run: str, principal: Principal | str, reason: CloseReason) -> None:
        """Record that nothing more will come."""
        actor = principal if isinstance(principal, str) else principal.key
        self._log.append(run, draft(RunClosed(reason=reason), actor=actor))

    @asynccontextmanager
    async def joined(self, principal: Principal, client: ClientFacts, trace_id: str | None) -> AsyncIterator[str]:
        """Enter the run of a modern request; it cannot be closed as idle while somebody is inside.

        Raises:
            LogUnavailable: a new run was needed and could not be recorded.
        """
        key = (principal.key, trace_id)
        found = self._open.get(key)
        if found is None:
            self._make_room(principal.key)
            found = _OpenRun(asyncio.get_running_loop().create_future(), principal.key)
            self._open[key] = found
            # A task of its own: whoever asked first may leave, and the others still wait for the run.
            task = asyncio.create_task(self._create(key, found, principal, client, trace_id))
            self._creating.add(task)
            task.add_done_callback(self._creating.discard)
        found.users += 1
        try:
            yield await asyncio.shield(found.run)
        except QuotaExceeded:  # a full run makes way: the next request opens another
            if self._open.get(key) is found:
                del self._open[key]
            raise
        finally:
            found.users -= 1
            found.touched_s = self._now_s()
            if not found.users and self._open.get(key) is not found and _is_made(found.run):
                self.close(found.run.result(), found.principal, "idle")

    async def _create(
        self, key: tuple[str, str | None], entry: _OpenRun, principal: Principal, client: ClientFacts,
        trace_id: str | None,
    ) -> None:  # fmt: skip
        entry.users += 1
        try:
            entry.run.set_result(await self.open(principal, client, trace_id=trace_id))
        except Exception as error:
            self._open.pop(key, None)
            entry.run.set_exception(error)
            entry.run.exception()  # those who wait get it; without any it is not "never retrieved"
        finally:
            entry.users -= 1

    def _make_room(self, principal: str) -> None:
        """Close the longest unused run of a principal that opens too many (each trace id opens one)."""
        mine = [(entry.touched_s, key) for key, entry in self._open.items() if key[0] == principal]
        if len(mine) < self._runs_per_principal:
            return
        for _, key in sorted(mine, key=lambda pair: pair[0]):
            if self._drop(key, "idle"):
                return

    def _drop(self, key: tuple[str, str | None], reason: CloseReason) -> bool:
        entry = self._open[key]
        if entry.users or not entry.run.done():
            return False
        del self._open[key]
        self.close(entry.run.result(), entry.principal, reason)
        return True

    def sweep(self) -> None:
        """Close every modern run that nobody used for `idle_s`."""
        before = self._now_s() - self._idle_s
        for key, entry in list(self._open.items()):
            if entry.touched_s < before:
                self._drop(key, "idle")

    def close_all(self) -> None:
        """Close every modern run: the gateway stops."""
        for key in list(self._open):
            self._drop(key, "gateway_stopped")

    @property
    def open_runs(self) -> int:
        """How many modern runs are open."""
        return len(self._open)


def _is_made(run: asyncio.Future[str]) -> bool:
    return run.done() and not run.cancelled() and run.exception() is None


def client_facts(client: ClientFacts) -> JsonObject:
    """What `run_created` keeps of a client. Its own word, never trusted."""
    return {"name": client.name, "version": client.version, "era": client.era, "protocol": client.protocol_version,
            "transport": client.transport}  # fmt: skip
