"""Permission: asks the policy about a request that is no call; a refusal is on record in the caller's run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from omni_mcp.chain.decide import ACTIONS
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.events import AccessRefusedEvent
from omni_mcp.contracts.json import digest
from omni_mcp.contracts.ports import Catalog, Policy
from omni_mcp.contracts.tool import CallKind, Entry
from omni_mcp.serving.calls import Asked, RunOf
from omni_mcp.serving.refusals import Refusals

EMPTY_DIGEST = digest({})

MaySee = Callable[[Principal, Entry, str], Awaitable[bool]]


async def everybody(principal: Principal, entry: Entry, uri: str) -> bool:
    """For resources that are the same for every principal."""
    return True


class Permission:
    """Says whether a request that names a target may go on."""

    def __init__(self, catalog: Catalog, policy: Policy, refusals: Refusals, *, run_of: RunOf) -> None:
        self._catalog = catalog
        self._policy = policy
        self._refusals = refusals
        self._run_of = run_of

    async def given(
        self, asked: Asked, kind: CallKind, name: str, entry: Entry | None = None, *, may_see: MaySee = everybody
    ) -> bool:
        """Ask the policy; a quarantined target is unknown, as it is to calls.

        Raises:
            LogUnavailable, QuotaExceeded: the refusal cannot be recorded.
        """
        session = asked.session
        found = entry or self._catalog.find(session.profile, kind, name, project=session.principal.project)
        if found is not None and found.state in ("quarantined", "pin_missing"):
            found = None
        async with self._run_of(asked) as run:
            decision = self._policy.decide(
                action=ACTIONS[kind], principal=session.principal, entry=found, name=name, run=run,
                arguments_digest=EMPTY_DIGEST, arguments_bytes=2,
            )  # fmt: skip
            allowed = decision.verdict == "allow" and found is not None
            if allowed and found is not None and await may_see(session.principal, found, name):
                return True
            detail = "; ".join(decision.errors) or ("unknown target" if found is None else decision.verdict)
            detail = "not the caller's" if allowed else detail
            refusal = AccessRefusedEvent(
                method=asked.method, target=name, principal=session.principal.key, rules=decision.rules, detail=detail
            )
            await self._refusals.note(run, session.transport, refusal)
            return False
