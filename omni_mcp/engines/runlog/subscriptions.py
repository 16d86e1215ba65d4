"""A subscription hears which runs grew. A slow listener costs memory for runs, not for events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from omni_mcp.contracts.errors import Overloaded
from omni_mcp.engines.runlog.ledger import Notice

PENDING_RUNS = 10_000


class Subscription:
    """An endless iterator of `(run, last seq, quiet)`; ends when the log is closed.

    Args:
        wants: whether to hear of a commit, by its run and whether it is quiet; None for all.

    Raises:
        Overloaded: from `anext`, once more than `PENDING_RUNS` runs have grown unheard; read the log and begin again.
    """

    def __init__(self, wants: Callable[[str, bool], bool] | None = None) -> None:
        self._wants = wants
        self._pending: dict[str, tuple[int, bool]] = {}
        self._wake = asyncio.Event()
        self._ended = False
        self._overrun = False

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> tuple[str, int, bool]:
        while not self._pending:
            if self._overrun:
                raise Overloaded("too slow a listener", detail=f"more than {PENDING_RUNS} runs grew unheard")
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        run = next(iter(self._pending))
        seq, quiet = self._pending.pop(run)
        return run, seq, quiet

    async def aclose(self) -> None:
        """Stop listening."""
        self.end()

    def tell(self, notices: Sequence[Notice]) -> None:
        """Note what was committed; called in the event loop."""
        if self._ended or self._overrun:
            return
        wants = self._wants
        heard = notices if wants is None else [notice for notice in notices if wants(notice.run, notice.quiet)]
        if not heard:
            return
        for notice in heard:
            _, quiet = self._pending.get(notice.run, (0, True))
            self._pending[notice.run] = (notice.last_seq, quiet and notice.quiet)
        if len(self._pending) > PENDING_RUNS:
            self._pending.clear()
            self._overrun = True
        self._wake.set()

    def end(self) -> None:
        """Let the listener come to its end."""
        self._ended = True
        self._wake.set()
