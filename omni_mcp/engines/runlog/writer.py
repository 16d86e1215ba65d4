"""The writer: a bounded queue, and one thread that commits whatever is queued as one group.

While one group is on its way to the disk the next one gathers, so the number of commits follows the speed of the disk
and not the number of callers. When a group fails, everything in it fails; nothing is tried again behind the callers'
backs, except outcomes of what was dispatched already: those wait in the backlog and go first when the log is back.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from omni_mcp.contracts.errors import LogUnavailable, OmniError
from omni_mcp.engines.runlog.connection import BUSY_TIMEOUT_S
from omni_mcp.engines.runlog.housekeeper import Housekeeper
from omni_mcp.engines.runlog.ledger import Entry, Ledger, Notice
from omni_mcp.engines.runlog.signal import Signal
from omni_mcp.short_turns import take_short_turns

QUEUE_EVENTS = 8192
QUEUE_BYTES = 64 * 1024 * 1024
BACKLOG_EVENTS = 4096
BACKLOG_BYTES = 64 * 1024 * 1024
RETRY_S = 0.5  # how often writing is tried, while it fails or outcomes wait, when nothing else is written
BUSY_TIMEOUT_UNAVAILABLE_S = 0.1  # who comes while the log is known to be locked does not wait for it once more
LINGER_BELOW_EVENTS = 64  # a group of so many is worth a commit at once
MANY_EVENTS = 4  # from here on they are of several calls
LINGER_S = 0.004  # the loop's time to run its callers to their next wait: at most this late is what is queued already
IDLE_S = 0.1  # after so long without an event the search index is brought up to date, and sheets are made
SHEET_EVERY_S = 2.0  # one takes some milliseconds: so often at most while events keep coming
WAL_PAGES = 4096  # 16 MiB: so long it gets at most where the housekeeper does not come to the end of it

T = TypeVar("T")


class Writer:
    """Runs a ledger in a thread of its own.

    Args:
        ledger: used by that thread only, from `start` to the end of `close`.
        housekeeper: hears of the newest head; ended by that thread.
        on_commit: called in the event loop, once for each commit.
    """

    def __init__(self, ledger: Ledger, housekeeper: Housekeeper, on_commit: Callable[[list[Notice]], None]) -> None:
        self._ledger = ledger
        self._housekeeper = housekeeper
        self._on_commit = on_commit
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Entry] = deque()
        self._jobs: deque[Callable[[], None]] = deque()
        self._bytes = 0
        self._guard = threading.Lock()
        self._wake = Signal()
        self._rests = False  # nobody but the next caller wakes the thread
        self._sleeps = False  # and without one it does not look by itself
        self._dozes = False  # it wrote a moment ago, and will look by itself once before it sleeps
        self._callers_run = False  # the loop is running callers that may queue more; it wakes the thread behind them
        self._closing = False
        self._backlog: deque[Entry] = deque()
        self._backlog_bytes = 0
        self._index_failed = False
        self._copies_failed = False
        self._next_sheet_s = 0.0
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="run-log-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._housekeeper.start()
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether the last write succeeded, no outcome waits for a better time, and the queue takes more."""
        return not self._failing and not self._backlog and not self._is_full(0)

    @property
    def anchor_problem(self) -> str:
        """Why the newest head could not be anchored, or nothing."""
        return self._housekeeper.problem

    async def close(self) -> None:
        """Write what is queued, then end. What cannot be written is refused."""
        self._closing = True
        self._wake.set()
        while self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 1.0)

    def put(self, entry: Entry) -> None:
        """Queue *entry*. A full queue fails its ticket; an outcome then waits in the backlog instead."""
        size = entry.size
        with self._guard:
            full = self._is_full(size)
            if not full and not self._closing:
                self._queue.append(entry)
                self._bytes += size
        if full or self._closing:
            self._refuse_at_once(entry, "the queue of the run log is full" if full else "the run log is closing")
        elif self._rests:
            self._rests = False
            self._callers_run = True
            self._loop.call_soon(self._look_again, len(self._queue))  # what is queued next is in the same group
            if self._sleeps:
                self._wake.set()  # now, because this caller may not give the loop its turn back

    def _look_again(self, known: int) -> None:
        """Wait another turn of the loop while many callers run and each turn queues more: they share a commit."""
        now = len(self._queue)
        if now > known and now >= MANY_EVENTS:
            self._loop.call_soon(self._look_again, now)
            return
        self._callers_run = False
        self._rests = not now
        if now:
            self._wake.set()

    async def call(self, work: Callable[[Ledger], T]) -> T:
        """Run *work* in the writer's thread, between two groups."""
        done: asyncio.Future[T] = self._loop.create_future()

        def job() -> None:
            try:
                result = work(self._ledger)
            except BaseException as error:
                self._loop.call_soon_threadsafe(_fail, done, error)
            else:
                self._loop.call_soon_threadsafe(_finish, done, result)

        if self._closing:
            raise LogUnavailable("the run log is closing")
        self._jobs.append(job)
        self._wake.set()
        return await done

    def _is_full(self, more_bytes: int) -> bool:
        return len(self._queue) >= QUEUE_EVENTS or self._bytes + more_bytes > QUEUE_BYTES

    def _refuse_at_once(self, entry: Entry, why: str) -> None:
        entry.ticket.error = LogUnavailable("the run log cannot be written", detail=why)
        entry.ticket.settle()
        if entry.outcome:
            self._keep(entry)

    def _work(self) -> None:
        take_short_turns()
        self._ledger.checkpoint_from(WAL_PAGES)
        while True:
            idle = self._gather()
            group = self._take()
            if group or self._backlog:
                self._write(group)
            elif self._failing:
                self._probe()
            elif idle:
                self._index_if_idle()
            self._make_copies(idle=idle)
            while self._jobs:
                self._jobs.popleft()()
            self._housekeeper.look(self._ledger.head, self._ledger.commits)
            if self._closing and not self._queue and not self._jobs:
                self._index_if_idle()
                self._housekeeper.look(self._ledger.head, self._ledger.commits)
                self._housekeeper.close()
                return

    def _gather(self) -> bool:
        """Wait for events, then for the callers that are about to queue more; True if there was nothing for long."""
        idle = False
        if not self._callers_run:
            patience = self._patience()
            self._sleeps = patience is None
            self._rests = True
            idle = not self._queue and not self._wake.wait(patience)
            self._rests = False
        self._dozes = self._dozes and not idle
        while self._callers_run and len(self._queue) < LINGER_BELOW_EVENTS:
            if not self._wake.wait(LINGER_S):
                self._callers_run = False  # the loop is held up; what it queued does not wait for it
        return idle

    def _patience(self) -> float | None:
        if self._backlog or self._failing:
            return RETRY_S
        if self._ledger.index_is_behind and not self._index_failed:
            return IDLE_S
        if (self._ledger.sheets.is_due or self._ledger.filters.is_due) and not self._copies_failed:
            return IDLE_S
        return IDLE_S if self._dozes else None

    def _take(self) -> list[Entry]:
        with self._guard:
            group = list(self._queue)
            self._queue.clear()
            self._bytes = 0
        return group

    def _write(self, group: list[Entry]) -> None:
        self._dozes = True
        waiting = list(self._backlog)
        try:
            notices = self._ledger.write([*waiting, *group])
        except OmniError as error:
            self._stands(failing=True)
            self._refuse(group, LogUnavailable("the run log cannot be written", detail=error.detail))
            return
        except BaseException as error:
            self._stands(failing=True)
            self._refuse(group, LogUnavailable("the run log cannot be written", detail=repr(error)))
            return
        self._stands(failing=False)
        with self._guard:
            for _ in waiting:
                self._backlog_bytes -= self._backlog.popleft().size
        self._index_failed = self._copies_failed = False
        self._tell(group, notices)
        self._ledger.read_words()  # while their callers go on

    def _probe(self) -> None:
        """Find out whether the log can be written again, though nobody asks for anything."""
        try:
            self._ledger.probe()
        except OmniError:
            return
        self._stands(failing=False)

    def _stands(self, *, failing: bool) -> None:
        """Note whether the log can be written. While it cannot, each attempt waits a moment only for its lock."""
        if failing != self._failing:
            self._failing = failing
            self._ledger.wait_for_lock(BUSY_TIMEOUT_UNAVAILABLE_S if failing else BUSY_TIMEOUT_S)

    def _refuse(self, group: list[Entry], error: LogUnavailable) -> None:
        for entry in group:
            entry.ticket.error = error
            if entry.outcome:
                self._keep(entry)
        self._tell(group, [])

    def _keep(self, entry: Entry) -> None:
        """Keep an outcome for later. Beyond the caps it is given up: the next start records `outcome_unknown`."""
        with self._guard:
            if len(self._backlog) < BACKLOG_EVENTS and self._backlog_bytes + entry.size <= BACKLOG_BYTES:
                self._backlog.append(entry)
                self._backlog_bytes += entry.size

    def _tell(self, group: list[Entry], notices: list[Notice]) -> None:
        """Hand over to the event loop, once for the whole group."""

        def settle() -> None:
            for entry in group:
                entry.ticket.settle()
            if notices:
                self._on_commit(notices)
            self._loop.call_soon(self._look_again, 0)  # behind the callers that were just woken

        self._callers_run = True
        self._loop.call_soon_threadsafe(settle)

    def _index_if_idle(self) -> None:
        if self._ledger.index_is_behind:
            try:
                self._ledger.index()
            except OmniError as error:
                self._index_failed = True  # nothing is lost: search reads past it. Tried again after the next event
                if isinstance(error, LogUnavailable):
                    self._stands(failing=True)

    def _make_copies(self, *, idle: bool) -> None:
        """Make what is due while nobody waits; a sheet now and then while the log is busy."""
        ledger = self._ledger
        try:
            while self._is_free and ledger.sheets.is_due and (idle or time.monotonic() >= self._next_sheet_s):
                self._next_sheet_s = time.monotonic() + SHEET_EVERY_S
                ledger.make_sheet()
            while self._is_free and idle and ledger.filters.is_due:
                ledger.make_filter()
        except OmniError:
            self._copies_failed = True  # nothing is lost: readers go the longer way. Tried again after the next event

    @property
    def _is_free(self) -> bool:
        """Whether nobody waits for the log, and it is as it should be."""
        waited_for = self._queue or self._jobs or self._backlog
        return not waited_for and not self._closing and not self._failing and not self._copies_failed


def _finish(done: asyncio.Future[T], result: T) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[T], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
