"""A failure that may pass is tried again: three attempts in all, each failed one on record before the next begins."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from omni_mcp.chain.decide import LOG_SERVER
from omni_mcp.contracts.call import Call, Result
from omni_mcp.contracts.errors import CATALOGUE, Failed, Refused, TimedOut
from omni_mcp.contracts.events import AttemptFailed, draft
from omni_mcp.contracts.ports import RunLog
from omni_mcp.contracts.tool import Entry

ATTEMPTS = 3
FIRST_DELAY_S = 0.1
_OWN_END = frozenset({"timeout", "internal"})  # the time is over; a fault of ours does not pass by itself

Attempt = Callable[[Call], Awaitable[Result]]


class Retries:
    """What follows the first failed attempt of a call.

    Args:
        closed: whether the gateway takes no new calls now; then no attempt is made anew either.
        chance: a number from 0 to 1, another each time.
        first_delay_s: bound of the first delay; doubles with each.
    """

    def __init__(
        self, log: RunLog, *, closed: Callable[[], bool] = lambda: False,
        chance: Callable[[], float] = random.random, first_delay_s: float = FIRST_DELAY_S,
    ) -> None:  # fmt: skip
        self._log = log
        self._closed = closed
        self._chance = chance
        self._first_delay_s = first_delay_s

    async def go_on(self, failed: Failed, call: Call, tool: Entry, attempt: Attempt) -> Result:
        """Make further attempts of *call* where that is safe and may help; return or raise what the last of them did.

        Delays grow and are a random part of their bounds. All attempts together have the time of one call.

        Args:
            attempt: looks at everything that must hold, waits until the call's intents are durable, and dispatches.

        Raises:
            Failed: *failed* itself where it is not tried again, else the failure of the last attempt.
            TimedOut: the call's time was over meanwhile.
        """
        now_s = asyncio.get_running_loop().time
        ends_s = now_s() + tool.limits.timeout_s if failed.ends_s is None else failed.ends_s
        delay_s = 0.0
        for number in range(1, ATTEMPTS):
            bound_s = self._first_delay_s * 2.0 ** (number - 1)
            delay_s = round(delay_s + self._chance() * (bound_s - delay_s), 4)
            if self._is_over() or not may_pass(failed, call, tool) or now_s() + delay_s >= ends_s:
                break
            call = self._noted(failed, call, tool, number, delay_s)
            was_sent = call.trail.dispatched
            try:
                async with asyncio.timeout_at(ends_s):
                    await asyncio.sleep(delay_s)
                    return await attempt(call)
            except Failed as error:
                failed = error
                call.trail.dispatched = call.trail.dispatched or was_sent
            except Refused as refusal:
                call.trail.dispatched = was_sent
                failed.detail = f"{failed.detail}; not tried again: {refusal.code}: {refusal.detail}"
                break
            except TimeoutError as error:
                call.trail.dispatched = call.trail.dispatched or was_sent
                raise TimedOut(f"{call.name!r} did not answer within {tool.limits.timeout_s:g} s") from error
        raise failed

    def _is_over(self) -> bool:
        """Whether nobody wants another attempt: the gateway drains, or the caller took the call back."""
        task = asyncio.current_task()
        return self._closed() or (task is not None and task.cancelling() > 0)

    def _noted(self, failed: Failed, call: Call, tool: Entry, number: int, delay_s: float) -> Call:
        """Append what became of an attempt; the call that is returned waits for that before it is dispatched."""
        payload = AttemptFailed(
            attempt=number, error=failed.code, message=failed.message, detail=failed.detail,
            dispatched=call.trail.dispatched, delay_s=delay_s,
        )  # fmt: skip
        event = draft(payload, actor="gateway", call=call.id)
        noted = self._log.append(call.run, event, parent=call.parent, quiet=tool.server == LOG_SERVER)
        return call.but(intents=(*call.intents, noted))


def may_pass(failed: Failed, call: Call, tool: Entry) -> bool:
    """Whether another attempt is safe and may help.

    It is safe where nothing was dispatched, or where doing it twice is as good as once. It may help where who ran the
    call says so, else where the failure catalogue does; and not where somebody said when to come back.
    """
    if call.round is not None or "retry_after_s" in failed.data:
        return False
    if call.trail.dispatched and not tool.repeatable:
        return False
    if failed.passing is not None:
        return failed.passing
    known = CATALOGUE.get(failed.code)
    return known is not None and known.category == "failed" and known.retry == "later" and known.code not in _OWN_END
