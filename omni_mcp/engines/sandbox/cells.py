"""BubblewrapSandbox: runs jobs in single-use cells, so many at once, and says in words how each of them ended."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from omni_mcp.contracts.errors import RateLimited, SandboxUnavailable
from omni_mcp.contracts.json import JsonObject, depth_of
from omni_mcp.contracts.sandbox import POSTURES, Connection, EndReason, Isolation, Job, JobEnd, Served, Streams
from omni_mcp.endings import to_its_end
from omni_mcp.engines.sandbox.bytecode import compile_ahead
from omni_mcp.engines.sandbox.cgroup import NoCgroups, find_hierarchy
from omni_mcp.engines.sandbox.channel import as_json
from omni_mcp.engines.sandbox.egress.trust import Trust
from omni_mcp.engines.sandbox.failures import StartFailed
from omni_mcp.engines.sandbox.job_directories import JobDirectories
from omni_mcp.engines.sandbox.jobrun import JobRun, Outcome
from omni_mcp.engines.sandbox.launcher import Launcher, base_interpreter, covers_workspace
from omni_mcp.engines.sandbox.pipes import ServerPipes
from omni_mcp.engines.sandbox.plain_launcher import PlainLauncher, plain_fault
from omni_mcp.engines.sandbox.plain_probe import probe_plain
from omni_mcp.engines.sandbox.pool import WARM_CELLS, Pool
from omni_mcp.engines.sandbox.probe import Missing, find_bwrap, machine_fault, probe
from omni_mcp.engines.sandbox.profiles import Profile
from omni_mcp.engines.sandbox.uids import DEFAULT_RANGE, jobs_part, running_as_root

WAITING_LIMIT = 256
WAIT_LIMIT_S = 120.0
SERVERS_LIMIT = 64
RESULT_DEPTH = 64
_ORDER_LIMIT_BYTES = 15 * 1024 * 1024  # process 1 refuses frames over 16 MiB
_CRASH_EXIT = 70  # sandbox/worker.py, EXIT_CRASH
_OURS = ("/proc", "/dev", "/sys", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/sandbox")
_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")

_WORDS: dict[EndReason, str] = {
    "exit": "",
    "signal": "the job was ended by a signal",
    "timeout": "the job ran longer than limits.timeout_s",
    "cpu_time": "the job used more CPU time than limits.cpu_s",
    "memory": "the job used more memory than limits.memory_mib",
    "processes": "the job failed after it reached limits.processes",
    "disk": "the job filled its workspace (limits.disk_mib, limits.inodes)",
    "file_size": "the job wrote a file larger than limits.file_size_mib",
    "output_limit": "the job wrote more output than limits.output_limit_bytes",
    "policy": "the job made a system call that the sandbox kills for",
    "killed": "the cell was killed from outside",
}

OnConnection = Callable[[Connection], None]


class BubblewrapSandbox:
    """Port `Sandbox`. Made by `open_sandbox`."""

    def __init__(
        self, *, isolation: Isolation, pool: Pool | None, profiles: Mapping[str, Profile], max_jobs: int,
        waiting_limit: int, wait_limit_s: float,
    ) -> None:  # fmt: skip
        self._isolation = isolation
        self._pool = pool
        self._profiles = profiles
        self.max_jobs = max_jobs
        self._slots = asyncio.Semaphore(max_jobs)
        self._waiting = 0
        self._servers = 0
        self._trust = Trust()
        self._waiting_limit = waiting_limit
        self._wait_limit_s = wait_limit_s

    @property
    def spawner_pid(self) -> int | None:
        """The helper process that starts cells, for `status`."""
        return self._pool.spawner_pid if self._pool else None

    def isolation(self) -> Isolation:
        """What can be had here, probed once at start."""
        return self._isolation

    def held(self) -> dict[str, int]:
        """How many templates run and how many cells are ready, for `status`."""
        return self._pool.held if self._pool else {"templates": 0, "cells": 0}

    async def drop_templates(self) -> None:
        """Let go of everything that is kept ready: the next job of each profile starts cold."""
        if self._pool is not None:
            await self._pool.drop_templates()

    async def warm_up(self, profile: str) -> None:
        """Have a cell of *profile* ready ahead of its first job, where that can be."""
        found = self._profiles.get(profile)
        if found is not None and self._pool is not None and self._isolation.at_least(found.posture):
            await self._pool.warm_up(found)

    async def run(
        self, job: Job, *, streams: Streams | None = None, on_connection: OnConnection | None = None
    ) -> JobEnd:
        """Run one job in one fresh cell and wait until nothing of it is left.

        A job that fails is a `JobEnd`, never an exception. Cancelling the task kills the cell first.
        """
        profile = self._profiles.get(job.profile)
        if profile is None:
            return self._not_run(job, "start_failed", f"there is no sandbox profile {job.profile!r}")
        lacking = self._lacking(job, profile)
        if lacking or self._pool is None:
            return self._not_run(job, "sandbox_unavailable", lacking or "there is no sandbox here")
        fault = fault_of(job)
        if fault:
            return self._not_run(job, "start_failed", fault)
        if not await self._take_slot():
            return self._not_run(job, "overloaded", "too many jobs are waiting for a cell; try again later")
        try:
            return await self._run_in_cell(self._pool, profile, job, streams, on_connection or _tell_nobody)
        finally:
            self._slots.release()

    async def _run_in_cell(
        self, pool: Pool, profile: Profile, job: Job, streams: Streams | None, on_connection: OnConnection
    ) -> JobEnd:
        started = time.monotonic()
        try:
            in_interpreter = bool(job.function) and job.bundled
            async with pool.cell(profile, job.mounts, job.limits, in_interpreter=in_interpreter) as (cell, hot):
                start_ms = (time.monotonic() - started) * 1000
                run = JobRun(cell, job, streams=streams, on_connection=on_connection, trust=self._trust)
                outcome = await run.to_its_end()
        except StartFailed as error:
            return replace(self._not_run(job, "start_failed", str(error)), passing=True)
        return self._end_of(job, profile, outcome, start_ms, hot=hot)

    @asynccontextmanager
    async def serve(
        self, job: Job, *, on_stderr: Callable[[bytes], None], on_connection: OnConnection | None = None
    ) -> AsyncIterator[Served]:
        """Run a `lasting` job in one fresh cell until the context is left; then nothing of it is left.

        Raises:
            SandboxUnavailable: the isolation that it demands cannot be had, or it cannot be started.
            RateLimited: as many servers run as may.
        """
        profile = self._profiles.get(job.profile)
        fault = f"there is no sandbox profile {job.profile!r}" if profile is None else fault_of(job)
        fault = fault or (self._lacking(job, profile) if profile is not None else "")
        if fault or profile is None or self._pool is None:
            raise SandboxUnavailable("the server cannot be started here", detail=fault or "there is no sandbox here")
        if self._servers >= SERVERS_LIMIT:
            raise RateLimited("too many servers run already", detail=f"{self._servers} servers run", data={})
        self._servers += 1
        try:
            async with self._served(self._pool, profile, job, on_stderr, on_connection or _tell_nobody) as served:
                yield served
        except StartFailed as error:
            raise SandboxUnavailable("the server cannot be started here", detail=str(error)) from error
        finally:
            self._servers -= 1

    @asynccontextmanager
    async def _served(
        self, pool: Pool, profile: Profile, job: Job, on_stderr: Callable[[bytes], None], on_connection: OnConnection
    ) -> AsyncIterator[Served]:
        async with pool.cell(profile, job.mounts, job.limits) as (cell, hot):
            pipes = ServerPipes(on_stderr)
            run = JobRun(cell, job, pipes=pipes, on_connection=on_connection, trust=self._trust)

            async def its_end() -> JobEnd:
                return self._end_of(job, profile, await run.to_its_end(), 0.0, hot=hot)

            ended = asyncio.ensure_future(its_end())
            try:
                yield Served(stdin=pipes.stdin, stdout=pipes.stdout, ended=ended)
            finally:
                await to_its_end(cell.kill())
                await asyncio.wait([ended])
                pipes.close()

    async def _take_slot(self) -> bool:
        if not self._slots.locked():
            await self._slots.acquire()
            return True
        if self._waiting >= self._waiting_limit:
            return False
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_limit_s):
                await self._slots.acquire()
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1
        return True

    def _lacking(self, job: Job, profile: Profile) -> str:
        """Return why *job* may not run under the isolation that can be had; nothing if it may."""
        demanded = max(job.posture, profile.posture, key=POSTURES.index)
        if not self._isolation.at_least(demanded) or self._isolation.posture == "none":
            reasons = "; ".join(f"{layer}: {why}" for layer, why in self._isolation.missing.items())
            return (
                f"isolation {demanded!r} is demanded, {self._isolation.posture!r} can be had ({reasons or 'no reason'})"
            )
        return plain_fault(job) if self._isolation.posture == "landlock" else ""

    def _not_run(self, job: Job, reason: EndReason, message: str) -> JobEnd:
        return JobEnd(reason=reason, message=message, isolation=self._isolation, limits=job.limits.model_dump())

    def _end_of(self, job: Job, profile: Profile, outcome: Outcome, start_ms: float, *, hot: bool) -> JobEnd:
        exit_code, number = _status_of(outcome)
        result, fault = _result_of(job, outcome)
        reason = _reason_of(job, outcome, exit_code, number, result)
        not_started = str((outcome.frame or {}).get("not_started", ""))
        message = fault or _WORDS.get(reason, "")
        if reason == "signal" and number is not None:
            message = f"{message} ({_signal_name(number)})"
        return JobEnd(
            reason=reason, exit_code=exit_code, signal=number,
            stdout=outcome.stdout, stderr=outcome.stderr, result=result,
            files=tuple(outcome.exported.files) if outcome.exported else (), message=not_started or message,
            isolation=self._isolation, usage=_usage_of(outcome, start_ms, hot=hot),
            limits={**job.limits.model_dump(), "cpus": profile.cpus, "unix_sockets": outcome.unix_sockets},
            passing=reason == "killed",
        )  # fmt: skip


def _tell_nobody(connection: Connection) -> None:
    pass


def fault_of(job: Job) -> str:
    """Return what is wrong with *job* itself, before anything is started; nothing if it can be tried."""
    if bool(job.argv) == bool(job.function):
        return "a job has either a command or a function"
    if any("\0" in word for word in (*job.argv, job.function, *job.environment.values())):
        return "a NUL character cannot be passed to a process"
    if any(not _VARIABLE.match(name) for name in job.environment):
        return "the name of an environment variable is not one"
    if job.files and covers_workspace(job.mounts):
        return "files can only be put into a fresh workspace"
    for path in job.files:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\0" in path or len(path) > 1024:
            return f"{path!r} is not a path inside the workspace"
    if sum(len(data) for data in job.files.values()) > job.limits.disk_mib << 20:
        return "the input files are larger than limits.disk_mib"
    for mount in job.mounts:
        inside = PurePosixPath(mount.inside)
        if (
            ".." in inside.parts or str(inside) != mount.inside or len(inside.parts) < 2 or inside.parts[0] != "/"
            or f"/{inside.parts[1]}" in _OURS or mount.inside in ("/tmp", "/home", "/dev/shm")
        ):  # fmt: skip
            return f"{mount.inside!r} is not a place for a directory of the host"
        above = next((m.inside for m in job.mounts if m.writable and mount.inside.startswith(f"{m.inside}/")), "")
        if above:
            return f"{mount.inside!r} is beneath {above!r}, which the job can write: it could lead it elsewhere"
    try:
        size = len(as_json({"argv": job.argv, "arguments": job.arguments, "environment": job.environment}))
    except (TypeError, ValueError) as error:
        return f"the job cannot be written as JSON: {error}"
    return "the arguments are too large" if size > _ORDER_LIMIT_BYTES else ""


def _status_of(outcome: Outcome) -> tuple[int | None, int | None]:
    """Return (exit code, signal) of the job's first process, as process 1 reported it."""
    if outcome.frame is None or outcome.frame.get("not_started"):
        return None, None
    code = os.waitstatus_to_exitcode(int(outcome.frame["status"]))
    return (code, None) if code >= 0 else (None, -code)


def _result_of(job: Job, outcome: Outcome) -> tuple[JsonObject | None, str]:
    """Return what a function wrote, and what is wrong with it. The bytes may come from anything in the cell."""
    if not job.function or not outcome.result or outcome.cause is not None:
        return None, ""
    try:
        result = orjson.loads(outcome.result)
    except orjson.JSONDecodeError:
        return None, "the function's result is not JSON"
    if not isinstance(result, dict):
        return None, "the function's result is not an object"
    if depth_of(result, limit=RESULT_DEPTH) > RESULT_DEPTH:
        return None, f"the function's result is nested deeper than {RESULT_DEPTH}"
    return result, ""


def _reason_of(
    job: Job, outcome: Outcome, exit_code: int | None, number: int | None, result: JsonObject | None
) -> EndReason:
    if outcome.cause is not None:
        return outcome.cause
    if outcome.frame is not None and outcome.frame.get("not_started"):
        return "start_failed"
    if number is not None:
        return _reason_of_signal(job, outcome, number)
    crashed = exit_code == _CRASH_EXIT if job.function else bool(exit_code)
    if crashed:
        if (result or {}).get("exception") == "MemoryError":
            return "memory"
        if (outcome.frame or {}).get("full"):
            return "disk"
        if outcome.processes_met:
            return "processes"
    return "exit"


def _reason_of_signal(job: Job, outcome: Outcome, number: int) -> EndReason:
    if number == signal.SIGXFSZ:
        return "file_size"
    if number == signal.SIGSYS:
        return "policy"
    if number == signal.SIGXCPU or (number == signal.SIGKILL and outcome.cpu_s >= job.limits.cpu_s):
        return "cpu_time"
    return "signal"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _usage_of(outcome: Outcome, start_ms: float, *, hot: bool) -> JsonObject:
    usage: JsonObject = {
        "wall_ms": round(outcome.wall_s * 1000, 3),
        "cpu_ms": round(outcome.cpu_s * 1000, 3),
        "start_ms": round(start_ms, 3),
        "memory_peak_bytes": outcome.peak_bytes,
        "bytes_out": outcome.bytes_out,
        "temperature": "hot" if hot else "cold",
    }
    reached = ["disk"] if (outcome.frame or {}).get("full") else []
    reached += ["processes"] if outcome.processes_met else []
    if reached:
        usage["limits_reached"] = reached  # a hint: the job met the limit, which need not be why it failed
    if outcome.exported is not None and outcome.exported.rejected:
        usage["not_exported"] = outcome.exported.rejected
    return usage


@asynccontextmanager
async def open_sandbox(
    *,
    profiles: Mapping[str, Profile],
    sandbox_dir: Path,
    uid_range: range = DEFAULT_RANGE,
    max_jobs: int | None = None,
    waiting_limit: int = WAITING_LIMIT,
    wait_limit_s: float = WAIT_LIMIT_S,
    use_cgroups: bool = True,
    use_namespaces: bool = True,
    closed: bool = False,
    warm_cells: int = WARM_CELLS,
    first: str | None = None,
) -> AsyncIterator[BubblewrapSandbox]:
    """Find out what isolation can be had here and yield a sandbox that gives it; leaving kills every cell.

    Args:
        profiles: by name, from `load_profiles`.
        sandbox_dir: the shipped directory with process 1, the spawner and the tools.
        uid_range: whom jobs run as if the gateway is root.
        max_jobs: how many cells at once; the others queue. Default: two per processor.
        waiting_limit: how many may queue; one more ends as `overloaded`, and so does one that waited *wait_limit_s*.
        wait_limit_s: see there.
        use_cgroups: False does without, and says so in the posture.
        use_namespaces: False does without, as where none can be had: then jobs run as plain process trees, and only
            those whose demand is no more than `landlock`.
        closed: True looks for nothing and starts nothing: no job runs.
        warm_cells: how many cells may be kept ready in all, each about a megabyte.
        first: the profile of the first job, where that is known: its template is used for the look around.
    """  # fmt: skip
    jobs = max_jobs or 2 * (os.cpu_count() or 1)
    uids = uid_range if running_as_root() else None
    if uids is not None and (0 in uids or len(jobs_part(uids)) <= jobs):
        raise ValueError(f"uid_range must not hold 0 and must hold more than {2 * jobs} uids")
    pool, isolation = None, Isolation(posture="none", missing={"namespaces": "switched off"})
    fault = machine_fault()
    if closed:
        pass
    elif fault is not None:
        isolation = Isolation(posture="none", missing={fault.layer: fault.reason})
    elif use_namespaces:
        pool, isolation = await _with_namespaces(
            sandbox_dir, uids, use_cgroups=use_cgroups, warm_cells=warm_cells, first=profiles.get(first or "")
        )
    if pool is None and not closed and fault is None:
        pool, isolation = await _without_namespaces(sandbox_dir, uids, isolation)
    try:
        yield BubblewrapSandbox(
            isolation=isolation, pool=pool, profiles=profiles, max_jobs=jobs,
            waiting_limit=waiting_limit, wait_limit_s=wait_limit_s,
        )  # fmt: skip
    finally:
        if pool is not None:
            await to_its_end(pool.close())


async def _with_namespaces(
    sandbox_dir: Path, uids: range | None, *, use_cgroups: bool, warm_cells: int, first: Profile | None
) -> tuple[Pool | None, Isolation]:
    """Return a pool of cells and what holds in them; no pool where nothing runs in them."""
    bwrap, _ = await asyncio.gather(asyncio.to_thread(find_bwrap), asyncio.to_thread(compile_ahead, sandbox_dir))
    if isinstance(bwrap, Missing):
        return None, Isolation(posture="none", missing={bwrap.layer: bwrap.reason})
    hierarchy = find_hierarchy() if use_cgroups else NoCgroups("switched off")
    no_cgroups = hierarchy if isinstance(hierarchy, NoCgroups) else None
    launcher = Launcher(bwrap=bwrap, interpreter=base_interpreter(), sandbox_dir=sandbox_dir, stage=uids is not None)
    pool = Pool(
        launcher=launcher, sandbox_dir=sandbox_dir, uids=uids, warm_cells=warm_cells,
        hierarchy=None if isinstance(hierarchy, NoCgroups) else hierarchy,
    )  # fmt: skip
    if pool.groups.hierarchy is not None:
        pool.groups.hierarchy.sweep()
    return await _probed(pool, probe(pool, no_cgroups, first))


async def _without_namespaces(sandbox_dir: Path, uids: range | None, why: Isolation) -> tuple[Pool | None, Isolation]:
    """Return a pool of plain process trees and what holds in them; no pool where nothing runs in them."""
    launcher = PlainLauncher(interpreter=base_interpreter(), sandbox_dir=sandbox_dir, stage=uids is not None)
    try:
        directories = JobDirectories()
    except OSError as error:
        return None, replace(why, missing={**why.missing, "landlock": f"no directory for jobs: {error.strerror}"})
    pool = Pool(
        launcher=launcher, sandbox_dir=sandbox_dir, uids=uids, hierarchy=None, warm_cells=0, directories=directories
    )
    return await _probed(pool, probe_plain(pool, why.missing))


async def _probed(pool: Pool, work: Coroutine[Any, Any, Isolation]) -> tuple[Pool | None, Isolation]:
    """Close *pool* if nothing can run in it."""
    try:
        isolation = await work
    except BaseException:
        await to_its_end(pool.close())
        raise
    if isolation.posture != "none":
        return pool, isolation
    await to_its_end(pool.close())
    return None, isolation
