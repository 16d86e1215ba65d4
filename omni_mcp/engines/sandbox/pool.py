"""Pool: gives every job a fresh cell, ready before it is wanted where that can be foreseen."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from omni_mcp.contracts.sandbox import Mount
from omni_mcp.engines.sandbox.cell import Cell
from omni_mcp.engines.sandbox.cgroup import Group, Hierarchy, remove_when_empty
from omni_mcp.engines.sandbox.failures import StartFailed
from omni_mcp.engines.sandbox.launcher import WORKSPACE, Launcher
from omni_mcp.engines.sandbox.profiles import Profile
from omni_mcp.engines.sandbox.shelf import Shelf, numbers
from omni_mcp.engines.sandbox.spawning import SpawnerGone, SpawnerLink
from omni_mcp.engines.sandbox.template import Plan, Template
from omni_mcp.engines.sandbox.uids import UidPool, jobs_part, owner_of

WARM_CELLS = 16  # in all; each weighs about a megabyte
TEMPLATES = 16  # in all; one that is in use is never closed for another
IDLE_S = 600.0  # a template that nobody uses ends after this, with its cells
_TEND_EVERY_S = 30.0

Key = tuple[object, ...]


class Pool:
    """Cells by profile, mounts and user. `hierarchy` and `proc` are settled by the probe: None and False do without.

    `uids` is None for an ordinary user, who cannot run anything as somebody else.
    """

    def __init__(
        self, *, launcher: Launcher, sandbox_dir: Path, hierarchy: Hierarchy | None, uids: range | None,
        warm_cells: int = WARM_CELLS,
    ) -> None:  # fmt: skip
        self.launcher = launcher
        self.hierarchy = hierarchy
        self.proc = True
        self._sandbox_dir = sandbox_dir
        self._uids = uids
        self._uid_pool = UidPool(jobs_part(uids)) if uids is not None else None
        self._warm_cells = warm_cells
        self._numbers = numbers()
        self._shelves: dict[Key, Shelf] = {}
        self._starting: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._spawner: SpawnerLink | None = None
        self._spawner_lock = asyncio.Lock()
        self._endings: set[asyncio.Task[None]] = set()
        self._tending: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def cell(self, profile: Profile, mounts: Sequence[Mount]) -> AsyncIterator[tuple[Cell, bool]]:
        """Yield a cell with nothing in it yet, and whether it was ready; on leaving nothing of it is left.

        Where its job has ended by itself the last of it, process 1, goes a moment later.

        Raises:
            StartFailed: none can be had.
        """
        shelf = await self._shelf(profile, mounts)
        cell, hot = await shelf.take()
        shelf.fill(self._target(shelf))
        try:
            yield cell, hot
        except BaseException:
            await to_its_end(cell.destroy())
            raise
        else:
            self._end_later(cell.destroy())
        finally:
            shelf.give_back()

    async def warm_up(self, profile: Profile) -> None:
        """Start the template of *profile* ahead of its first job; if that fails, the first job will hear why."""
        with contextlib.suppress(StartFailed):
            shelf = await self._shelf(profile, ())
            shelf.fill(self._target(shelf))

    async def drop_templates(self) -> None:
        """End every template; the next job starts a new one."""
        shelves, self._shelves = list(self._shelves.values()), {}
        for shelf in shelves:
            await self._end_shelf(shelf)

    async def close(self) -> None:
        """End everything, also what still runs, the helper process last."""
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)
            self._tending = None
        await self.drop_templates()
        while self._endings:
            await asyncio.wait(self._endings)
        if self._spawner is not None:
            await self._spawner.close()
            self._spawner = None

    @property
    def runs_as_others(self) -> bool:
        """Whether a job has another uid than the gateway."""
        return self._uids is not None

    @property
    def spawner_pid(self) -> int | None:
        return self._spawner.pid if self._spawner is not None else None

    @property
    def held(self) -> dict[str, int]:
        """How many templates run and how many cells are ready, for `status`."""
        return {"templates": len(self._shelves), "cells": sum(len(shelf.ready) for shelf in self._shelves.values())}

    async def _shelf(self, profile: Profile, mounts: Sequence[Mount]) -> Shelf:
        """Return the shelf for such jobs, with a template started if there is none."""
        owner = owner_of(mounts, self._uids, workspace=WORKSPACE)
        key = (id(profile), owner, *map(_identity, mounts))
        starting = self._starting.setdefault(key, asyncio.Lock())  # held here, or it is gone
        async with starting:
            shelf = self._shelves.get(key)
            if shelf is not None and shelf.usable and not shelf.worn:
                return shelf
            if shelf is not None:
                del self._shelves[key]
                self._end_later(self._retire(shelf))
            await self._make_room()
            shelf = Shelf(await self._started_template(profile, mounts, owner), self.hierarchy, self._numbers)
            self._shelves[key] = shelf
        if self._tending is None:
            self._tending = asyncio.create_task(self._tend(), name="sandbox pool")
        return shelf

    async def _started_template(self, profile: Profile, mounts: Sequence[Mount], owner: int | None) -> Template:
        spawner = await self._ready_spawner()
        uid = owner if owner is not None or self._uid_pool is None else self._uid_pool.take()
        number = next(self._numbers)
        template: Template | None = None
        group: Group | None = None
        try:
            group = self.hierarchy.create(number) if self.hierarchy is not None else None
            template = Template(Plan(number, profile, tuple(mounts), uid, group, self.proc), spawner, self.launcher)
            await template.open()
        except BaseException as error:
            await to_its_end(self._tidy(template, group, uid))
            if isinstance(error, OSError):
                raise StartFailed(f"cgroup: {error}") from error
            raise
        return template

    async def _tidy(self, template: Template | None, group: Group | None, uid: int | None) -> None:
        if template is not None:
            await template.close()
        if group is not None:
            await remove_when_empty(group)
        self._give_back(uid)

    async def _retire(self, shelf: Shelf) -> None:
        """End *shelf* once its last cell is back."""
        await shelf.unused.wait()
        await self._end_shelf(shelf)

    async def _end_shelf(self, shelf: Shelf) -> None:
        await shelf.close()
        self._give_back(shelf.template.plan.uid)

    def _give_back(self, uid: int | None) -> None:
        if self._uid_pool is not None and uid is not None:
            self._uid_pool.give_back(uid)

    async def _make_room(self) -> None:
        idle = sorted((shelf.used_at_s, key) for key, shelf in self._shelves.items() if not shelf.in_use)
        for _, key in idle[: max(0, len(self._shelves) - TEMPLATES + 1)]:
            await self._end_shelf(self._shelves.pop(key))

    def _target(self, shelf: Shelf) -> int:
        """How many cells *shelf* should have ready: as many as were lately in use at once, within the bound of all."""
        least = shelf.template.plan.profile.warm
        if not least:
            return 0
        others = sum(len(other.ready) for other in self._shelves.values() if other is not shelf)
        return max(0, min(max(least, shelf.most_in_use), self._warm_cells - others))

    async def _tend(self) -> None:
        """Forget old peaks and close what nobody uses."""
        while True:
            await asyncio.sleep(_TEND_EVERY_S)
            for key, shelf in list(self._shelves.items()):
                shelf.most_in_use = max(shelf.in_use, shelf.most_in_use // 2)
                if not shelf.in_use and time.monotonic() - shelf.used_at_s > IDLE_S:
                    del self._shelves[key]
                    await self._end_shelf(shelf)

    def _end_later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._endings.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._endings.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            task.get_loop().call_exception_handler({"message": "a cell does not end", "exception": error})

    async def _ready_spawner(self) -> SpawnerLink:
        async with self._spawner_lock:
            if self._spawner is None or not self._spawner.alive:
                if self._spawner is not None:
                    await self._spawner.close()  # reaps one that has died
                self._spawner = SpawnerLink.start(self._sandbox_dir)
                if self.hierarchy is not None:
                    with contextlib.suppress(SpawnerGone):  # the next request says so
                        await self._spawner.sweep_at_the_end(self.hierarchy.prefixes)
            return self._spawner


def _identity(mount: Mount) -> tuple[object, ...]:
    """Return what makes *mount* the same for two jobs: the same directory, not only the same path."""
    try:
        facts = mount.source.lstat()
    except OSError as error:
        raise StartFailed(f"a directory of the job is missing: {error.strerror}") from error
    return mount.inside, mount.writable, facts.st_dev, facts.st_ino


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
