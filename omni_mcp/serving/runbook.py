"""Runbook: which run a request belongs to.

A handshake session is a run. Modern requests join the run that their trace id and thread name, else the caller's open
one; all only within one principal, so nobody can write into another's run by sending its trace id. A run that was begun
by name is joined by its name.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from omni_mcp.contracts.call import ClientFacts, Durable, Principal
from omni_mcp.contracts.errors import Conflict, QuotaExceeded
from omni_mcp.contracts.events import RunClosed, draft
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.contracts.ports import RunLog

CloseReason = Literal["client_left", "idle", "gateway_stopped", "recovered"]
Key = tuple[str, str | None, str | None]  # principal, trace id, thread
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
        self._open: dict[Key, _OpenRun] = {}
        self._owners: dict[str, str] = {}  # of every run that was opened here and not closed

    async def open(
        self, principal: Principal, client: ClientFacts, *, trace_id: str | None = None, thread: str | None = None,
        title: str | None = None,
    ) -> str:  # fmt: skip
        """Create a run and return its id. *thread* is one of the principal's own: who calls has looked.

        Raises:
            LogUnavailable: it could not be recorded.
        """
        run = await self._log.create_run(
            kind="session", principal=principal, actor=principal.key, client=client_facts(client), trace_id=trace_id,
            thread=thread, title=title,
        )  # fmt: skip
        self._owners[run] = principal.key
        return run

    def close(self, run: str, principal: Principal | str, reason: CloseReason) -> Durable:
        """Record that nothing more will come."""
        actor = principal if isinstance(principal, str) else principal.key
        self._owners.pop(run, None)
        return self._log.append(run, draft(RunClosed(reason=reason), actor=actor))

    def owner_of(self, run: str) -> str | None:
        """Return whose a run is that is open here; None for every other."""
        return self._owners.get(run)

    async def begin(
        self, principal: Principal, client: ClientFacts, *, thread: str | None = None, title: str | None = None
    ) -> str:
        """Open a run that its caller names in later requests, until it ends it or leaves it idle.

        Raises:
            LogUnavailable: it could not be recorded.
        """
        self._make_room(principal.key)
        run = await self.open(principal, client, thread=thread, title=title)
        made: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        made.set_result(run)
        self._open[_key_of(principal, run)] = _OpenRun(made, principal.key, touched_s=self._now_s())
        return run

    @contextmanager
    def held(self, principal: Principal, run: str) -> Iterator[None]:
        """Keep a run of `begin` open while something is recorded in it.

        Raises:
            Conflict: it is no open run of the principal's that was begun that way.
        """
        found = self._open.get(_key_of(principal, run))
        if found is None:
            raise Conflict("this run is not open to requests that name it; begin one with POST /api/runs")
        found.users += 1
        try:
            yield
        finally:
            found.users -= 1
            found.touched_s = self._now_s()

    def end(self, principal: Principal, run: str) -> Durable:
        """Close a run of `begin`.

        Raises:
            Conflict: it is none that is open, or something is under way in it.
        """
        with self.held(principal, run):
            found = self._open[_key_of(principal, run)]
            if found.users > 1:
                raise Conflict("something is under way in this run; wait for its end")
            del self._open[_key_of(principal, run)]
            return self.close(run, principal, "client_left")

    def joined(
        self, principal: Principal, client: ClientFacts, trace_id: str | None, thread: str | None = None
    ) -> Joined:
        """Enter the run of a modern request; it cannot be closed as idle while somebody is inside.

        Raises:
            LogUnavailable: a new run was needed and could not be recorded.
        """
        return Joined(self, (principal.key, trace_id, thread), principal, client)

    def is_open(self, principal: Principal, trace_id: str | None, thread: str | None = None) -> bool:
        """Whether `joined` would find a run, and open none."""
        return (principal.key, trace_id, thread) in self._open

    def enter(self, key: Key, principal: Principal, client: ClientFacts) -> _OpenRun:
        """Count one more user of a run that is open, or is opened now; for `joined`."""
        found = self._open.get(key)
        if found is None:
            self._make_room(principal.key)
            found = _OpenRun(asyncio.get_running_loop().create_future(), principal.key)
            self._open[key] = found
            # A task of its own: whoever asked first may leave, and the others still wait for the run.
            task = asyncio.create_task(self._create(key, found, principal, client))
            self._creating.add(task)
            task.add_done_callback(self._creating.discard)
        found.users += 1
        return found

    def leave(self, key: Key, found: _OpenRun, *, is_full: bool) -> None:
        """Count one user less; a run that is full makes way, so that the next request opens another."""
        if is_full and self._open.get(key) is found:
            del self._open[key]
        found.users -= 1
        found.touched_s = self._now_s()
        if not found.users and self._open.get(key) is not found and _is_made(found.run):
            self.close(found.run.result(), found.principal, "idle")

    async def _create(self, key: Key, entry: _OpenRun, principal: Principal, client: ClientFacts) -> None:
        entry.users += 1
        _, trace_id, thread = key
        try:
            entry.run.set_result(await self.open(principal, client, trace_id=trace_id, thread=thread))
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

    def _drop(self, key: Key, reason: CloseReason) -> bool:
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


class Joined(AbstractAsyncContextManager[str]):
    """One use of a run. Written out, because each call has one; `enter` and `leave` are its parts without a wait."""

    __slots__ = ("_book", "_client", "_found", "_key", "_principal")

    def __init__(self, book: Runbook, key: Key, principal: Principal, client: ClientFacts) -> None:
        self._book = book
        self._key = key
        self._principal = principal
        self._client = client

    def enter(self) -> str | None:
        """Return the run where it is open; else it is being opened, and `opened` waits for it."""
        found = self._found = self._book.enter(self._key, self._principal, self._client)
        return found.run.result() if _is_made(found.run) else None

    async def opened(self) -> str:
        """Wait for the run; whoever waits in vain has left it."""
        try:
            return await asyncio.shield(self._found.run)
        except BaseException as error:
            self.leave(error)
            raise

    def leave(self, error: BaseException | None) -> None:
        """Leave the run; *error* is why, if anything went wrong."""
        self._book.leave(self._key, self._found, is_full=isinstance(error, QuotaExceeded))

    async def __aenter__(self) -> str:
        return self.enter() or await self.opened()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave(error)


def _key_of(principal: Principal, run: str) -> Key:
    """The key of a run that requests name: no trace id looks like it."""
    return principal.key, f"run:{run}", None


def _is_made(run: asyncio.Future[str]) -> bool:
    return run.done() and not run.cancelled() and run.exception() is None


def client_facts(client: ClientFacts) -> JsonObject:
    """What `run_created` keeps of a client. Its own word, never trusted."""
    return {"name": client.name, "version": client.version, "era": client.era, "protocol": client.protocol_version,
            "transport": client.transport}  # fmt: skip
