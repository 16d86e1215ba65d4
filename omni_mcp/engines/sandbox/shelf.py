"""Shelf: one template and the cells that it has ready, as many as are likely to be wanted."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Iterator

from omni_mcp.endings import all_to_their_ends, to_its_end
from omni_mcp.engines.sandbox.cell import Cell
from omni_mcp.engines.sandbox.failures import StartFailed
from omni_mcp.engines.sandbox.groups import remove_when_empty
from omni_mcp.engines.sandbox.template import Template

_POLITE_S = 0.025
_PAUSE_S = 0.002  # for the answer to get out
CELLS_OF_A_TEMPLATE = 1000  # then a new template takes its place


class Shelf:
    """Cells of one template. `take` one, `destroy` it after use; `fill` and `close` are the pool's."""

    def __init__(self, template: Template, numbers: Iterator[int]) -> None:
        self.template = template
        self._numbers = numbers
        self.ready: deque[Cell] = deque()
        self.in_use = 0
        self.unused = asyncio.Event()
        self.unused.set()
        self.most_in_use = 0
        self._in_interpreter = True
        self._closing = False
        self.used_at_s = time.monotonic()
        self._filling: asyncio.Task[None] | None = None

    @property
    def usable(self) -> bool:
        """Whether it can give one more cell: where the template has died, its ready cells have too."""
        return self.template.usable

    @property
    def worn(self) -> bool:
        """Whether its template has made as many cells as one should."""
        return self.template.made >= CELLS_OF_A_TEMPLATE

    async def take(self, *, in_interpreter: bool) -> tuple[Cell, bool]:
        """Return a cell, and whether it was ready.

        *in_interpreter*: whether the job is a function of ours; then the next ones are expected to be such too.

        Raises:
            StartFailed: none can be made.
        """
        self.in_use += 1
        self._in_interpreter = in_interpreter
        self.unused.clear()
        self.most_in_use = max(self.most_in_use, self.in_use)
        self.used_at_s = time.monotonic()
        try:
            while self.ready:
                cell = self.ready.popleft()
                if cell.alive:
                    return cell, True
                await to_its_end(cell.destroy())
            return await self._make(), False
        except BaseException:
            self.give_back()
            raise

    def give_back(self) -> None:
        """Say that a cell that was taken is used up."""
        self.in_use -= 1
        self.used_at_s = time.monotonic()
        if not self.in_use:
            self.unused.set()

    def fill(self, target: int) -> None:
        """See to it that *target* cells are ready soon; the caller is not kept."""
        missing = target - len(self.ready)
        if (
            missing > 0
            and not self._closing
            and self.template.plan.proc
            and self.template.usable
            and (self._filling is None or self._filling.done())
        ):
            self._filling = asyncio.create_task(self._fill(target))

    async def close(self) -> None:
        """End the template and every cell of it that is ready.

        Raises:
            CellStuck: something of it does not die; the rest has been ended.
        """
        self._closing = True
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        ready, self.ready = self.ready, deque()
        group = self.template.plan.group
        try:
            await self.template.close()  # all its cells die of it
        finally:
            endings = [cell.destroy() for cell in ready]
            await all_to_their_ends([*endings, *([remove_when_empty(group)] if group is not None else [])])

    async def _fill(self, target: int) -> None:
        with contextlib.suppress(StartFailed):  # whoever wants one will hear why
            while len(self.ready) < target:
                if self.ready:
                    await self._quiet()
                self.ready.append(await self._make())

    async def _quiet(self) -> None:
        """Wait a little for the jobs that run to end: making a cell would cost them a processor."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POLITE_S):
                await self.unused.wait()
                await asyncio.sleep(_PAUSE_S)

    async def _make(self) -> Cell:
        return await self.template.make_cell(next(self._numbers), ahead=self._in_interpreter)


def numbers() -> Iterator[int]:
    """Return the numbers of templates and cells: each is the name of a cgroup too."""
    return itertools.count(1)
