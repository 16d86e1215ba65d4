"""Cell: one sandbox for one job, from its start until nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import time
from dataclasses import dataclass
from typing import Any

from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.sandbox import EndReason, Job
from omni_mcp.engines.sandbox.cgroup import Group
from omni_mcp.engines.sandbox.channel import Channel, ChannelClosed
from omni_mcp.engines.sandbox.export import Exported, export_and_close
from omni_mcp.engines.sandbox.growth import Growth
from omni_mcp.engines.sandbox.launcher import WORKSPACE, Launcher, covers_workspace
from omni_mcp.engines.sandbox.output import Budget, Output
from omni_mcp.engines.sandbox.profiles import Profile
from omni_mcp.engines.sandbox.spawning import SpawnerGone, SpawnerLink
from omni_mcp.engines.sandbox.watch import measure

_WATCH_EVERY_S = 0.1
_DEATH_LIMIT_S = 5.0
_SHARED_BYTES = 1 << 20  # /tmp and /dev/shm besides the workspace are as large as it; a cell keeps at least this
_NICE_STACK_BYTES = 8 << 20
_HARDEST_STACK_BYTES = 64 << 20


class CellStuck(Exception):
    """The cell did not die of being killed: a process of it hangs in the kernel."""


class StartFailed(Exception):
    """The cell could not be made; the text is what bubblewrap or process 1 said."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a cell is made with: whom it runs as, its cgroup, whether it gets a /proc of its own."""

    number: int
    uid: int | None
    group: Group | None
    proc: bool


@dataclass(slots=True)
class Outcome:
    """How a job ended, before it is put into words. The first cause wins."""

    cause: EndReason | None = None
    frame: JsonObject | None = None  # process 1's report, if it came
    wall_s: float = 0.0
    peak_bytes: int = 0
    cpu_s: float = 0.0
    stdout: bytes = b""
    stderr: bytes = b""
    result: bytes = b""
    bytes_out: int = 0
    forks_refused: bool = False
    exported: Exported | None = None


class Cell:
    """Made by `open`, used for one job by `run`, ended by `destroy`, which may be called at any time and twice.

    Raises:
        StartFailed: a directory that the job is to have is not there.
    """

    def __init__(self, place: Place, profile: Profile, job: Job, spawner: SpawnerLink, launcher: Launcher) -> None:
        self._place = place
        self._profile = profile
        self._job = job
        self._spawner = spawner
        self._launcher = launcher
        self._channel: Channel | None = None
        self._exited: asyncio.Future[int] | None = None
        self._pidfd: int | None = None
        self._outputs: list[Output] = []
        self._growths = _growths_of(job)
        self._over: asyncio.Future[EndReason | None] = asyncio.get_running_loop().create_future()
        self._outcome = Outcome()
        self._budgets = (
            Budget(job.limits.output_limit_bytes, lambda: self._end("output_limit")),
            Budget(job.limits.output_limit_bytes, lambda: self._end("output_limit")),
        )

    @property
    def init_pid(self) -> int | None:
        """The host's number of process 1, once the cell is ready."""
        return self._channel.sender_pid if self._channel else None

    async def open(self) -> list[str]:
        """Start bubblewrap and let process 1 build the wall; returns the layers that it put in force.

        Raises:
            StartFailed: with the words of whoever failed.
        """
        await self._spawn()
        try:
            async with asyncio.timeout(self._profile.start_limit_s):
                await self._open_channel.send(self._setup())
                frame = await self._open_channel.receive()
        except TimeoutError as error:
            raise StartFailed(f"the cell was not ready after {self._profile.start_limit_s:g} s") from error
        except ChannelClosed as error:
            raise StartFailed(await self._last_words()) from error
        if frame.get("kind") != "ready":
            raise StartFailed(str(frame.get("what", "process 1 failed")))
        self._hold_process()
        return [str(layer) for layer in frame.get("layers", [])]

    async def run(self) -> Outcome:
        """Run the job to its end, or to the limit that ends it; nothing of it runs when this returns."""
        started = time.monotonic()
        works = [self._converse(), self._watch(), *map(self._watch_growth, self._growths)]
        tasks = [asyncio.ensure_future(work) for work in works]
        for task in tasks:
            task.add_done_callback(self._on_task_done)
        try:
            async with asyncio.timeout(self._job.limits.timeout_s):
                cause = await asyncio.shield(self._over)
        except TimeoutError:
            self._end("timeout")
            cause = await self._over
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._outcome.wall_s = time.monotonic() - started
        self._outcome.cause = cause
        await self._collect()
        return self._outcome

    async def destroy(self) -> None:
        """Kill whatever lives and free whatever the cell holds; returns when it is gone.

        Raises:
            CellStuck: something of it does not die.
        """
        if self._channel is not None:
            self._channel.close()
        try:
            await self._kill()
        finally:
            for output in self._outputs:
                output.finish()
            if self._pidfd is not None:
                os.close(self._pidfd)
                self._pidfd = None

    @property
    def _open_channel(self) -> Channel:
        if self._channel is None:
            raise ChannelClosed
        return self._channel

    def _end(self, cause: EndReason | None) -> None:
        if not self._over.done():
            self._over.set_result(cause)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """A fault of our own ends the job at once, and shows."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._over.done():
            self._over.set_exception(error)

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        reader_out, writer_out = os.pipe2(os.O_CLOEXEC)
        reader_err, writer_err = os.pipe2(os.O_CLOEXEC)
        reader_result, writer_result = os.pipe2(os.O_CLOEXEC)
        text, result = self._budgets
        self._outputs = [Output(reader_out, text), Output(reader_err, text), Output(reader_result, result)]
        stdin = _sealed_file(self._job.stdin)
        request = self._launcher.request(
            self._place.number,
            mounts=self._job.mounts,
            uid=self._place.uid,
            cgroups=self._place.group.procs_files if self._place.group else (),
            proc=self._place.proc,
        )
        try:
            given = (stdin, writer_out, writer_err, theirs.fileno(), writer_result)
            self._exited = await self._spawner.spawn(request, given)
        except SpawnerGone as error:
            raise StartFailed("the process that starts cells has ended") from error
        finally:
            theirs.close()
            for descriptor in (stdin, writer_out, writer_err, writer_result):
                os.close(descriptor)

    def _setup(self) -> JsonObject:
        limits = self._job.limits
        workspace = [] if covers_workspace(self._job.mounts) else [WORKSPACE]
        return {
            "tmpfs": [*workspace, "/tmp", "/dev/shm"],
            "disk_bytes": max(limits.disk_mib << 20, _SHARED_BYTES),
            "inodes": limits.inodes,
            "proc": self._place.proc,
            "unix_sockets": self._profile.unix_sockets,
            "count_memory": self._place.group is None,
        }

    def _hold_process(self) -> None:
        """Keep a handle on process 1 that no other process can inherit its number under."""
        pid = self._open_channel.sender_pid
        if pid is None:
            raise StartFailed("process 1 of the cell cannot be identified")
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise StartFailed(f"process 1 of the cell cannot be held: {error.strerror}") from error

    async def _converse(self) -> None:
        """Hand over the job and wait for process 1's report."""
        try:
            await self._open_channel.send(self._order(), tuple(self._job.files.values()))
            frame = await self._open_channel.receive()
        except ChannelClosed:
            group = self._place.group
            self._end("memory" if group is not None and group.out_of_memory() else "killed")
            return
        if frame.get("kind") == "ended":
            self._outcome.frame = frame
            self._end(None)
        else:
            self._end("killed")

    def _order(self) -> JsonObject:
        job = self._job
        environment = {**self._launcher.environment(), **self._profile.environment, **job.environment}
        return {
            "argv": list(job.argv), "function": job.function, "arguments": job.arguments, "environment": environment,
            "rlimits": self._rlimits(), "exports": job.exports,
            "files": [{"path": path, "size": len(data)} for path, data in job.files.items()],
        }  # fmt: skip

    def _rlimits(self) -> dict[str, tuple[int, int]]:
        limits = self._job.limits
        cpu_s = max(1, int(limits.cpu_s + 0.999))
        rlimits: dict[str, tuple[int, int]] = {
            "RLIMIT_CORE": (0, 0),
            "RLIMIT_CPU": (cpu_s, cpu_s + 1),
            "RLIMIT_FSIZE": (limits.file_size_mib << 20, limits.file_size_mib << 20),
            "RLIMIT_NOFILE": (limits.open_files, limits.open_files),
            "RLIMIT_NPROC": (limits.processes + 1, limits.processes + 1),  # process 1 counts too
            "RLIMIT_STACK": (_NICE_STACK_BYTES, _HARDEST_STACK_BYTES),
            "RLIMIT_MEMLOCK": (1 << 20, 1 << 20),
            "RLIMIT_MSGQUEUE": (0, 0),
        }
        if self._place.group is None:
            rlimits["RLIMIT_DATA"] = (limits.memory_mib << 20, limits.memory_mib << 20)
        return rlimits

    async def _watch(self) -> None:
        """Look every 100 ms at what a limit of one process cannot see: all of them together."""
        while True:
            await asyncio.sleep(_WATCH_EVERY_S)
            cause = self._cause_seen()
            if cause is not None:
                self._end(cause)
                return

    async def _watch_growth(self, growth: Growth) -> None:
        await growth.exceeded()
        self._end("disk")

    def _cause_seen(self) -> EndReason | None:
        limits, group = self._job.limits, self._place.group
        cpu_s = None
        if group is not None:
            cpu_s = group.cpu_s()
            if group.out_of_memory():
                return "memory"  # one of them is dead already; the rest would idle until the time is up
        elif self.init_pid is not None:
            usage = measure(self.init_pid)
            self._outcome.peak_bytes = max(self._outcome.peak_bytes, usage.memory_bytes)
            cpu_s = usage.cpu_s
            if usage.memory_bytes > limits.memory_mib << 20:
                return "memory"
        return "cpu_time" if cpu_s is not None and cpu_s > limits.cpu_s else None

    async def _collect(self) -> None:
        """Take what the job left, then end the cell. The order matters: nothing of it may run while we look."""
        outcome, group = self._outcome, self._place.group
        ended_itself = outcome.cause is None
        if not ended_itself:
            await self._kill()
        descriptor = self._open_channel.take_descriptor()
        if descriptor is not None:
            if ended_itself and self._job.exports:
                outcome.exported = await asyncio.to_thread(export_and_close, descriptor)
            else:
                os.close(descriptor)
        outcome.stdout, outcome.stderr, outcome.result = (output.finish() for output in self._outputs)
        outcome.bytes_out = sum(budget.taken for budget in self._budgets)
        if ended_itself and any(budget.over for budget in self._budgets):
            outcome.cause = "output_limit"  # it wrote more at the very end than it may
        if ended_itself and [growth for growth in self._growths if await growth.is_exceeded()]:
            outcome.cause = "disk"  # likewise
        if outcome.cause is None and group is not None and group.out_of_memory():
            outcome.cause = "memory"
        self._count()

    def _count(self) -> None:
        outcome, group, frame = self._outcome, self._place.group, self._outcome.frame or {}
        counted_cpu_s = group.cpu_s() if group is not None else None
        outcome.cpu_s = counted_cpu_s if counted_cpu_s is not None else float(frame.get("cpu_s", 0.0))
        outcome.peak_bytes = max(
            outcome.peak_bytes, group.peak_bytes() if group is not None else int(frame.get("peak_bytes", 0))
        )
        outcome.forks_refused = group is not None and group.forks_refused()

    async def _kill(self) -> None:
        """Kill process 1, and with it its whole pid namespace; wait until bubblewrap has seen it dead."""
        if self._exited is None or self._exited.done():
            return
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        else:
            await self._spawner.kill(self._place.number)
        await asyncio.wait([self._exited], timeout=_DEATH_LIMIT_S)
        if not self._exited.done():  # never seen; then by every other way there is
            await self._spawner.kill(self._place.number)
            if self._place.group is not None:
                self._place.group.kill()
            await asyncio.wait([self._exited], timeout=_DEATH_LIMIT_S)
        if not self._exited.done():
            raise CellStuck(f"cell {self._place.number} lives on after SIGKILL")

    async def _last_words(self) -> str:
        """Return what bubblewrap said before it ended without a cell."""
        if self._exited is not None:
            await asyncio.wait([self._exited], timeout=1.0)
        said = self._outputs[1].finish().decode(errors="replace").strip()
        return said[-1000:] or "the cell ended before it was ready"


def _growths_of(job: Job) -> list[Growth]:
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


def _sealed_file(content: bytes) -> int:
    """Return a descriptor that reads *content* and cannot be written: no writer to feed, no pipe to block on."""
    if not content:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals: Any = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor
