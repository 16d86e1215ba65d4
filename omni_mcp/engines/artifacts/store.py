"""The port `Artifacts` over `BlobStore`: every operation runs in a thread, because each may wait for the disk.

What is large has a thread of its own: nobody else's look-up waits until 100 MB have reached the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from omni_mcp.contracts.artifact import INLINE_LIMIT_BYTES, ArtifactRef
from omni_mcp.contracts.large import KeptFile
from omni_mcp.contracts.ports import Masker
from omni_mcp.engines.artifacts.blobs import OWNER_QUOTA_BYTES, BlobStore
from omni_mcp.engines.artifacts.spool import Spool

T = TypeVar("T")

UNSAID = "application/octet-stream"  # where what was said of a blob has a secret in it


class ArtifactStore:
    """Blobs by content, each visible to the principals that made it or were given it; without registered secrets."""

    def __init__(self, blobs: BlobStore, masker: Masker) -> None:
        self._blobs = blobs
        self._masker = masker
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="artifacts")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="large artifacts")

    async def put(self, data: bytes, *, media_type: str, owner: str, run: str, name: str | None = None) -> ArtifactRef:
        """Store *data* durably and return its reference; storing the same bytes twice keeps one copy.

        Registered secrets in it are masked first, so the reference is to what is kept.

        Raises:
            QuotaExceeded: *owner* would hold more than they may; nothing was stored.
            Internal: it could not be written.
        """
        return await self._in_thread(lambda: self._put(data, media_type, owner, run, name), size_bytes=len(data))

    async def put_file(self, kept: KeptFile, *, owner: str, run: str, name: str | None = None) -> ArtifactRef:
        """Store what was masked already, without taking it into memory; otherwise as `put`."""
        return await self._in_thread(
            partial(self._blobs.put_file, kept, owner=owner, run=run, name=name), size_bytes=kept.size_bytes
        )

    async def get(self, sha256: str, *, owner: str) -> tuple[ArtifactRef, bytes]:
        """Return a blob that *owner* may see.

        Raises:
            NotFound: no such blob, or not one of theirs: the same answer.
            LogCorrupt: its bytes are not what was stored.
        """
        return await self._in_thread(partial(self._blobs.get, sha256, owner=owner))

    async def list_refs(self, *, owner: str, limit: int = 100) -> list[ArtifactRef]:
        """Return the newest references that *owner* may see."""
        return await self._in_thread(partial(self._blobs.list_refs, owner=owner, limit=limit))

    async def page(
        self, *, owner: str, limit: int, before: int | None = None
    ) -> list[tuple[int, ArtifactRef, str, int]]:
        """Return (number, reference, run, UTC nanoseconds) of the newest references of *owner* before a number."""
        return await self._in_thread(partial(self._blobs.page, owner=owner, limit=limit, before=before))

    @asynccontextmanager
    async def receiving(self, owner: str, *, expected_bytes: int, limit_bytes: int) -> AsyncIterator[Upload]:
        """Take the bytes of one upload; what is not put when the block ends is gone.

        Raises:
            QuotaExceeded: *owner* has no room for *expected_bytes*.
        """
        await self._in_thread(partial(self._blobs.check_room, owner, expected_bytes))
        spool = await asyncio.to_thread(partial(self._blobs.spool, limit_bytes=limit_bytes))
        with spool:
            yield Upload(self, spool)

    async def put_spooled(
        self, spool: Spool, *, media_type: str, owner: str, run: str, name: str | None
    ) -> ArtifactRef:
        """Store what *spool* holds, as `put`. Only one large one is in memory at a time."""
        return await self._in_thread(
            lambda: self._put(spool.read(), media_type, owner, run, name), size_bytes=spool.size_bytes
        )

    async def held_bytes(self, owner: str) -> int:
        """Return what *owner* has used of the quota."""
        return await self._in_thread(partial(self._blobs.held_bytes, owner))

    def _put(self, data: bytes, media_type: str, owner: str, run: str, name: str | None) -> ArtifactRef:
        masked = self._masker.mask_bytes(data)
        shown = None if name is None else self._masker.mask_text(name)
        kind = media_type if self._masker.mask_text(media_type) == media_type else UNSAID
        return self._blobs.put(masked, media_type=kind, owner=owner, run=run, name=shown)

    async def close(self) -> None:
        """Wait for what is under way."""
        for pool in (self._large, self._pool):
            await asyncio.to_thread(pool.shutdown, wait=True)

    async def _in_thread(self, work: Callable[[], T], *, size_bytes: int = 0) -> T:
        pool = self._large if size_bytes > INLINE_LIMIT_BYTES else self._pool
        return await asyncio.get_running_loop().run_in_executor(pool, work)


class Upload:
    """The bytes of one upload on their way into the store."""

    def __init__(self, store: ArtifactStore, spool: Spool) -> None:
        self._store = store
        self._spool = spool

    async def write(self, data: bytes) -> None:
        """Add *data*.

        Raises:
            TooLarge: it is over the limit.
        """
        await asyncio.to_thread(self._spool.write, data)

    async def put(self, *, media_type: str, owner: str, run: str, name: str | None) -> ArtifactRef:
        """Store everything that came; see `ArtifactStore.put`."""
        return await self._store.put_spooled(self._spool, media_type=media_type, owner=owner, run=run, name=name)


@asynccontextmanager
async def open_artifacts(
    directory: Path, masker: Masker, *, owner_quota_bytes: int = OWNER_QUOTA_BYTES
) -> AsyncIterator[ArtifactStore]:
    """Open the store in *directory*, made with mode 0700 if it is missing; each owner may hold *owner_quota_bytes*.

    Raises:
        LogCorrupt: its database is damaged.
        PermissionError: others may write to the directory.
    """
    blobs = await asyncio.to_thread(partial(BlobStore, directory, owner_quota_bytes=owner_quota_bytes))
    try:
        store = ArtifactStore(blobs, masker)
        try:
            yield store
        finally:
            await store.close()
    finally:
        await asyncio.to_thread(blobs.close)
