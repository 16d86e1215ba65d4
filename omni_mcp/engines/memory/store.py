"""The memory in one SQLite file: what is put is durable, what is forgotten is gone from the disk, recalls are quick.

Nothing is opened or loaded before the first use, so that a gateway whose memory nobody uses does not pay for it. One
thread writes, another one reads, a third searches large places, a fourth compares; other processes may do the same
with the same file.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from sqlite3 import Connection
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from omni_mcp.contracts.memory import Hits, MemoryItem, MemoryScope, Readers, Recall, Taint
from omni_mcp.contracts.ports import Embedder
from omni_mcp.engines.memory import reading
from omni_mcp.engines.memory.rows import Limits

if TYPE_CHECKING:
    from omni_mcp.engines.memory.core import Core

T = TypeVar("T")
SWEPT_AT_ONCE = 500  # a commit of so many holds the lock for some ten milliseconds
BEFORE_ALL_NS = -(1 << 63)


class SqliteMemory:
    """The port `MemoryStore`, and what the operator may ask beside it.

    Args:
        embedder: makes it when it is first needed; the static table of the package by default.
        now_ns: UTC nanoseconds since the epoch.
        limits: how much one owner may keep in one scope.
    """

    def __init__(
        self, file: Path, *, embedder: Callable[[], Embedder] | None = None, now_ns: Callable[[], int] = time.time_ns,
        limits: Limits | None = None,
    ) -> None:  # fmt: skip
        self._file = file
        self._embedder = embedder
        self._now_ns = now_ns
        self._limits = limits or Limits()
        self._core: Core | None = None
        self._opening = Lock()
        self._writing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory-writer")
        self._reading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory-reader")
        self._searching = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory-large-places")
        self._comparing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory-comparer")
        self._one_compares = asyncio.Lock()

    async def put(self, item: MemoryItem, *, expected_version: int | None = None) -> MemoryItem:
        """Store a new item or the next version of one; see the port."""
        stored = await self._write(lambda core: core.writer.put([item], expected_version=expected_version))
        return stored[0]

    async def put_many(self, items: Sequence[MemoryItem], *, on_progress: Callable[[int], None] | None = None) -> int:
        """Store many in one commit; see the port. *on_progress* hears from a thread how many are prepared."""
        return len(await self._write(lambda core: core.writer.put(items, on_progress=on_progress)))

    async def get(self, item: str, *, readers: Readers, even_expired: bool = False) -> MemoryItem:
        """Return an item by id; see the port."""
        now = BEFORE_ALL_NS if even_expired else self._now_ns()
        return await self._read(lambda core: core.read(lambda db: reading.get_item(db, _plain(item), readers, now)))

    async def list_items(
        self, *, readers: Readers, limit: int = 50, before: str | None = None, kinds: Sequence[str] = (),
        tags: Sequence[str] = (), subject: str | None = None, session: str | None = None,
        without_taint: Sequence[Taint] = (),
    ) -> list[MemoryItem]:  # fmt: skip
        """Return newest items first; see the port."""
        now, last = self._now_ns(), None if before is None else _plain(before)

        def listed(db: Connection) -> list[MemoryItem]:
            return reading.list_items(
                db, readers, now, limit=limit, before=last, kinds=kinds, tags=tags, subject=subject, session=session,
                without_taint=without_taint,
            )  # fmt: skip

        return await self._read(lambda core: core.read(listed))

    async def recall(self, wanted: Recall) -> Hits:
        """Return what fits best, best first; see the port."""
        if await self._prepare(wanted.readers):
            return await self._read_large(lambda core: core.recall(wanted, large=True))
        return await self._read(lambda core: core.recall(wanted))

    async def touched(self, items: Sequence[str], *, run: str, call: str) -> list[str]:
        """Note that a call carried the text of *items*; returns those that are gone; see the port."""
        ids = [_plain(item) for item in items]
        return await self._write(lambda core: core.writer.touched(ids, run=run, call=call))

    async def forget(self, item: str, *, readers: Readers) -> list[tuple[str, str]]:
        """Remove an item from the disk; see the port."""
        return await self._write(lambda core: core.writer.forget(_plain(item), readers))

    async def sweep(
        self, *, now_ns: int, limit: int = SWEPT_AT_ONCE, items: Sequence[str] | None = None
    ) -> list[tuple[MemoryItem, list[tuple[str, str]]]]:
        """Remove expired items; see the port."""
        return await self._write(lambda core: core.writer.sweep(now_ns, limit, items))

    async def duplicates(self, *, readers: Readers, limit: int = 20) -> list[tuple[MemoryItem, MemoryItem, float]]:
        """Return pairs that say nearly the same; see the port."""
        async with self._one_compares:  # who waits holds no copy yet
            if await self._prepare(readers):
                places = await self._read_large(lambda core: core.to_compare(readers, large=True))
            else:
                places = await self._read(lambda core: core.to_compare(readers))
            return await asyncio.get_running_loop().run_in_executor(
                self._comparing, lambda: self._opened().duplicates(places, limit)
            )

    async def to_erase(self) -> list[tuple[str, str]]:
        """Return (run, call) of what carried a forgotten text and is not reported as erased yet."""
        return await self._read(lambda core: core.read(reading.to_erase))

    async def erased(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Note that the run log has let go of these calls."""
        await self._write(lambda core: core.writer.erased(pairs))

    async def find(self, item: str) -> MemoryItem:
        """Return an item of any place, expired or not.

        Raises:
            NotFound: there is none.
        """
        return await self._read(lambda core: core.read(lambda db: reading.find_item(db, _plain(item))))

    async def all_items(
        self, *, limit: int = 50, before: str | None = None, project: str | None = None,
        scope: MemoryScope | None = None,
    ) -> list[MemoryItem]:  # fmt: skip
        """Return the newest items of any place first, expired or not."""
        return await self._read(
            lambda core: core.read(
                lambda db: reading.all_items(db, limit=limit, before=before, project=project, scope=scope)
            )
        )

    async def expired(self, *, now_ns: int, limit: int = SWEPT_AT_ONCE) -> list[MemoryItem]:
        """Return the items of any place that `sweep` would remove."""
        return await self._read(lambda core: core.read(lambda db: reading.expired(db, now_ns, limit)))

    async def runs_with_items(self) -> list[str]:
        """Return the runs that have items of their own, whether they are over or not."""
        return await self._read(lambda core: core.read(reading.runs_with_items))

    async def items_of_run(self, run: str, *, limit: int = SWEPT_AT_ONCE) -> list[MemoryItem]:
        """Return the first items that a run has of its own."""
        return await self._read(lambda core: core.read(lambda db: reading.items_of_run(db, run, limit)))

    async def written_by(self, run: str, call: str | None = None) -> list[str]:
        """Return the ids of the items of which a run, or one of its calls, wrote something that still stands."""
        return await self._read(lambda core: core.read(lambda db: reading.written_by(db, run, call)))

    async def forget_item(self, item: str) -> list[tuple[str, str]]:
        """Remove an item of any place, as `forget` does.

        Raises:
            NotFound: there is none.
        """
        return await self._write(lambda core: core.writer.forget(_plain(item), None))

    async def forget_all(self, items: Sequence[str]) -> int:
        """Remove items of any place in one commit, as far as they are there; returns how many were."""
        return await self._write(lambda core: core.writer.forget_all(items))

    async def settle(self) -> bool:
        """Give room back and cut the write-ahead log; False if it was read all the time and may hold old pages."""
        return await self._write(lambda core: core.writer.settle())

    async def index_bytes(self) -> int:
        """Return how much memory the index takes, as far as its arrays are concerned."""
        return await self._read(lambda core: core.index_bytes())

    async def close(self) -> None:
        """Wait for what is under way and close the file."""
        await asyncio.to_thread(self._comparing.shutdown)
        await asyncio.to_thread(self._searching.shutdown)
        await asyncio.to_thread(self._reading.shutdown)
        if self._core is not None:
            await asyncio.get_running_loop().run_in_executor(self._writing, self._core.close)
        await asyncio.to_thread(self._writing.shutdown)

    async def _prepare(self, readers: Readers) -> bool:
        """Have what *readers* cover marked anew where it must be; says whether a large place is among it."""
        stale, large = await self._read(lambda core: core.look(readers))
        if stale:
            await self._write(lambda core: core.writer.renew(stale))
        return large

    async def _read(self, work: Callable[[Core], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reading, lambda: work(self._opened()))

    async def _read_large(self, work: Callable[[Core], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._searching, lambda: work(self._opened()))

    async def _write(self, work: Callable[[Core], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writing, lambda: work(self._opened()))

    def _opened(self) -> Core:
        with self._opening:
            if self._core is None:
                module = import_module("omni_mcp.engines.memory.core")  # numpy comes with it
                self._core = module.Core(self._file, self._embedder, self._now_ns, self._limits)
            return self._core


@asynccontextmanager
async def open_memory(
    file: Path, *, embedder: Callable[[], Embedder] | None = None, now_ns: Callable[[], int] = time.time_ns,
    limits: Limits | None = None,
) -> AsyncIterator[SqliteMemory]:  # fmt: skip
    """Open the memory in *file*, which is made at the first use; its directory must be there then."""
    memory = SqliteMemory(file, embedder=embedder, now_ns=now_ns, limits=limits)
    try:
        yield memory
    finally:
        await memory.close()


def _plain(text: str) -> str:
    """Return *text* as SQLite can take it: an id with half a surrogate pair names nothing."""
    return text.encode("utf-8", "replace").decode()
