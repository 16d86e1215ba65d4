"""Erasing what a forgotten item left behind: events, artifacts and questions of every call that carried its text.

The eraser has a ledger and connections of its own, as the command line's has, so that it works beside a gateway and
inside one. A call that is still under way is waited for: what it writes at its end would outlive the erasure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from omni_mcp.contracts.errors import OmniError
from omni_mcp.contracts.events import OUTCOME_KINDS
from omni_mcp.contracts.ports import MemoryStore, RunLog
from omni_mcp.engines.approvals.store import ApprovalStore
from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.engines.runlog.erase import Eraser, refuse_missing
from omni_mcp.engines.runlog.reserve import Reserve
from omni_mcp.engines.runlog.store import open_ledger
from omni_mcp.engines.state.database import open_state
from omni_mcp.paths import Home

WAIT_S = 10.0
RETRY_S = 600.0
NO_QUOTA = 2**62  # the `erased` event is never refused for a run's length
REASON = "what the memory forgot"

CallKey = tuple[str, str]  # run, call


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsErased:
    """What became of calls whose texts had to go. `clean` False: old pages may still be in a write-ahead log."""

    done: tuple[CallKey, ...] = ()
    still_open: tuple[CallKey, ...] = ()
    events: int = 0
    artifacts: int = 0
    clean: bool = True


@contextmanager
def open_eraser(home: Home, *, by: str) -> Iterator[Eraser]:
    """Open an eraser on the log of *home*; *by* is whom the `erased` events name.

    Raises:
        LogUnavailable: there is no log, or it cannot be written.
    """
    refuse_missing(home.log_file)
    ledger = open_ledger(home.log_file, home.secrets, events_per_run=NO_QUOTA).ledger
    try:
        blobs = BlobStore(home.artifacts)
        try:
            yield Eraser(ledger, home.log_file, blobs, by=by)
        finally:
            blobs.close()
    finally:
        ledger.connection.close()


def erase_calls(home: Home, calls: Iterable[CallKey], *, by: str, reason: str = REASON) -> CallsErased:
    """Erase the texts of *calls* wherever they stand, except of those that are under way. Blocks.

    Raises:
        LogUnavailable: it could not be done; what was done stays done.
    """
    wanted = list(dict.fromkeys(calls))
    if not wanted:
        return CallsErased()
    with Reserve(home.data).released(), open_eraser(home, by=by) as eraser:
        still_open = eraser.open_among(wanted)
        ready = tuple(call for call in wanted if call not in set(still_open))
        done = eraser.erase_calls(ready, reason=reason)
        clean = _forget_questions(home, ready) and done.wal_truncated
    return CallsErased(
        done=ready, still_open=tuple(still_open), events=done.events, artifacts=len(done.artifacts), clean=clean
    )


def _forget_questions(home: Home, calls: Sequence[CallKey]) -> bool:
    """A question shows a person the arguments of its call, so it goes with the call."""
    if not home.state_file.exists():
        return True
    store = ApprovalStore(open_state(home.state_file))
    try:
        cut = True
        for run, call in calls:
            cut = store.erase_run(run, call)
        return cut
    finally:
        store.close()


class Forgetting:
    """Empties the store's list of calls to erase, in the gateway's process.

    What cannot be erased now (a call under way, a log that is locked) stays on that list and is tried again.
    """

    def __init__(self, store: MemoryStore, log: RunLog, home: Home) -> None:
        self._store = store
        self._log = log
        self._home = home
        self._one_at_a_time = asyncio.Lock()
        self._later: asyncio.Task[None] | None = None

    async def finish(self, *, by: str, wait_s: float = WAIT_S) -> CallsErased:
        """Erase everything on the list, waiting at most *wait_s* for calls that are under way.

        Raises:
            LogUnavailable: it could not be done now; it is tried again.
        """
        try:
            async with self._one_at_a_time:
                found = await self._finish(by, time.monotonic() + wait_s)
        except (OmniError, asyncio.CancelledError):
            self.finish_later()
            raise
        if found.still_open or not found.clean:
            self.finish_later()
        return found

    def finish_later(self) -> None:
        """Go on in the background, unless that happens already."""
        if self._later is None or self._later.done():
            self._later = asyncio.create_task(self._in_background(), name="forgetting")

    async def close(self) -> None:
        """Stop; the list stays for the next start."""
        if self._later is not None:
            self._later.cancel()
            await asyncio.wait({self._later})

    async def _in_background(self) -> None:
        try:
            async with self._one_at_a_time:
                await self._finish("gateway", time.monotonic() + RETRY_S)
        except OmniError as fault:
            structlog.get_logger("omni_mcp").error("what was forgotten is not erased yet", problem=fault.detail)

    async def _finish(self, by: str, deadline_s: float) -> CallsErased:
        events = artifacts = 0
        done: tuple[CallKey, ...] = ()
        while True:
            commits = self._log.subscribe()  # before looking: an outcome that comes between wakes us up
            calls = await self._store.to_erase()
            found = await asyncio.to_thread(erase_calls, self._home, calls, by=by)
            if found.clean and found.done:
                await self._store.erased(found.done)
            events, artifacts, done = events + found.events, artifacts + found.artifacts, (*done, *found.done)
            told = CallsErased(
                done=done, still_open=found.still_open, events=events, artifacts=artifacts, clean=found.clean
            )
            if not found.still_open:
                return told
            try:
                async with asyncio.timeout(deadline_s - time.monotonic()):
                    await self._ended(found.still_open, commits)
            except TimeoutError:
                return told

    async def _ended(self, calls: Sequence[CallKey], commits: AsyncIterator[tuple[str, int, bool]]) -> None:
        """Return when one of *calls* has its outcome."""
        runs = {run for run, _ in calls}
        while True:
            for _, call in calls:
                if any(event.kind in OUTCOME_KINDS for event in await self._log.find_call(call)):
                    return
            while (await anext(commits))[0] not in runs:
                pass
