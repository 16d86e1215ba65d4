"""Growth: notices that a running job fills a directory of the host faster than it may.

The file system itself has no limit for it, so its free room is looked at (one cheap call), and only where that
shrank the directory is measured: others write to the same disk too.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from omni_mcp.contracts.sandbox import Job
from omni_mcp.engines.sandbox.failures import StartFailed
from omni_mcp.engines.sandbox.tree import measure_tree

_LOOK_EVERY_S = 0.025  # a page cache takes a gigabyte a second
_REST = 3  # rests as many times as long as the last measuring took: a large directory must not cost a processor
_STEPS = 4  # measures whenever this part of what the job may add has gone


class Growth:
    """One directory during one job: it may hold *most_bytes* and *most_entries*, *add_* of them added by the job."""

    def __init__(self, place: Path, *, most_bytes: int, most_entries: int, add_bytes: int, add_entries: int) -> None:
        self._place = place
        self._most_bytes = most_bytes
        self._most_entries = most_entries
        self._step = (add_bytes // _STEPS, add_entries // _STEPS)
        self._free = self._free_now()

    async def exceeded(self) -> None:
        """Return as soon as the directory holds more than it may; never, if it does not."""
        rest_s = _LOOK_EVERY_S
        while True:
            await asyncio.sleep(rest_s)
            started = time.monotonic()
            if await self.is_exceeded():
                return
            rest_s = max(_LOOK_EVERY_S, _REST * (time.monotonic() - started))

    async def is_exceeded(self) -> bool:
        """Whether the directory holds more than it may; measures only if there is reason to."""
        free = self._free_now()
        self._free = (max(self._free[0], free[0]), max(self._free[1], free[1]))  # what others remove hides nothing
        if all(before - now < step for before, now, step in zip(self._free, free, self._step, strict=True)):
            return False
        fill = await asyncio.to_thread(
            measure_tree, self._place, most_bytes=self._most_bytes, most_entries=self._most_entries
        )
        self._free = free  # not before: a measuring that the job's end cuts short has told nothing
        return fill.exceeds(self._most_bytes, self._most_entries)

    def _free_now(self) -> tuple[int, int]:
        facts = os.statvfs(self._place)
        return facts.f_bfree * facts.f_frsize, facts.f_ffree


def growths_of(job: Job) -> list[Growth]:
    """Return a Growth for each directory of the host that *job* may fill only so far.

    Raises:
        StartFailed: one of them is not there.
    """
    add_bytes, add_entries = job.limits.disk_mib << 20, job.limits.inodes
    try:
        return [
            Growth(
                mount.source, most_bytes=mount.most_bytes, most_entries=mount.most_entries,
                add_bytes=add_bytes, add_entries=add_entries,
            )
            for mount in job.mounts
            if mount.writable and mount.most_bytes is not None and mount.most_entries is not None
        ]  # fmt: skip
    except OSError as error:
        raise StartFailed(f"a directory of the job is missing: {error.strerror}") from error
