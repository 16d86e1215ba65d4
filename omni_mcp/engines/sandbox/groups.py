"""Groups: gives each cell a cgroup and takes it back; one that is as good as new serves the next cell too."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from omni_mcp.endings import all_to_their_ends, to_its_end
from omni_mcp.engines.sandbox.failures import CellStuck, StartFailed
from omni_mcp.engines.sandbox.group import Group, Hierarchy

SPARE_GROUPS = 8  # kept for the next cells; making and removing one takes part of a millisecond and of a thread
_REMOVE_TRIES = 500
_REMOVE_STEP_S = 0.01


class Groups:
    """The cgroups of one pool of cells; without a *hierarchy* a cell has none. `close` removes those that are kept.

    A group has one cell at a time. What its last job left there is looked at when the next cell wants it: it was proven
    dead by then, and had time to give back its memory.
    """

    def __init__(self, hierarchy: Hierarchy | None) -> None:
        self.hierarchy = hierarchy
        self._spare: deque[Group] = deque()
        self._removing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def take(self, number: int) -> Group | None:
        """Return the cgroup of cell *number*: a spare one, or a new one.

        Raises:
            StartFailed: it cannot be made.
        """
        while self._spare:
            group = self._spare.popleft()  # the one that has rested longest
            if group.renew():
                return group
            self._remove_aside(group)
        return await self._made_aside(number) if self.hierarchy is not None else None

    def make(self, number: int) -> Group | None:
        """Return a new one for template or cell *number*.

        Raises:
            StartFailed: it cannot be made.
        """
        if self.hierarchy is None:
            return None
        try:
            return self.hierarchy.create(number)
        except OSError as error:
            raise StartFailed(f"cgroup: {error}") from error

    async def give_back(self, group: Group) -> None:
        """Take *group* from a cell that is dead.

        Raises:
            CellStuck: a process in it does not die.
        """
        if self._closed or self.hierarchy is None or not self.hierarchy.renews or len(self._spare) >= SPARE_GROUPS:
            await remove_when_empty(group)
        else:
            self._spare.append(group)

    async def drop(self) -> None:
        """Remove those that are kept; returns when those that were not fit any more have gone too.

        Raises:
            CellStuck: a process in one of them does not die; the rest has been removed.
        """
        spare, self._spare = self._spare, deque()
        try:
            await all_to_their_ends([remove_when_empty(group) for group in spare])
        finally:
            while self._removing:
                await asyncio.wait(self._removing)

    async def close(self) -> None:
        """As `drop`, and from now on each that is given back is removed too."""
        self._closed = True
        await self.drop()

    def _remove_aside(self, group: Group) -> None:
        """Remove *group* while others go on: what one job has left there is no matter of who wants the next cell."""
        task = asyncio.create_task(remove_when_empty(group))
        self._removing.add(task)
        task.add_done_callback(self._removed)

    def _removed(self, task: asyncio.Task[None]) -> None:
        self._removing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            task.get_loop().call_exception_handler({"message": "a cgroup does not end", "exception": error})

    async def _made_aside(self, number: int) -> Group | None:
        """As `make`, in a thread."""
        making = asyncio.ensure_future(asyncio.to_thread(self.make, number))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            await to_its_end(_remove_made(making))
            raise


async def remove_when_empty(group: Group) -> None:
    """Remove *group*, killing what may still be in it.

    Raises:
        CellStuck: a process in it does not die.
    """
    for _ in range(_REMOVE_TRIES):
        if await asyncio.to_thread(group.remove):  # takes a millisecond where there are four hierarchies
            return
        group.kill()
        await asyncio.sleep(_REMOVE_STEP_S)
    raise CellStuck("the cell's cgroup cannot be removed: a process in it does not die")


async def _remove_made(making: asyncio.Future[Group | None]) -> None:
    with contextlib.suppress(StartFailed):
        group = await making
        if group is not None:
            await remove_when_empty(group)
