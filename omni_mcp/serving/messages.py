"""Messages: what a client reports of its conversation, into its own open run and nothing else into it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from omni_mcp.contracts.api import MessageDraft
from omni_mcp.contracts.call import Durable, Principal
from omni_mcp.contracts.errors import BadRequest, Conflict, NotFound, RateLimited
from omni_mcp.contracts.events import Message, draft
from omni_mcp.contracts.json import canonical
from omni_mcp.contracts.ports import RunLog
from omni_mcp.serving.runbook import Runbook

MESSAGES_PER_MINUTE = 1200  # of one principal: an answer that is typed out in twenty pieces a second
CHARS_PER_MINUTE = 4 * 1024 * 1024
MODEL_LIMIT_BYTES = 4096
PRINCIPALS_KEPT = 10_000
NO_RUN = "there is no such run of yours"


class Messages:
    """Stores conversation events. Numbers and times come from the log."""

    def __init__(
        self, log: RunLog, runbook: Runbook, *, messages_per_minute: int = MESSAGES_PER_MINUTE,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._log = log
        self._runbook = runbook
        self._per_minute = messages_per_minute
        self._now_s = now_s
        self._budgets: dict[str, _Budget] = {}

    async def store(
        self, principal: Principal, run: str, drafts: Sequence[MessageDraft], *, call: str | None = None,
        parent: Durable | int | None = None,
    ) -> list[int]:  # fmt: skip
        """Append *drafts* in their order and return their seqs once all are durable.

        Args:
            call: of the tool by which they come, and *parent* what it followed from.

        Raises:
            NotFound: there is no such run of the principal's.
            Conflict: the run is closed.
            BadRequest: what is said of the model is too long.
            RateLimited: more than may come in a minute.
            QuotaExceeded, LogUnavailable: not all of them could be stored.
        """
        for one in drafts:
            if one.model is not None and len(canonical(one.model)) > MODEL_LIMIT_BYTES:
                raise BadRequest(f"a model is described in at most {MODEL_LIMIT_BYTES} bytes", data={"path": "$.model"})
        if self._runbook.owner_of(run) != principal.key:
            raise await self._why_not(principal, run)
        self._budget_of(principal.key).take(drafts, self._now_s())
        tickets = [
            self._log.append(
                run,
                draft(Message(text=one.text, author=one.author, model=one.model), actor=principal.key, call=call,
                      kind=one.kind),
                parent=parent,
            )
            for one in drafts
        ]  # fmt: skip
        return [await ticket.durable() for ticket in tickets]

    async def _why_not(self, principal: Principal, run: str) -> Exception:
        """A run of the principal's that is closed is told from one that is not there, or another's."""
        try:
            facts = await self._log.get_run(run)
        except NotFound:
            return NotFound(NO_RUN)
        if facts.get("principal") != principal.key:
            return NotFound(NO_RUN)
        return Conflict("the run is closed; nothing more is recorded in it")

    def _budget_of(self, who: str) -> _Budget:
        found = self._budgets.get(who)
        if found is None:
            if len(self._budgets) >= PRINCIPALS_KEPT:
                self._budgets.clear()
            found = self._budgets[who] = _Budget(self._per_minute, self._now_s())
        return found


@dataclass(slots=True)
class _Budget:
    """What a principal may still report; it fills again within a minute."""

    per_minute: int
    looked_s: float
    messages: float = -1.0
    chars: float = CHARS_PER_MINUTE

    def take(self, drafts: Sequence[MessageDraft], now_s: float) -> None:
        minutes = (now_s - self.looked_s) / 60
        full = float(self.per_minute)
        self.messages = full if self.messages < 0 else min(full, self.messages + full * minutes)
        self.chars = min(float(CHARS_PER_MINUTE), self.chars + CHARS_PER_MINUTE * minutes)
        self.looked_s = now_s
        chars = sum(len(one.text) for one in drafts)
        short = max((len(drafts) - self.messages) / full, (chars - self.chars) / CHARS_PER_MINUTE)
        if short > 0:
            wait_s = round(short * 60 + 0.05, 1)
            raise RateLimited(
                f"you report more than may be in a minute; try again in {wait_s} s", data={"retry_after_s": wait_s}
            )
        self.messages -= len(drafts)
        self.chars -= chars
