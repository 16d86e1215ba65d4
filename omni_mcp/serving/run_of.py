"""RunOf: the run that a request belongs to, entered while the request is answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import QuotaExceeded
from omni_mcp.contracts.json import JsonObject
from omni_mcp.serving.calls import Asked
from omni_mcp.serving.runbook import Joined, Runbook

ThreadOf = Callable[[Principal, JsonObject], Awaitable[str | None]]
AdmitRun = Callable[[Asked], None]


class RunOf(AbstractAsyncContextManager[str]):
    """Modern requests join one of their caller's runs; a handshake session has its own, opened when it is needed.

    Args:
        thread_of: the thread that a `_meta` names, which raises NotFound where it is none of the principal's.
        admit: counts a run that has to be opened for a modern request; raises RateLimited where there were too many.
    """

    __slots__ = ("_admit", "_asked", "_joined", "_run", "_runbook", "_thread_of")

    def __init__(self, runbook: Runbook, thread_of: ThreadOf, admit: AdmitRun, asked: Asked) -> None:
        self._runbook = runbook
        self._thread_of = thread_of
        self._admit = admit
        self._asked = asked
        self._joined: Joined | None = None

    async def __aenter__(self) -> str:
        asked, session = self._asked, self._asked.session
        if asked.era == "modern":
            thread = await self._thread_of(session.principal, asked.meta)
            if not self._runbook.is_open(session.principal, asked.trace, thread):
                self._admit(asked)
            joined = self._runbook.joined(session.principal, asked.client, asked.trace, thread)
            run = joined.enter() or await joined.opened()
            self._joined = joined
            return run
        if session.run is None:
            async with session.opening:
                if session.run is None:
                    session.run = await self._runbook.open(session.principal, session.client, thread=session.thread)
        self._run = session.run
        session.run_users[self._run] += 1
        return self._run

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._joined is not None:
            self._joined.leave(error)
            return
        session, run = self._asked.session, self._run
        if isinstance(error, QuotaExceeded) and session.run == run:
            session.run = None  # the next request opens another
        session.run_users[run] -= 1
        if not session.run_users[run]:
            del session.run_users[run]
            if session.run != run:
                self._runbook.close(run, session.principal, "idle")
