"""Template: one bubblewrap with our process 1 in it, which has imported what its jobs need and forks cells."""

from __future__ import annotations

import asyncio
import os
import socket

from omni_mcp.endings import to_its_end
from omni_mcp.engines.sandbox.cell import Cell
from omni_mcp.engines.sandbox.channel import Channel, ChannelClosed
from omni_mcp.engines.sandbox.failures import CellStuck, StartFailed
from omni_mcp.engines.sandbox.group import Group
from omni_mcp.engines.sandbox.groups import Groups
from omni_mcp.engines.sandbox.launcher import Launcher
from omni_mcp.engines.sandbox.output import Budget, Output
from omni_mcp.engines.sandbox.plain_launcher import PlainLauncher
from omni_mcp.engines.sandbox.plan import Plan
from omni_mcp.engines.sandbox.spawning import SpawnerGone, SpawnerLink

_WORDS_LIMIT_BYTES = 16 * 1024
_WORDS_WAIT_S = 1.0
_DEATH_LIMIT_S = 5.0


class Template:
    """Made by `open`, asked for cells by `make_cell`, ended by `close`, which may be called at any time and twice."""

    def __init__(
        self, plan: Plan, spawner: SpawnerLink, launcher: Launcher | PlainLauncher, groups: Groups
    ) -> None:  # fmt: skip
        self.plan = plan
        self._groups = groups
        self.made = 0
        self._spawner = spawner
        self._launcher = launcher
        self._channel: Channel | None = None
        self._exited: asyncio.Future[int] | None = None
        self._words: Output | None = None
        self._stuck = False

    @property
    def usable(self) -> bool:
        """Whether it can still make a cell."""
        if self._stuck or self._exited is None or self._exited.done():
            return False
        return self.plan.proc or self.made == 0  # without /proc it becomes its only cell

    async def open(self) -> None:
        """Start it and wait until it has imported what it is to have ready.

        Raises:
            StartFailed: with the words of whoever failed.
        """
        ours, theirs = _pair()
        self._channel = Channel(ours)
        with theirs:
            await self._start(theirs.fileno())
        await self._wait_until_ready()

    async def make_cell(self, number: int, *, ahead: bool) -> Cell:
        """Fork a cell and wait until its wall stands; whoever gets it destroys it.

        With *ahead* it has the process already in which a function will run: a command is better off without.

        Raises:
            StartFailed: with the words of whoever failed.
        """
        ours, theirs = _pair()
        with theirs:
            channel = Channel(ours)
            try:
                group = await self._groups.take(number)
            except BaseException:
                channel.close()
                raise
            cell = Cell(
                number, channel, group, groups=self._groups, profile=self.plan.profile,
                environment=self._environment(), workspace=self.plan.workspace, ended_by=self._launcher.ended_by,
                unix_sockets=self.plan.unix_sockets, uid=self.plan.uid,
            )  # fmt: skip
            await self._make(cell, theirs, group, ahead=ahead)
        return cell

    async def _make(self, cell: Cell, theirs: socket.socket, group: Group | None, *, ahead: bool) -> None:
        self.made += 1
        try:
            async with asyncio.timeout(self.plan.profile.start_limit_s):
                order = {"kind": "cell", **({"ahead": True} if ahead else {})}
                channel = self._open_channel
                await channel.send(channel.begin(order, (theirs.fileno(), *_entrances(group))))
                theirs.close()
                await cell.wait_until_ready()
        except BaseException as error:
            await to_its_end(cell.destroy())
            if isinstance(error, TimeoutError):
                self._stuck = True
                raise StartFailed(f"the cell was not ready after {self.plan.profile.start_limit_s:g} s") from error
            if isinstance(error, ChannelClosed):
                raise StartFailed(await self._last_words()) from error
            raise

    async def close(self) -> None:
        """Kill it and every cell that came from it; returns when bubblewrap has ended.

        Raises:
            CellStuck: something of it does not die.
        """
        if self._channel is not None:
            self._channel.close()
        try:
            await self._end()
        finally:
            if self._words is not None:
                await self._words.finish()

    async def _start(self, control: int) -> None:
        reader, writer = _pipe()
        self._words = Output(reader, Budget(_WORDS_LIMIT_BYTES, lambda: None))
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            descriptors = (nothing, nothing, writer, control)
            self._exited = await self._spawner.spawn(self._launcher.request(self.plan), descriptors)
        except SpawnerGone as error:
            raise StartFailed("the process that starts cells has ended") from error
        finally:
            os.close(writer)
            os.close(nothing)

    async def _end(self) -> None:
        for number in self._launcher.ended_by:
            if self._exited is None or self._exited.done():
                return
            await self._spawner.kill(self.plan.number, number)
            await asyncio.wait([self._exited], timeout=_DEATH_LIMIT_S)
        if self._exited is not None and not self._exited.done():
            raise CellStuck(f"template {self.plan.number} lives on after SIGKILL")

    @property
    def _open_channel(self) -> Channel:
        if self._channel is None:
            raise ChannelClosed
        return self._channel

    def _environment(self) -> dict[str, str]:
        """Return what an order has to bring beside the job's own."""
        if self._launcher.sets_environment:
            return {}
        return {**self._launcher.environment(self.plan.profile), **self.plan.profile.environment}

    async def _wait_until_ready(self) -> None:
        limit_s = self.plan.profile.start_limit_s
        try:
            async with asyncio.timeout(limit_s):
                channel = self._open_channel
                await channel.send(channel.begin(self._launcher.setup(self.plan)))
                await channel.receive()
        except TimeoutError as error:
            raise StartFailed(f"the template was not ready after {limit_s:g} s") from error
        except ChannelClosed as error:
            raise StartFailed(await self._last_words()) from error

    async def _last_words(self) -> str:
        """Return what bubblewrap said before it ended."""
        if self._exited is not None:
            await asyncio.wait([self._exited], timeout=_WORDS_WAIT_S)
        said = (await self._words.finish() if self._words else b"").decode(errors="replace").strip()
        return said[-1000:] or "the cell ended before it was ready"


def _entrances(group: Group | None) -> list[int]:
    try:
        return group.entrances() if group is not None else []
    except OSError as error:
        raise StartFailed(f"cgroup: {error}") from error


def _pair() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair()
    except OSError as error:
        raise StartFailed(f"no socket can be had: {error.strerror}") from error


def _pipe() -> tuple[int, int]:
    try:
        return os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise StartFailed(f"no pipe can be had: {error.strerror}") from error
