"""The book of standing grants: those that count now, kept in memory, and their way onto the record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from omni_mcp.contracts.approval import StandingGrant
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import LogUnavailable, OmniError
from omni_mcp.contracts.events import StandingGranted, StandingRevoked, draft
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.manifest import Closed
from omni_mcp.contracts.policy import StandingFacts
from omni_mcp.contracts.ports import RunLog
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.approvals.standing_store import StandingStore, Step
from omni_mcp.engines.approvals.store_thread import StoreThread

MAX_AGE_S = 5.0  # a book that nobody could compare with the database for so long says nothing


class StandingBook:
    """The port `StandingGrants`. The desk keeps it current; what it does not know for certain is not a grant.

    Args:
        store: used in *thread* only.
        run: the gateway's own run, in which the giving and the revoking are recorded.
        now_ns: UTC nanoseconds since the epoch, as the store's.
        max_age_s: seconds after the last look beyond which nothing counts.
    """

    def __init__(
        self,
        store: StandingStore,
        thread: StoreThread,
        log: RunLog,
        *,
        run: str,
        now_ns: Callable[[], int] = time.time_ns,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        self._store = store
        self._thread = thread
        self._log = log
        self._run = run
        self._now_ns = now_ns
        self._max_age_s = max_age_s
        self._standing: tuple[StandingGrant, ...] = ()
        self._looked_s = float("-inf")

    def __len__(self) -> int:
        return len(self._standing)

    def find(self, principal: Principal, entry: Entry, hosts: Sequence[str] = ()) -> StandingFacts | None:
        """Return a grant that covers a call of *entry* by *principal* with *hosts* now; see the port."""
        if not self._standing or time.monotonic() - self._looked_s > self._max_age_s:
            return None
        now = self._now_ns()
        for grant in self._standing:
            if grant.stands_at(now) and grant.covers(principal, entry, hosts):
                return StandingFacts(id=grant.id, by=grant.given_by)
        return None

    async def open(self) -> None:
        """Record what was given and revoked while no gateway ran, and learn what counts.

        Raises:
            LogUnavailable: the record cannot be written.
        """
        await self._thread.run(self._store.purge)
        await self.record(after_a_crash=True)
        await self.refresh()

    async def refresh(self) -> None:
        """Learn from the database what counts now."""
        self._standing = await self._thread.run(self._store.standing)
        self.confirm()

    def confirm(self) -> None:
        """Nobody has written to the database since the last look."""
        self._looked_s = time.monotonic()

    def forget(self) -> None:
        """Let nothing count until the next `refresh`: the database cannot be asked."""
        self._standing = ()

    async def record(self, *, after_a_crash: bool = False) -> int:
        """Append what the log has not got; returns how many steps it has got now.

        A step that the run takes no more (it is full) holds up no other and is tried again later: what is not on
        record does not count.

        Raises:
            LogUnavailable: it can be tried again later.
        """
        done = 0
        for step, grant in await self._thread.run(self._store.unrecorded):
            if not (after_a_crash and await self._is_on_record(step, grant)) and not await self._append(step, grant):
                continue
            await self._thread.run(self._store.mark_recorded, grant.id, step)
            done += 1
        return done

    async def _is_on_record(self, step: Step, grant: StandingGrant) -> bool:
        """A crash between the log's commit and our mark must not record one step twice."""
        code = type(_payload(step, grant)).model_fields["code"].default
        found = await self._log.search(f"{code} {grant.id}")
        return any(event.code == code and (event.payload or {}).get("grant") == grant.id for event in found)

    async def _append(self, step: Step, grant: StandingGrant) -> bool:
        by = grant.given_by if step == "given" else grant.revoked_by
        try:
            await self._log.append(self._run, draft(_payload(step, grant), actor=f'User::"{by}"')).durable()
        except LogUnavailable:
            raise
        except OmniError:
            return False
        return True


def _payload(step: Step, grant: StandingGrant) -> Closed:
    if step == "revoked":
        return StandingRevoked(
            grant=grant.id, by=grant.revoked_by or "", revoked_at=iso_time(grant.revoked_at_ns or grant.given_at_ns)
        )
    return StandingGranted(
        grant=grant.id,
        by=grant.given_by,
        principal=grant.principal,
        project=grant.project,
        server=grant.server,
        tool=grant.tool,
        definitions=grant.definitions,
        hosts=grant.hosts,
        given_at=iso_time(grant.given_at_ns),
        expires_at=iso_time(grant.expires_at_ns),
        note=grant.note,
    )
