"""JobRun: one job in one cell, from the order to the last byte, ended by itself or by the first limit that it meets."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.sandbox import Connection, EndReason, Job, Streams
from omni_mcp.engines.sandbox.cell import Cell
from omni_mcp.engines.sandbox.channel import ChannelClosed
from omni_mcp.engines.sandbox.egress.grant import EgressGrant
from omni_mcp.engines.sandbox.egress.limits import EgressLimits
from omni_mcp.engines.sandbox.egress.proxy import serve_egress
from omni_mcp.engines.sandbox.egress.trust import Trust
from omni_mcp.engines.sandbox.export import Exported, export_and_close
from omni_mcp.engines.sandbox.failures import StartFailed
from omni_mcp.engines.sandbox.group import OWN_PROCESSES
from omni_mcp.engines.sandbox.growth import Growth, growths_of
from omni_mcp.engines.sandbox.launcher import proxy_environment
from omni_mcp.engines.sandbox.pipes import JobPipes, Pipes, hand_over
from omni_mcp.engines.sandbox.sockets import SocketWatch
from omni_mcp.engines.sandbox.watch import Usage, Watch

_WATCH_EVERY_S = 0.1
_NICE_STACK_BYTES = 8 << 20
_HARDEST_STACK_BYTES = 64 << 20


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
    processes_met: bool = False  # the limit of processes was reached, as far as can be told
    exported: Exported | None = None
    unix_sockets: bool = False  # whether it might have some with names


class JobRun:
    """Made for one job, used once.

    Raises:
        StartFailed: a directory that the job is to have is not there, or its grant for hosts makes no sense.
    """

    def __init__(
        self, cell: Cell, job: Job, *, pipes: JobPipes | None = None, streams: Streams | None = None,
        on_connection: Callable[[Connection], None] = lambda connection: None, trust: Trust | None = None,
    ) -> None:  # fmt: skip
        self._cell = cell
        self._job = job
        self._on_connection = on_connection
        self._trust = trust
        self._grant = _grant_of(job)
        self._growths = [*growths_of(job), *_growth_of_workspace(cell, job)]
        self._over: asyncio.Future[EndReason | None] = asyncio.get_running_loop().create_future()
        self._pipes = pipes or Pipes(job, streams, lambda: self._end("output_limit"))
        self._outcome = Outcome(unix_sockets=cell.unix_sockets)
        self._next_look: asyncio.TimerHandle | None = None
        self._watch = Watch(cell.init_pid) if cell.group is None and cell.init_pid is not None else None
        self._sockets: SocketWatch | None = None  # made at the first look: most jobs are over by then

    async def to_its_end(self) -> Outcome:
        """Run the job to its end, or to the limit that ends it; nothing of it runs when this returns.

        Raises:
            StartFailed: the wall could not be finished, or a limit not be set.
        """
        try:
            self._set_limits()
            await self._run()
            await self._collect()
        except BaseException:
            self._pipes.abandon()
            raise
        return self._outcome

    def _set_limits(self) -> None:
        if self._cell.group is not None:
            try:
                self._cell.group.limit(self._job.limits, self._cell.profile.cpus)
            except OSError as error:
                raise StartFailed(f"cgroup: {error}") from error

    async def _run(self) -> None:
        started = time.monotonic()
        unsent = self._begin()  # before everything else, which goes on while the job starts
        work = (self._converse(unsent), *map(self._watch_growth, self._growths))
        tasks = [asyncio.ensure_future(part) for part in work]
        self._look_later()
        for task in tasks:
            task.add_done_callback(self._on_task_done)
        try:
            async with asyncio.timeout(None if self._job.lasting else self._job.limits.timeout_s):
                self._outcome.cause = await asyncio.shield(self._over)
        except TimeoutError:
            self._end("timeout")
            self._outcome.cause = await self._over
        finally:
            if self._next_look is not None:
                self._next_look.cancel()
            running = [task for task in tasks if not task.done()]
            for task in running:
                task.cancel()
            if running:
                await asyncio.gather(*running, return_exceptions=True)
        self._outcome.wall_s = time.monotonic() - started

    def _end(self, cause: EndReason | None) -> None:
        if not self._over.done():
            if cause is not None and self._watch is not None:
                self._watch.look()  # what it has used until now, for the record
            self._over.set_result(cause)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """A fault of our own ends the job at once, and shows."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._over.done():
            self._over.set_exception(error)

    def _begin(self) -> memoryview | None:
        """Hand over what goes at once of the job; returns the rest, or nothing if nobody is there to take it."""
        if self._cell.uid is not None and not self._job.bundled:
            hand_over(self._pipes.given, self._cell.uid)
        try:
            return self._cell.channel.begin(self._order(), self._pipes.given)
        except ChannelClosed:
            return None

    async def _converse(self, unsent: memoryview | None) -> None:
        """Hand over the rest of the job, serve its way out, and wait for process 1's report."""
        channel = self._cell.channel
        async with AsyncExitStack() as stack:
            try:
                if unsent is None:
                    raise ChannelClosed
                await channel.send(unsent, *self._job.files.values())
                self._pipes.close_given()
                frame = await channel.receive()
                if frame.get("kind") == "listening":
                    await self._open_way_out(stack)
                    frame = await channel.receive()
            except ChannelClosed:
                group = self._cell.group
                self._end("memory" if group is not None and group.out_of_memory() else "killed")
                return
        if frame.get("kind") == "failed":
            raise StartFailed(str(frame.get("what", "process 1 failed")))
        if frame.get("kind") != "ended":
            self._end("killed")
            return
        self._outcome.frame = frame
        self._end(None)

    async def _open_way_out(self, stack: AsyncExitStack) -> None:
        """Serve the proxy on the socket that process 1 made in the cell's own network."""
        descriptor = self._cell.channel.take_descriptor()
        if descriptor is None or self._grant is None:
            raise StartFailed("the cell has no way out to serve")
        listener = socket.socket(fileno=descriptor)
        limits = EgressLimits(bytes_total=sys.maxsize) if self._job.lasting else EgressLimits()
        served = serve_egress(listener, self._grant, on_connection=self._on_connection, tls=self._trust, limits=limits)
        await stack.enter_async_context(served)

    def _order(self) -> JsonObject:
        job = self._job
        way_out = proxy_environment(job.egress) if job.egress else {}
        return {
            "argv": list(job.argv), "function": job.function, "arguments": job.arguments, "bundled": job.bundled,
            "environment": {**self._cell.environment, **way_out, **job.environment},
            "rlimits": self._rlimits(), "exports": job.exports, "listen": bool(job.egress),
            "files": [{"path": path, "size": len(data)} for path, data in job.files.items()],
        }  # fmt: skip

    def _rlimits(self) -> dict[str, tuple[int, int]]:
        limits = self._job.limits
        cpu_s = max(1, int(limits.cpu_s + 0.999))
        # Process 1 counts too. A cgroup can tell that it refused one more, so there it comes to that first.
        processes = limits.processes + OWN_PROCESSES + (self._cell.group is not None)
        rlimits: dict[str, tuple[int, int]] = {
            "RLIMIT_CORE": (0, 0),
            "RLIMIT_CPU": (cpu_s, cpu_s + 1),
            "RLIMIT_FSIZE": (limits.file_size_mib << 20, limits.file_size_mib << 20),
            "RLIMIT_NOFILE": (limits.open_files, limits.open_files),
            "RLIMIT_NPROC": (processes, processes),
            "RLIMIT_STACK": (_NICE_STACK_BYTES, _HARDEST_STACK_BYTES),
            "RLIMIT_MEMLOCK": (1 << 20, 1 << 20),
            "RLIMIT_MSGQUEUE": (0, 0),
            "RLIMIT_RTPRIO": (0, 0),
            "RLIMIT_NICE": (0, 0),
        }
        if self._job.lasting:
            del rlimits["RLIMIT_CPU"]
        if self._cell.group is None:
            rlimits["RLIMIT_DATA"] = (limits.memory_mib << 20, limits.memory_mib << 20)
        return rlimits

    def _look_later(self) -> None:
        self._next_look = asyncio.get_running_loop().call_later(_WATCH_EVERY_S, self._look)

    def _look(self) -> None:
        """Look every 100 ms at what a limit of one process cannot see: all of them together."""
        try:
            cause = self._cause_seen()
        except Exception as error:
            if not self._over.done():
                self._over.set_exception(error)
            return
        if cause is None:
            self._look_later()
        else:
            self._end(cause)

    async def _watch_growth(self, growth: Growth) -> None:
        await growth.exceeded()
        self._end("disk")

    def _cause_seen(self) -> EndReason | None:
        limits, group = self._job.limits, self._cell.group
        cpu_s = None
        if group is not None:
            cpu_s = group.cpu_s()
            if group.out_of_memory() or group.over_memory(self._waiting_bytes()):
                return "memory"  # where one of them is dead already, the rest would idle until the time is up
        elif self._watch is not None:
            usage = self._watch.look()
            cpu_s = usage.cpu_s
            if usage.memory_bytes + self._waiting_bytes() > limits.memory_mib << 20:
                return "memory"
        return "cpu_time" if self._over_cpu_time(cpu_s) else None

    def _waiting_bytes(self) -> int:
        pid = self._cell.init_pid
        if pid is None or self._cell.workspace is not None or not self._cell.alive:
            return 0  # a plain process tree has the host's network, and what waits there is not its own
        if self._sockets is None:
            self._sockets = SocketWatch(pid, in_cgroup=self._cell.group is not None)
        return self._sockets.look()

    def _over_cpu_time(self, cpu_s: float | None) -> bool:
        return cpu_s is not None and cpu_s > self._job.limits.cpu_s and not self._job.lasting

    async def _collect(self) -> None:
        """Take what the job left. The order matters: nothing of it may run while we look."""
        outcome, group = self._outcome, self._cell.group
        ended_itself = outcome.cause is None
        if not ended_itself:
            await self._cell.kill()
        await self._take_files(wanted=ended_itself and self._job.exports)
        kept = await self._pipes.finish()
        outcome.stdout, outcome.stderr, outcome.result = kept["stdout"], kept["stderr"], kept["result"]
        outcome.bytes_out = self._pipes.bytes_out
        if ended_itself and self._pipes.over:
            outcome.cause = "output_limit"  # it wrote more at the very end than it may
        if ended_itself and [growth for growth in self._growths if await growth.is_exceeded()]:
            outcome.cause = "disk"  # likewise
        if outcome.cause is None and group is not None and group.out_of_memory():
            outcome.cause = "memory"
        self._count()
        if outcome.cause is None and group is None and self._over_cpu_time(outcome.cpu_s):
            outcome.cause = "cpu_time"  # by many short processes, between two looks

    async def _take_files(self, *, wanted: bool) -> None:
        descriptor = self._cell.channel.take_descriptor()
        if descriptor is None:
            return
        if wanted:
            self._outcome.exported = await asyncio.to_thread(export_and_close, descriptor)
        else:
            os.close(descriptor)

    def _count(self) -> None:
        outcome, group, frame = self._outcome, self._cell.group, self._outcome.frame or {}
        reaped_cpu_s = float(frame.get("cpu_s", 0.0))
        if group is not None:
            counted_cpu_s = group.cpu_s()
            outcome.cpu_s = counted_cpu_s if counted_cpu_s is not None else reaped_cpu_s
            outcome.peak_bytes = group.peak_bytes()
            outcome.processes_met = group.forks_refused()
            return
        seen = self._watch.most if self._watch is not None else Usage()
        outcome.cpu_s = max(seen.cpu_s, reaped_cpu_s)
        outcome.peak_bytes = max(seen.memory_bytes, int(frame.get("peak_bytes", 0)))
        left_and_first = int(frame.get("left", 0)) + 1  # those that process 1 had to kill, and the job's own
        outcome.processes_met = max(seen.tasks, left_and_first) >= max(2, self._job.limits.processes)


def _growth_of_workspace(cell: Cell, job: Job) -> list[Growth]:
    """Return what watches a workspace of the host, which nothing else bounds."""
    if cell.workspace is None:
        return []
    most_bytes, most_entries = job.limits.disk_mib << 20, job.limits.inodes
    try:
        return [
            Growth(
                cell.workspace, most_bytes=most_bytes, most_entries=most_entries, add_bytes=most_bytes,
                add_entries=most_entries,
            )
        ]  # fmt: skip
    except OSError as error:
        raise StartFailed(f"the job's workspace is missing: {error.strerror}") from error


def _grant_of(job: Job) -> EgressGrant | None:
    if not job.egress:
        return None
    try:
        return EgressGrant(hosts=job.egress, networks=job.networks, credentials=job.credentials)
    except ValueError as error:
        raise StartFailed(f"the hosts that the job may reach: {error}") from error
