"""Pool: gives every job a fresh cell, ready before it is wanted where that can be foreseen."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from omni_mcp.contracts.manifest import Limits
from omni_mcp.contracts.sandbox import Mount
from omni_mcp.endings import all_to_their_ends, to_its_end
from omni_mcp.engines.sandbox.cell import Cell
from omni_mcp.engines.sandbox.failures import StartFailed
from omni_mcp.engines.sandbox.group import Group, Hierarchy
from omni_mcp.engines.sandbox.groups import Groups, remove_when_empty
from omni_mcp.engines.sandbox.job_directories import JobDirectories
from omni_mcp.engines.sandbox.launcher import WORKSPACE, Launcher
from omni_mcp.engines.sandbox.plain_launcher import PlainLauncher
from omni_mcp.engines.sandbox.plan import Plan, Sizes
from omni_mcp.engines.sandbox.profiles import Profile
from omni_mcp.engines.sandbox.shelf import Shelf, numbers
from omni_mcp.engines.sandbox.spawning import SpawnerGone, SpawnerLink
from omni_mcp.engines.sandbox.template import Template
from omni_mcp.engines.sandbox.uids import UidPool, jobs_part, owner_of
from omni_mcp.engines.sandbox.unix_sockets import why_refused

WARM_CELLS = 16  # in all; each weighs about a megabyte
TEMPLATES = 16  # in all; one that is in use is never closed for another
IDLE_S = 600.0  # a template that nobody uses ends after this, with its cells
_TEND_EVERY_S = 30.0
_ORDER_FIRST_S = 0.001  # the job that has just got its cell is given its order before the next cell is thought of
_CLOSED = "the sandbox is closing"

Key = tuple[object, ...]


class Pool:
    """Cells by profile, mounts, sizes and user.

    `groups.hierarchy` and `proc` are settled by the probe: None and False do without.

    `uids` is None for an ordinary user, who cannot run anything as somebody else. With `directories` its cells are
    plain process trees, started by a `PlainLauncher`, each in one of them.
    """

    def __init__(
        self, *, launcher: Launcher | PlainLauncher, sandbox_dir: Path, hierarchy: Hierarchy | None, uids: range | None,
        warm_cells: int = WARM_CELLS, directories: JobDirectories | None = None,
    ) -> None:  # fmt: skip
        self.launcher = launcher
        self.groups = Groups(hierarchy)
        self.proc = directories is None
        self._directories = directories
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
        self._retiring: set[Shelf] = set()
        self._closed = False
        self._being_started = 0
        self.layers: frozenset[str] = frozenset()  # what process 1 of every cell has to put in force
        self._tending: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def cell(
        self, profile: Profile, mounts: Sequence[Mount], limits: Limits, *, in_interpreter: bool = False
    ) -> AsyncIterator[tuple[Cell, bool]]:
        """Yield a cell with nothing in it yet, and whether it was ready; on leaving nothing of it is left.

        Where its job has ended by itself the last of it, process 1, goes a moment later.

        Raises:
            StartFailed: none can be had.
        """
        shelf, (cell, hot) = await self._taken(profile, mounts, Sizes.of(limits), in_interpreter=in_interpreter)
        filling = asyncio.get_running_loop().call_later(_ORDER_FIRST_S, self._fill, shelf)
        try:
            if missing := self.layers.difference(cell.layers):
                raise StartFailed(f"the cell lacks what is in force otherwise: {', '.join(sorted(missing))}")
            yield cell, hot
        except BaseException:
            await to_its_end(cell.destroy())
            raise
        else:
            self._end_later(cell.destroy())
        finally:
            shelf.give_back()
            if filling.when() > asyncio.get_running_loop().time():
                filling.cancel()
                self._fill(shelf)
            self._end_if_used_up(shelf)

    def _fill(self, shelf: Shelf) -> None:
        shelf.fill(self._target(shelf))

    async def warm_up(self, profile: Profile) -> None:
        """Start the template of *profile* ahead of its first job; if that fails, the first job will hear why."""
        with contextlib.suppress(StartFailed):
            shelf = await self._shelf(profile, (), Sizes.of(Limits()))
            shelf.fill(self._target(shelf))

    async def drop_templates(self) -> None:
        """End every template, and keep no cgroup; the next job starts a new one."""
        shelves, self._shelves = list(self._shelves.values()), {}
        try:
            await all_to_their_ends([self._end_shelf(shelf) for shelf in shelves])
        finally:
            await self.groups.drop()  # with those that their cells gave back

    async def close(self) -> None:
        """End everything, also what still runs or is about to start, the helper process last."""
        self._closed = True
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)
            self._tending = None
        try:
            await self.drop_templates()
        finally:
            for shelf in self._retiring:
                shelf.unused.set()  # whoever still uses it has to stop
            while self._endings:
                await asyncio.wait(self._endings)
            await self.groups.close()
            if self._spawner is not None:
                await self._spawner.close()
                self._spawner = None
            for starting in list(self._starting.values()):
                async with starting:  # fails at once now, and tidies up
                    pass
            if self._directories is not None:
                self._directories.close()
            if self._uid_pool is not None:
                self._uid_pool.close()

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

    async def _taken(
        self, profile: Profile, mounts: Sequence[Mount], sizes: Sizes, *, in_interpreter: bool
    ) -> tuple[Shelf, tuple[Cell, bool]]:
        """Take a cell; if its template turns out to be dead or stuck, one of a new template."""
        shelf = await self._shelf(profile, mounts, sizes)
        try:
            return shelf, await shelf.take(in_interpreter=in_interpreter)
        except StartFailed:
            self._end_if_used_up(shelf)
            if shelf.usable or not self.proc:
                raise
        shelf = await self._shelf(profile, mounts, sizes)
        return shelf, await shelf.take(in_interpreter=in_interpreter)

    async def _shelf(self, profile: Profile, mounts: Sequence[Mount], sizes: Sizes) -> Shelf:
        """Return the shelf for such jobs, with a template started if there is none."""
        owner = owner_of(mounts, self._uids, workspace=WORKSPACE)
        key = (id(profile), sizes, owner, *map(_identity, mounts))
        starting = self._starting.setdefault(key, asyncio.Lock())  # held here, or it is gone
        async with starting:
            shelf = self._shelves.get(key)
            if shelf is not None and shelf.usable and not shelf.worn:
                return shelf
            if shelf is not None:
                del self._shelves[key]
                self._retiring.add(shelf)
                self._end_later(self._retire(shelf))
            self._being_started += 1
            try:
                await self._make_room()
                template = await self._started_template(profile, mounts, sizes, owner)
            finally:
                self._being_started -= 1
            shelf = self._shelves[key] = Shelf(template, self._numbers)
        if self._tending is None:
            self._tending = asyncio.create_task(self._tend(), name="sandbox pool")
        return shelf

    async def _started_template(
        self, profile: Profile, mounts: Sequence[Mount], sizes: Sizes, owner: int | None
    ) -> Template:
        spawner = await self._ready_spawner()
        uid = owner if owner is not None else self._new_uid()
        alone = uid is not None and owner is None
        number = next(self._numbers)
        template: Template | None = None
        group: Group | None = None
        workspace: Path | None = None
        try:
            group = self.groups.make(number)
            workspace = self._new_workspace(number, uid)
            plan = Plan(
                number=number, profile=profile, mounts=tuple(mounts), uid=uid, alone=alone, group=group, proc=self.proc,
                sizes=sizes, workspace=workspace, unix_sockets=self._may_have_unix_sockets(profile, mounts),
            )  # fmt: skip
            template = Template(plan, spawner, self.launcher, self.groups)
            await template.open()
            if self._closed:
                raise StartFailed(_CLOSED)
        except BaseException:
            await to_its_end(self._tidy(template, group, workspace, uid))
            raise
        return template

    def _may_have_unix_sockets(self, profile: Profile, mounts: Sequence[Mount]) -> bool:
        if isinstance(self.launcher, PlainLauncher):
            return False
        return not why_refused(profile, mounts, shown=self.launcher.shown(profile))

    def _new_uid(self) -> int | None:
        try:
            return self._uid_pool.take() if self._uid_pool is not None else None
        except IndexError as error:
            raise StartFailed("no uid is left for one more template; widen the sandbox's uid range") from error

    def _new_workspace(self, number: int, uid: int | None) -> Path | None:
        try:
            return self._directories.make(number, uid) if self._directories is not None else None
        except OSError as error:
            raise StartFailed(f"no directory can be made for the job: {error.strerror}") from error

    async def _tidy(
        self, template: Template | None, group: Group | None, workspace: Path | None, uid: int | None
    ) -> None:
        if template is not None:
            await template.close()
        if group is not None:
            await remove_when_empty(group)
        await self._let_go(workspace, uid)

    async def _retire(self, shelf: Shelf) -> None:
        """End *shelf* once its last cell is back."""
        await shelf.unused.wait()
        self._retiring.discard(shelf)
        await self._end_shelf(shelf)

    def _end_if_used_up(self, shelf: Shelf) -> None:
        """End *shelf* if it can give no more cells: its template has died, or was its only cell."""
        if shelf.in_use or shelf.usable:
            return
        for key, known in list(self._shelves.items()):
            if known is shelf:
                del self._shelves[key]
                self._end_later(self._end_shelf(shelf))

    async def _end_shelf(self, shelf: Shelf) -> None:
        """Called once for each shelf: its uid becomes free."""
        await shelf.close()
        await self._let_go(shelf.template.plan.workspace, shelf.template.plan.uid)

    async def _let_go(self, workspace: Path | None, uid: int | None) -> None:
        if workspace is not None and self._directories is not None:
            await self._directories.remove(workspace)
        self._give_back(uid)

    def _give_back(self, uid: int | None) -> None:
        if self._uid_pool is not None and uid is not None:
            self._uid_pool.give_back(uid)

    async def _make_room(self) -> None:
        idle = sorted(
            ((shelf.used_at_s, key) for key, shelf in self._shelves.items() if not shelf.in_use), key=itemgetter(0)
        )
        too_many = max(0, len(self._shelves) + self._being_started - TEMPLATES)
        victims = [self._shelves.pop(key) for _, key in idle[:too_many]]  # before any wait: then nobody can take them
        await to_its_end(all_to_their_ends([self._end_shelf(shelf) for shelf in victims]))

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
                    self._end_later(self._end_shelf(shelf))

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
            if self._closed:
                raise StartFailed(_CLOSED)
            if self._spawner is None or not self._spawner.alive:
                if self._spawner is not None:
                    await self._spawner.close()  # reaps one that has died
                self._spawner = self._new_spawner()
                hierarchy = self.groups.hierarchy
                prefixes = hierarchy.prefixes if hierarchy is not None else ()
                directories = [str(self._directories.place)] if self._directories is not None else []
                with contextlib.suppress(SpawnerGone):  # the next request says so
                    await self._spawner.sweep_at_the_end(prefixes, directories)
            return self._spawner

    def _new_spawner(self) -> SpawnerLink:
        try:
            return SpawnerLink.start(self._sandbox_dir)
        except OSError as error:
            raise StartFailed(f"the process that starts cells cannot be started: {error.strerror}") from error


def _identity(mount: Mount) -> tuple[object, ...]:
    """Return what makes *mount* the same for two jobs: the same directory, not only the same path."""
    try:
        facts = mount.source.lstat()
    except OSError as error:
        raise StartFailed(f"a directory of the job is missing: {error.strerror}") from error
    return mount.inside, mount.writable, facts.st_dev, facts.st_ino
