"""The desk keeps a call waiting while a person decides, and lets each yes through exactly once."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.call import Call, Durable, Question
from omni_mcp.contracts.errors import (
    LogUnavailable,
    NotAllowed,
)
from omni_mcp.contracts.policy import ApprovalFacts
from omni_mcp.contracts.ports import Masker, RunLog
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.approvals.question import question_about, raise_refusal, still_pending
from omni_mcp.engines.approvals.record import DeskRecord
from omni_mcp.engines.approvals.standing import StandingBook
from omni_mcp.engines.approvals.standing_store import StandingStore
from omni_mcp.engines.approvals.store import MAX_OPEN, MAX_OPEN_PER_PRINCIPAL, ApprovalStore, Channel
from omni_mcp.engines.approvals.store_thread import StoreThread

WAIT_S = 120.0
POLL_S = 0.15  # a revocation counts within 200 ms, the look and a busy machine included
IDLE_POLL_S = 0.5
ABANDONED = "the call that asked was cancelled, or its client left"


@dataclass(slots=True, eq=False)
class _Waiter:
    """One call that waits for one question."""

    call: Call
    answered: asyncio.Future[Approval] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class ApprovalDesk:
    """The port `Desk` on an `ApprovalStore`. Use it as a context manager.

    Answers, and standing grants that are given or revoked, are found by polling, so `omni-mcp approvals approve ID` in
    another process needs no connection to us.

    Args:
        store: from here on used in *thread* only; `close` closes both.
        standing: on the same connection and thread; kept current from `open` to `close`.
        masker: takes secrets out of the arguments that a person is shown.
        now_ns: UTC nanoseconds since the epoch, as the store's.
        wait_s: seconds for which a caller is kept, unless the question says otherwise.
        poll_s: seconds between looks while somebody waits or a standing grant counts; `idle_poll_s` otherwise.
    """

    def __init__(
        self,
        store: ApprovalStore,
        thread: StoreThread,
        standing: StandingBook,
        log: RunLog,
        masker: Masker,
        *,
        now_ns: Callable[[], int] = time.time_ns,
        wait_s: float = WAIT_S,
        poll_s: float = POLL_S,
        idle_poll_s: float = IDLE_POLL_S,
    ) -> None:
        self.standing = standing
        self._store = store
        self._thread = thread
        self._log = log
        self._masker = masker
        self._record = DeskRecord(store, thread, log)
        self._now_ns = now_ns
        self._wait_s = wait_s
        self._poll_s = poll_s
        self._idle_poll_s = idle_poll_s
        self._waiting: dict[str, list[_Waiter]] = {}
        self._look_now = asyncio.Event()
        self._recheck_wanted: Callable[[], Awaitable[object]] | None = None
        self._seen_version = -1
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._abandoned: set[str] = set()  # questions whose last waiting call was cancelled
        self._leaves_open = False

    async def open(self) -> None:
        """Record what was decided while no gateway ran, then watch for answers.

        Raises:
            LogUnavailable: the record cannot be written.
        """
        await self._thread.run(self._store.purge)
        await self._thread.run(self._store.expire_due)
        await self._record.decisions(after_a_crash=True)
        await self.standing.open()
        self._task = asyncio.create_task(self._watch(), name="approvals")

    async def close(self) -> None:
        """End every wait (the questions stay open) and close the store.

        Raises:
            Exception: what ended the watching, if something did.
        """
        self._closing = True
        self._look_now.set()
        try:
            if self._task is not None:
                await self._task
        finally:
            self._end_waits(None)
            self.standing.forget()
            await self._thread.run(self._store.close)
            self._thread.close()

    async def __aenter__(self) -> ApprovalDesk:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def pending(self) -> int:
        """How many calls wait here for a person."""
        return sum(len(waiters) for waiters in self._waiting.values())

    async def ask(self, call: Call, question_rules: tuple[str, ...], policy_version: str) -> ApprovalFacts:
        """Ask about exactly this call and wait; see the port.

        Raises:
            ApprovalPending, ApprovalDenied, ApprovalExpired: as they say; withdrawn questions count as expired.
            RateLimited: too many questions are open.
            LogUnavailable: the question or its use could not be kept or recorded; an approval that was taken is spent.
        """
        if call.tool is None:
            raise NotAllowed(call.name, detail="nobody is asked about what the catalog does not hold")
        try:
            return await self._ask(call, call.tool, question_rules, policy_version)
        except sqlite3.OperationalError as error:
            raise LogUnavailable("the question cannot be kept just now; try again", detail=str(error)) from error

    async def _ask(
        self, call: Call, tool: Entry, question_rules: tuple[str, ...], policy_version: str
    ) -> ApprovalFacts:
        question = call.question or Question(rules=question_rules)
        parent = await _seq(call.parent)
        keep_s = self._wait_s if question.wait_s is None else question.wait_s
        deadline = asyncio.get_running_loop().time() + keep_s
        while True:
            wanted = question_about(
                call,
                tool,
                question,
                question_rules,
                policy_version,
                log=self._log,
                masker=self._masker,
                now_ns=self._now_ns(),
            )
            again = call.round is not None
            asked = wanted
            try:
                claim = await self._thread.run(
                    self._store.claim, wanted, parent_seq=parent, again=again, alone=call.replayed
                )
                asked = claim.approval
                await self._record.decisions()
                if claim.outcome == "taken":
                    return await self._record.use(asked, call, parent)
                if claim.outcome == "opened":
                    await self._record.question(wanted, call, parent)
                answered = await self._wait(asked, call, deadline)
            except asyncio.CancelledError:
                self._abandon(asked.id)
                raise
            await self._record.decisions()  # the answer stands in the log before its use, or its refusal
            if answered.state == "approved" and await self._thread.run(self._store.use, answered.id, call.id):
                return await self._record.use(answered, call, parent)
            if answered.state == "withdrawn" and answered.note == ABANDONED:
                continue  # another call asked this, and was cancelled when this one came
            raise_refusal(answered)
            # Approved, but an identical call took it first: one approval, one call; so this one is asked about anew.

    def leave_open(self) -> None:
        """The gateway stops: what it cancels from now on may be sent again to the next one, after the answer."""
        self._leaves_open = True

    def _abandon(self, question: str) -> None:
        """A call that waited was cancelled: with the next look, what nobody waits for any more is withdrawn."""
        if not self._leaves_open:
            self._abandoned.add(question)
            self._look_now.set()

    async def _withdraw_abandoned(self) -> None:
        abandoned = set(self._abandoned)
        if gone := abandoned - self._waiting.keys():
            await self._thread.run(self._store.withdraw, sorted(gone), note=ABANDONED)
            self._seen_version = -1
        self._abandoned -= abandoned

    async def open_questions(self, *, project: str | None = None) -> list[Approval]:
        """Return what waits, oldest first."""
        return await self._thread.run(self._store.open_questions, project=project)

    async def decide(
        self, approval_id: str, *, by: str, approve: bool, channel: Channel, note: str | None = None
    ) -> Approval:
        """Answer a question from inside this process; see `ApprovalStore.decide`."""
        answer = await self._thread.run(
            self._store.decide, approval_id, by=by, approve=approve, note=note, channel=channel
        )
        self._seen_version = -1
        self._look_now.set()
        return answer

    async def recheck(
        self, policy_version: str, still_asks: Callable[[Call], bool], is_current: Callable[[Approval], bool]
    ) -> tuple[str, ...]:
        """Look at every open question again after the policy or a definition changed.

        Args:
            policy_version: the version in force now.
            still_asks: decides a waiting call again; True if a person still has to answer.
            is_current: whether the definition that a question is about still stands.

        Returns:
            The ids that were withdrawn. A question that nobody waits for is withdrawn if it was asked under another
            version or about another definition: an answer to it would be good for nothing.
        """
        keep: list[str] = []
        drop: list[str] = []
        for one in await self._thread.run(self._store.open_questions):
            calls = [waiter.call for waiter in self._waiting.get(one.id, [])]
            if calls:
                asks = all(still_asks(call) for call in calls)
            else:
                asks = one.policy_version == policy_version and is_current(one)
            (keep if asks else drop).append(one.id)
        await self._thread.run(self._store.rebind, keep, policy_version)
        note = "the policy or the definition changed"
        gone = await self._thread.run(self._store.withdraw, drop, note=note)
        self._seen_version = -1
        self._look_now.set()
        return tuple(gone)

    def recheck_soon(
        self, policy_version: str, still_asks: Callable[[Call], bool], is_current: Callable[[Approval], bool]
    ) -> None:
        """Have `recheck` done with the next look, which is now: for those who cannot wait."""
        self._recheck_wanted = lambda: self.recheck(policy_version, still_asks, is_current)
        self._look_now.set()

    async def _wait(self, asked: Approval, call: Call, deadline: float) -> Approval:
        """Wait until the question is closed.

        Raises:
            ApprovalPending: the wait is over first, or the gateway stops.
        """
        waiter = _Waiter(call)
        self._waiting.setdefault(asked.id, []).append(waiter)
        self._seen_version = -1  # it may be answered already
        self._look_now.set()
        try:
            if self._closing or (self._task is not None and self._task.done()):
                raise still_pending(asked)
            async with asyncio.timeout_at(deadline):
                return await waiter.answered
        except TimeoutError:
            raise still_pending(asked) from None
        finally:
            self._waiting[asked.id].remove(waiter)
            if not self._waiting[asked.id]:
                del self._waiting[asked.id]

    async def _watch(self) -> None:
        try:
            while not self._closing:
                self._look_now.clear()
                try:
                    await self._recheck_if_wanted()
                    if self._abandoned:
                        await self._withdraw_abandoned()
                    await self._look()
                except LogUnavailable:
                    # Nobody is woken by an answer that is not on record: they wait on, and the next look tries again.
                    self._seen_version = -1
                except sqlite3.OperationalError:
                    self._seen_version = -1
                    self.standing.forget()  # a revocation could be what cannot be read
                soon = self._waiting or len(self.standing) or self._seen_version == -1
                pause_s = self._poll_s if soon else self._idle_poll_s
                try:
                    async with asyncio.timeout(pause_s):
                        await self._look_now.wait()
                except TimeoutError:
                    continue
        except Exception as error:
            self.standing.forget()
            self._end_waits(error)
            raise

    async def _recheck_if_wanted(self) -> None:
        if (wanted := self._recheck_wanted) is not None:
            await wanted()
            if self._recheck_wanted is wanted:
                self._recheck_wanted = None

    async def _look(self) -> None:
        """Look once: what is revoked counts no more; then expire, record what was decided, and wake who waits for it;
        then record what was given, which counts from then on."""
        version = await self._thread.run(self._store.data_version)
        changed, self._seen_version = version != self._seen_version, version
        if changed:
            await self.standing.refresh()
        self.standing.confirm()
        expired = await self._thread.run(self._store.expire_due)
        if not expired and not changed:
            return
        await self._record.decisions()
        await self._wake()
        if await self.standing.record():
            await self.standing.refresh()

    async def _wake(self) -> None:
        states = await self._thread.run(self._store.states, tuple(self._waiting))
        for one, waiters in list(self._waiting.items()):
            found = states.get(one)
            if found is None or found.state == "pending":
                continue
            for waiter in waiters:
                if not waiter.answered.done():
                    waiter.answered.set_result(found)

    def _end_waits(self, error: Exception | None) -> None:
        for waiters in list(self._waiting.values()):
            for waiter in waiters:
                if not waiter.answered.done():
                    waiter.answered.set_exception(error if error is not None else TimeoutError())


@asynccontextmanager
async def open_desk(
    connection: sqlite3.Connection,
    *,
    log: RunLog,
    masker: Masker,
    gateway_run: str,
    now_ns: Callable[[], int] = time.time_ns,
    wait_s: float = WAIT_S,
    max_open_per_principal: int = MAX_OPEN_PER_PRINCIPAL,
    max_open: int = MAX_OPEN,
) -> AsyncIterator[ApprovalDesk]:
    """Open the desk on a state database of its own connection (`engines/state/database.open_state`), which it closes.

    Open it after the run log and close it before. What people grant in advance is recorded in *gateway_run*.
    """
    store = ApprovalStore(connection, now_ns=now_ns, max_open_per_principal=max_open_per_principal, max_open=max_open)
    thread = StoreThread()
    standing = StandingBook(
        StandingStore(connection, now_ns=now_ns), thread, log, run=gateway_run, now_ns=now_ns
    )  # fmt: skip
    async with ApprovalDesk(store, thread, standing, log, masker, now_ns=now_ns, wait_s=wait_s) as desk:
        yield desk


async def _seq(parent: Durable | int | None) -> int | None:
    """Return the number of the event that a call's events name as their parent, once it is on disk."""
    return parent if parent is None or isinstance(parent, int) else await parent.durable()
