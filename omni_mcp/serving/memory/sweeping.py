"""Sweeping lets go of what nobody finds any more: items that have expired, and items of runs that are over.

It happens when a gateway starts, now and then while it runs, and when a quota is full. What could not be done, because
the log or the memory could not be written, is done the next time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from omni_mcp.contracts.errors import NotFound, OmniError
from omni_mcp.contracts.events import MemoryWritten, draft
from omni_mcp.contracts.memory import MemoryItem
from omni_mcp.contracts.ports import RunLog
from omni_mcp.engines.memory.store import SWEPT_AT_ONCE, SqliteMemory
from omni_mcp.engines.memory.unfinished import find_unfinished
from omni_mcp.paths import Home
from omni_mcp.serving.memory.erasing import Forgetting
from omni_mcp.serving.memory.news import MemoryNews

EVERY_S = 300.0


class Sweeping:
    """Sweeps in the gateway's process.

    Args:
        gateway_run: where the record of it stands, because it belongs to nobody else.
        every_s: how long it waits in between.
    """

    def __init__(
        self, store: SqliteMemory, log: RunLog, home: Home, forgetting: Forgetting, news: MemoryNews, *,
        gateway_run: str, every_s: float = EVERY_S, now_ns: Callable[[], int] = time.time_ns,
    ) -> None:  # fmt: skip
        self._store = store
        self._log = log
        self._home = home
        self._forgetting = forgetting
        self._news = news
        self._gateway_run = gateway_run
        self._every_s = every_s
        self._now_ns = now_ns
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        """Sweep now and then until cancelled. A memory in which nothing is over is not even opened."""
        while True:
            try:
                await self.sweep()
            except OmniError as fault:
                structlog.get_logger("omni_mcp").error("the memory is swept later", problem=fault.detail)
            await asyncio.sleep(self._every_s)

    async def sweep(self) -> int:
        """Remove what is over; returns how many items that was. Their calls are erased in the background.

        Raises:
            MemoryUnavailable, LogUnavailable: not all of it could be done.
        """
        async with self._one_at_a_time:
            found = await asyncio.to_thread(find_unfinished, self._home.memory_file, self._now_ns())
            count = 0
            try:
                count += await self._expired() if found.expired else 0
                for run in found.runs:
                    count += await self._of_run(run) if await self._is_over(run) else 0
            finally:
                if count or found.to_erase:
                    self._forgetting.finish_later()
            return count

    async def _expired(self) -> int:
        now_ns, count = self._now_ns(), 0
        while items := await self._store.expired(now_ns=now_ns, limit=SWEPT_AT_ONCE):
            await self._note(items)
            count += len(await self._store.sweep(now_ns=now_ns, items=[item.id for item in items]))
        return count

    async def _of_run(self, run: str) -> int:
        count = 0
        while items := await self._store.items_of_run(run):
            await self._note(items)
            count += await self._store.forget_all([item.id for item in items])
        return count

    async def _is_over(self, run: str) -> bool:
        try:
            return not (await self._log.get_run(run)).get("open")
        except NotFound:
            return True

    async def _note(self, items: Sequence[MemoryItem]) -> None:
        """Put on record what goes, before it goes."""
        for item in items:
            event = MemoryWritten(
                change="expired", item=item.id, kind=item.kind, scope=item.scope, owner=item.owner,
                version=item.version, taint=item.taint, source=item.source,
            )  # fmt: skip
            noted = self._log.append(self._gateway_run, draft(event, actor="gateway"))
            self._news.changed(item)
        await noted.durable()
