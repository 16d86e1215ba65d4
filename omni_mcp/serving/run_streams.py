"""RunStreams: who waits for which events of the run log, and waking them. The events wait in the log.

One subscription serves everybody. A stream that is woken reads what is new by itself and sends it as fast as its client
takes it, so a slow client costs a place in the log, and no memory.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from omni_mcp.contracts.errors import NotFound, OmniError, Overloaded, RateLimited
from omni_mcp.contracts.ports import RunLog

STREAMS_PER_PRINCIPAL = 16
STREAMS_IN_ALL = 512
OWNERS_KEPT = 20_000


class Waiting:
    """One stream that waits. `woken` is set when there may be more, and when the log has ended."""

    def __init__(self, principal: str, run: str | None) -> None:
        self.principal = principal
        self.run = run
        self.woken = asyncio.Event()


class RunStreams:
    """Wakes streams when their runs grow.

    Args:
        owner_of: whose an open run is, None if that is not known without looking into the log.
    """

    def __init__(
        self, log: RunLog, owner_of: Callable[[str], str | None], *, per_principal: int = STREAMS_PER_PRINCIPAL,
        in_all: int = STREAMS_IN_ALL,
    ) -> None:  # fmt: skip
        self._log = log
        self._owner_of = owner_of
        self._per_principal = per_principal
        self._in_all = in_all
        self._by_run: dict[str, set[Waiting]] = {}
        self._by_principal: dict[str, set[Waiting]] = {}
        self._counts: Counter[str] = Counter()
        self._owners: dict[str, str | None] = {}
        self.ended = False

    @property
    def open(self) -> int:
        """How many streams there are."""
        return self._counts.total()

    @contextmanager
    def waiting(self, principal: str, run: str | None = None) -> Iterator[Waiting]:
        """Wait for events of *run*, or of all runs of *principal*.

        Raises:
            RateLimited: the principal has as many streams as it may have.
            Overloaded: there are too many in all.
        """
        if self._counts[principal] >= self._per_principal:
            raise RateLimited(f"you have {self._per_principal} streams open; close one", data={"retry_after_s": 1.0})
        if self.open >= self._in_all:
            raise Overloaded("too many streams are open; try again later")
        made = Waiting(principal, run)
        index, key = (self._by_run, run) if run is not None else (self._by_principal, principal)
        index.setdefault(key, set()).add(made)
        self._counts[principal] += 1
        try:
            yield made
        finally:
            self._counts[principal] -= 1
            if not self._counts[principal]:
                del self._counts[principal]
            index[key].discard(made)
            if not index[key]:
                del index[key]

    async def follow(self) -> None:
        """Wake streams at each commit, until the log ends. Reads of the log are quiet: they wake nobody."""
        while not self.ended:
            try:
                async for run, _, _ in self._log.subscribe(lambda run, quiet: not quiet and bool(self._counts)):
                    await self._grown(run)
                self.ended = True
            except Overloaded:
                continue  # more runs grew than a subscription counts: all look for themselves
            finally:
                self._wake_all()

    async def _grown(self, run: str) -> None:
        for one in self._by_run.get(run, ()):
            one.woken.set()
        if self._by_principal and (owner := await self._owner(run)) is not None:
            for one in self._by_principal.get(owner, ()):
                one.woken.set()

    async def _owner(self, run: str) -> str | None:
        """Return whose a run is. It never changes, but for a run that is erased, and that one wakes in vain."""
        known = self._owner_of(run)
        if known is not None:
            return known
        if run in self._owners:
            return self._owners[run]
        try:
            found = (await self._log.get_run(run)).get("principal")
        except NotFound:
            found = None
        except OmniError:
            self._wake_all()
            return None
        if len(self._owners) >= OWNERS_KEPT:
            self._owners.clear()
        self._owners[run] = found
        return found

    def _wake_all(self) -> None:
        for index in (self._by_run, self._by_principal):
            for group in index.values():
                for one in group:
                    one.woken.set()
