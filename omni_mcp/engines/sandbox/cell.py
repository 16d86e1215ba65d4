"""Cell: one sandbox for one job, from its wall until nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from omni_mcp.engines.sandbox.channel import Channel
from omni_mcp.engines.sandbox.failures import CellStuck, StartFailed
from omni_mcp.engines.sandbox.group import Group
from omni_mcp.engines.sandbox.groups import Groups, remove_when_empty
from omni_mcp.engines.sandbox.profiles import Profile

_DEATH_LIMIT_S = 5.0


class Cell:
    """Made by `Template.make_cell`, given one job by `JobRun`, ended by `destroy`, which may be called twice."""

    def __init__(
        self, number: int, channel: Channel, group: Group | None, *, groups: Groups, profile: Profile,
        environment: Mapping[str, str], workspace: Path | None = None,
        ended_by: Sequence[signal.Signals] = (signal.SIGKILL,), unix_sockets: bool = False, uid: int | None = None,
    ) -> None:  # fmt: skip
        self.number = number
        self.channel = channel
        self.group = group
        self._groups = groups
        self.profile = profile
        self.environment = environment
        self.workspace = workspace  # of the host; None: it is inside and its size is bounded
        self._ended_by = ended_by
        self.uid = uid  # whose processes its are; None: ours
        self.unix_sockets = unix_sockets  # whether its job may have some with names
        self.layers: tuple[str, ...] = ()  # what process 1 has put in force
        self._loop = asyncio.get_running_loop()
        self._pidfd: int | None = None
        self._dead: asyncio.Future[None] = self._loop.create_future()

    @property
    def init_pid(self) -> int | None:
        """The host's number of process 1, once the cell is ready."""
        return self.channel.sender_pid

    @property
    def alive(self) -> bool:
        """Whether its process 1 lives, at this very moment."""
        if self._pidfd is None or self._dead.done():
            return False
        ended = select.poll()
        ended.register(self._pidfd, select.POLLIN)
        return not ended.poll(0)

    async def wait_until_ready(self) -> None:
        """Wait until process 1 is in its cgroup and has put up the wall.

        Raises:
            StartFailed: with the words of whoever failed.
            ChannelClosed: the cell ended before that.
        """
        frame = await self.channel.receive()
        if frame.get("kind") != "ready":
            raise StartFailed(str(frame.get("what", "process 1 failed")))
        self._hold_process()
        self.layers = tuple(map(str, frame.get("layers", ())))

    async def kill(self) -> None:
        """Kill process 1, and with it its whole pid namespace; returns when the kernel has no process of it left.

        A plain process tree is told to end first: its supervisor kills the rest of it, then ends.

        Raises:
            CellStuck: something of it does not die.
        """
        if self._pidfd is None or self._dead.done():
            return
        for number in self._ended_by:
            self._send(number)
            await asyncio.wait([self._dead], timeout=_DEATH_LIMIT_S)
            if self._dead.done():
                return
        if not self._dead.done() and self.group is not None:
            self.group.kill()
            await asyncio.wait([self._dead], timeout=_DEATH_LIMIT_S)
        if not self._dead.done():
            raise CellStuck(f"cell {self.number} lives on after SIGKILL")

    async def destroy(self) -> None:
        """Kill whatever lives and free whatever the cell holds; returns when it is gone.

        Raises:
            CellStuck: something of it does not die.
        """
        self.channel.close()
        try:
            await self.kill()
        finally:
            self._let_go()
        group, self.group = self.group, None  # the next cell may have it from here on
        if group is not None:
            await (self._groups.give_back(group) if self._dead.done() else remove_when_empty(group))

    def _send(self, number: signal.Signals) -> None:
        if self._pidfd is None:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)
            if number != signal.SIGKILL:
                signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)  # its job may have stopped it

    def _hold_process(self) -> None:
        """Keep a handle on process 1 that no other process can inherit its number under."""
        pid = self.channel.sender_pid
        if pid is None:
            raise StartFailed("process 1 of the cell cannot be identified")
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise StartFailed(f"process 1 of the cell cannot be held: {error.strerror}") from error
        self._loop.add_reader(self._pidfd, self._on_death)

    def _on_death(self) -> None:
        """The kernel reports the end of process 1 after that of every other process of its pid namespace."""
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
        if not self._dead.done():
            self._dead.set_result(None)

    def _let_go(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
