"""Access: whether a route is allowed to its caller, by the rules of the tool that does the same, and what was read."""

from __future__ import annotations

from collections.abc import Callable

from omni_mcp.chain.decide import ACTIONS
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import AccessRefused, Frozen
from omni_mcp.contracts.events import AccessRefusedEvent, LogRead, draft
from omni_mcp.contracts.json import digest
from omni_mcp.contracts.ports import Catalog, Policy, RunLog
from omni_mcp.serving.api.routes import Decided
from omni_mcp.serving.refusals import Refusals

EMPTY_DIGEST = digest({})


class Access:
    """Asks the policy and writes both kinds of answer down, in the gateway's own run."""

    def __init__(
        self, catalog: Catalog, policy: Policy, log: RunLog, refusals: Refusals, *, gateway_run: str,
        is_frozen: Callable[[str], bool] = lambda project: False,
    ) -> None:  # fmt: skip
        self._catalog = catalog
        self._policy = policy
        self._log = log
        self._refusals = refusals
        self._gateway_run = gateway_run
        self._is_frozen = is_frozen

    @property
    def policy_version(self) -> str:
        """Changes with everything that decides."""
        return self._policy.version

    def allows(self, principal: Principal, like: Decided) -> bool:
        """Whether *principal* may do now what *like* does. What a person would be asked about is not allowed here."""
        return self._decide(principal, like)[0]

    async def check(self, principal: Principal, like: Decided, *, method: str) -> None:
        """Return if it is allowed.

        Raises:
            AccessRefused: it is not, and that is on record.
            LogUnavailable: it is not, and that cannot be recorded.
            Frozen: an operator stopped the project.
        """
        if self._is_frozen(principal.project):
            raise Frozen(f"project {principal.project!r} is frozen")
        allowed, rules, detail = self._decide(principal, like)
        if allowed:
            return
        refusal = AccessRefusedEvent(
            method=method, target="/".join(like[1:]), principal=principal.key, rules=rules, detail=detail
        )
        await self._refusals.note(self._gateway_run, "http", refusal)
        raise AccessRefused(f"{method} is not available to you", detail=detail)

    async def note_reading(self, principal: Principal, what: str) -> None:
        """Put on record that the log is read; nobody is told, so that reading does not feed itself.

        Raises:
            LogUnavailable: it cannot be recorded, so it is not read.
        """
        read = draft(LogRead(reader=principal.key, what=what), actor=principal.key)
        await self._log.append(self._gateway_run, read, quiet=True).durable()

    def _decide(self, principal: Principal, like: Decided) -> tuple[bool, tuple[str, ...], str]:
        kind, server, name = like
        entry = self._catalog.get("resource_template" if "{" in name else kind, server, name)
        decision = self._policy.decide(
            action=ACTIONS[kind], principal=principal, entry=entry, name=name, run=self._gateway_run,
            arguments_digest=EMPTY_DIGEST, arguments_bytes=2,
        )  # fmt: skip
        detail = "; ".join(decision.errors) or decision.verdict
        return decision.verdict == "allow", decision.rules, detail
