"""What the desk puts on record: each question, each decision once, and that an approval is used."""

from __future__ import annotations

import asyncio

from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.call import Call
from omni_mcp.contracts.errors import LogUnavailable, OmniError
from omni_mcp.contracts.events import ApprovalDecided, ApprovalRequested, ApprovalUsed, draft
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.policy import ApprovalFacts
from omni_mcp.contracts.ports import RunLog
from omni_mcp.engines.approvals.store import ApprovalStore, Decided
from omni_mcp.engines.approvals.store_thread import StoreThread

GATEWAY = "gateway"


class DeskRecord:
    """The approval events of the run log, kept in step with an `ApprovalStore`.

    Args:
        store: used in *thread* only.
    """

    def __init__(self, store: ApprovalStore, thread: StoreThread, log: RunLog) -> None:
        self._store = store
        self._thread = thread
        self._log = log
        self._recording = asyncio.Lock()

    async def question(self, asked: Approval, call: Call, parent: int | None) -> None:
        """Record what is asked.

        Raises:
            OmniError: it could not be recorded; the question is withdrawn.
        """
        payload = ApprovalRequested(
            approval=asked.id,
            rules=asked.rules,
            approvers=asked.approvers,
            definition_digest=asked.definition_digest,
            arguments_hmac=self._log.arguments_hmac(call.arguments),
            expires_at=iso_time(asked.expires_at_ns),
        )
        try:
            await self._log.append(call.run, draft(payload, actor=GATEWAY, call=call.id), parent=parent).durable()
        except OmniError:
            await self._thread.run(self._store.withdraw, [asked.id], note="the question could not be recorded")
            raise

    async def use(self, approval: Approval, call: Call, parent: int | None) -> ApprovalFacts:
        """Record that the one call of an approval begins; the approval is marked as used already.

        Raises:
            LogUnavailable: it could not be recorded; the approval is spent.
        """
        payload = ApprovalUsed(approval=approval.id)
        await self._log.append(call.run, draft(payload, actor=GATEWAY, call=call.id), parent=parent).durable()
        by = approval.decided_by or ""
        return ApprovalFacts(id=approval.id, by=by, arguments_digest=approval.arguments_digest)

    async def decisions(self, *, after_a_crash: bool = False) -> None:
        """Append every decision that the log has not got, also those that were made while no gateway ran.

        Raises:
            LogUnavailable: some are missing still; it can be tried again later.
        """
        async with self._recording:
            for decided in await self._thread.run(self._store.unrecorded):
                refused = False
                if not (after_a_crash and await self._is_on_record(decided)):
                    refused = not await self._record_decision(decided)
                await self._thread.run(self._store.mark_recorded, decided.approval.id, refused=refused)

    async def _is_on_record(self, decided: Decided) -> bool:
        """A crash between the log's commit and our mark must not record one decision twice."""
        for event in await self._log.find_call(decided.approval.call):
            if event.code == "approval_decided" and (event.payload or {}).get("approval") == decided.approval.id:
                return True
        return False

    async def _record_decision(self, decided: Decided) -> bool:
        """Append one decision; False if its run takes no more events (erased, full), so that it holds up no other.

        Raises:
            LogUnavailable: it can be tried again later.
        """
        approval = decided.approval
        by = approval.decided_by or GATEWAY
        payload = ApprovalDecided(
            approval=approval.id,
            decision=decided.decision,
            by=by,
            channel=decided.channel,
            note=approval.note,
        )
        actor = GATEWAY if decided.channel in ("clock", "gateway") else f'User::"{by}"'
        event = draft(payload, actor=actor, call=approval.call)
        try:
            await self._log.append(approval.run, event, parent=decided.parent_seq).durable()
        except LogUnavailable:
            raise
        except OmniError:
            return False
        return True
