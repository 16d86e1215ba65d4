"""CellFactory: gathers what a cell needs (helper process, cgroup, uid), and takes it back when the cell is gone."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from omni_mcp.contracts.sandbox import Job
from omni_mcp.engines.sandbox.cell import Cell, CellStuck, Place, StartFailed
from omni_mcp.engines.sandbox.cgroup import Group, Hierarchy
from omni_mcp.engines.sandbox.launcher import WORKSPACE, Launcher
from omni_mcp.engines.sandbox.profiles import Profile
from omni_mcp.engines.sandbox.spawning import SpawnerLink
from omni_mcp.engines.sandbox.uids import UidPool, jobs_part

_REMOVE_TRIES = 500
_REMOVE_STEP_S = 0.01


class CellFactory:
    """Makes cells. `hierarchy` and `proc` are settled by the probe; None and False mean: do without.

    `uids` is None for an ordinary user, who cannot run anything as somebody else.
    """

    def __init__(
        self, *, launcher: Launcher, sandbox_dir: Path, hierarchy: Hierarchy | None, uids: range | None
    ) -> None:
        self.launcher = launcher
        self.hierarchy = hierarchy
        self.proc = True
        self._sandbox_dir = sandbox_dir
        self._uids = uids
        self._pool = UidPool(jobs_part(uids)) if uids is not None else None
        self._numbers = itertools.count(1)
        self._spawner: SpawnerLink | None = None
        self._starting = asyncio.Lock()

    @asynccontextmanager
    async def cell(self, profile: Profile, job: Job) -> AsyncIterator[Cell]:
        """Yield a cell that is not started yet; on leaving, even by cancellation, nothing of it is left.

        Raises:
            StartFailed: a thing that it needs cannot be had.
        """
        spawner = await self._ready_spawner()
        owner = self._owner_of(job)
        uid = owner if owner is not None or self._pool is None else self._pool.take()
        group: Group | None = None
        cell: Cell | None = None
        number = next(self._numbers)
        try:
            group = self._group(number, profile, job)
            cell = Cell(Place(number, uid, group, self.proc), profile, job, spawner, self.launcher)
            yield cell
        finally:
            await to_its_end(_tidy(cell, group))
            if self._pool is not None and uid is not None and owner is None:
                self._pool.give_back(uid)

    async def close(self) -> None:
        """End the helper process, and with it every cell."""
        if self._spawner is not None:
            await self._spawner.close()
            self._spawner = None

    @property
    def runs_as_others(self) -> bool:
        """Whether each job gets a uid of its own."""
        return self._uids is not None

    @property
    def spawner_pid(self) -> int | None:
        return self._spawner.pid if self._spawner is not None else None

    async def _ready_spawner(self) -> SpawnerLink:
        async with self._starting:
            if self._spawner is None or not self._spawner.alive:
                await self.close()  # reaps one that has died
                self._spawner = SpawnerLink.start(self._sandbox_dir)
            return self._spawner

    def _group(self, number: int, profile: Profile, job: Job) -> Group | None:
        if self.hierarchy is None:
            return None
        try:
            return self.hierarchy.create(number, limits=job.limits, cpus=profile.cpus)
        except OSError as error:
            raise StartFailed(f"cgroup: {error}") from error

    def _owner_of(self, job: Job) -> int | None:
        """Return the uid that must run *job* because a directory of it is theirs alone; None if any will do."""
        if self._uids is None:
            return None
        try:
            owners = {(mount.source.lstat().st_uid, mount.writable) for mount in job.mounts
                      if mount.writable or mount.inside == WORKSPACE}  # fmt: skip
        except OSError as error:
            raise StartFailed(f"a directory of the job is missing: {error.strerror}") from error
        ours = {uid for uid, _ in owners if uid in self._uids}
        if len(ours) > 1 or any(writable and uid not in ours for uid, writable in owners):
            raise StartFailed("the job's writable directories must belong to one uid of the sandbox's range")
        return ours.pop() if ours else None


async def _tidy(cell: Cell | None, group: Group | None) -> None:
    if cell is not None:
        await cell.destroy()
    if group is not None:
        for _ in range(_REMOVE_TRIES):
            if group.remove():
                return
            group.kill()
            await asyncio.sleep(_REMOVE_STEP_S)
        raise CellStuck("the cell's cgroup cannot be removed: a process in it does not die")


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await *work* to its end even if we are cancelled meanwhile; then be cancelled."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
