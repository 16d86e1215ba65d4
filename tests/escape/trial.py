"""A trial runs one probe in a real cell and looks, from outside, at what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_mcp.contracts.manifest import Limits
from omni_mcp.contracts.sandbox import Job, JobEnd, Mount
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox, open_sandbox
from omni_mcp.engines.sandbox.launcher import base_interpreter
from omni_mcp.engines.sandbox.profiles import Profile
from omni_mcp.engines.sandbox.uids import DEFAULT_RANGE, owners_part
from tests.escape.ordinary import Use
from tests.escape.probe import Outcome, Probe, Verdict, judge, program
from tests.escape.world import World, open_fifo, plant_programs, survivors

LIMITS = {
    "timeout_s": 20, "memory_mib": 64, "cpu_s": 10, "processes": 24, "open_files": 64, "file_size_mib": 8,
    "disk_mib": 8, "inodes": 64, "output_limit_bytes": 131072,
}  # fmt: skip
HOLD_S = 2  # how long a probe keeps what it took: twenty looks of the watch that ends it
PROFILES = {
    "closed": Profile(profile=1, description="Without unix sockets that have names.", unix_sockets=False),
    "usual": Profile(profile=1, description="As jobs of callers have it."),
    "sockets": Profile(profile=1, description="With unix sockets, so that other layers are tried.", unix_sockets=True),
}

EACH_IN_A_CHILD = """
import traceback
found = {}
for name, script in SCRIPTS.items():
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.close(writer)
        try:
            exec(compile(script, name, "exec"), globals())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read().decode(errors="replace")[-2000:]
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found[name] = said, f"exit {code}" if code >= 0 else f"signal {-code}"
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where trials are made: a sandbox, and the world around it."""

    sandbox: BubblewrapSandbox
    world: World
    place: Path


@asynccontextmanager
async def grounds(sandbox_dir: Path, *, use_cgroups: Sequence[bool]) -> AsyncIterator[list[Ground]]:
    """Build a world first, then sandboxes in it: what the world leaks, they had a chance to inherit."""
    place = Path(tempfile.mkdtemp(prefix="omni-escape-"))
    place.chmod(0o755)
    (place / "world").mkdir()
    world = World(place / "world")
    try:
        async with AsyncExitStack() as stack:
            found = []
            for use in use_cgroups:
                opened = open_sandbox(profiles=PROFILES, sandbox_dir=sandbox_dir, use_cgroups=use)
                found.append(Ground(sandbox=await stack.enter_async_context(opened), world=world, place=place))
            yield found
    finally:
        world.close()
        shutil.rmtree(place)


async def verdicts_of(probes: Sequence[Probe], where: Ground) -> AsyncIterator[tuple[Probe, Verdict]]:
    """Try *probes* one after the other; those that can do without a cell of their own share one.

    What is not plainly stopped there is tried again alone, and that verdict counts.
    """
    shared = await stopped_together([probe for probe in probes if probe.shares], where)
    for probe in probes:
        yield probe, shared.get(probe.name) or judge(probe, await run_in_cell(probe, where))


async def stopped_together(probes: Sequence[Probe], where: Ground) -> dict[str, Verdict]:
    """Run *probes* in one cell, each in a process of its own, and return the verdicts of those that were stopped."""
    if not probes:
        return {}
    look = where.world.watch()
    scripts = {probe.name: probe.script for probe in probes}
    end = await where.sandbox.run(_job(probes[0], f"SCRIPTS = {scripts!r}\n{EACH_IN_A_CHILD}", where, None))
    if look() or where.world.reveals(end.stdout + end.stderr) or end.reason != "exit" or end.exit_code != 0:
        return {}
    found = json.loads(end.stdout)
    return stopped_in(found, probes)


def stopped_in(found: dict[str, tuple[str, str]], probes: Sequence[Probe]) -> dict[str, Verdict]:
    """Return the verdicts of those of *probes* that were plainly stopped, by what each said and how it ended."""
    verdicts = {}
    for probe in probes:
        said, ended = found[probe.name]
        verdicts[probe.name] = judge(probe, Outcome(said=said, ended=ended))
    return {name: verdict for name, verdict in verdicts.items() if verdict.word == "STOPPED"}


class _Given:
    """A directory of the host that one job gets as its workspace, with a fifo that shows who lives."""

    def __init__(self, place: Path, world: World) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="given-", dir=place))
        self.fifo = open_fifo(self.path / "fifo")
        plant_programs(self.path)
        world.listen_in(self.path)
        if os.geteuid() == 0:
            uid = owners_part(DEFAULT_RANGE)[7]
            os.chown(self.path, uid, uid)
        self.mount = Mount(source=self.path, inside="/workspace", writable=True)

    def close(self) -> None:
        os.close(self.fifo)
        shutil.rmtree(self.path)


async def run_in_cell(probe: Probe, where: Ground) -> Outcome:
    """Run *probe*, with the jobs before and beside it that it asks for."""
    if probe.before:
        left = await where.sandbox.run(_job(probe, probe.before, where, None))
        if b"LEFT" not in left.stdout:
            return _seen(left, ended=f"the job before it left nothing ({_ended(left)})")
    async with _beside(probe, where) as other:
        given = _Given(where.place, where.world) if probe.given or probe.group == "life time" else None
        look = where.world.watch()
        try:
            end = await where.sandbox.run(_job(probe, probe.script, where, given))
            breaches = look() + _exported(probe, end, where.world)
            if where.world.reveals(end.stdout + end.stderr):
                breaches.append("what only the other side knows was said")
            ended = ""
            if given and probe.group == "life time":
                state = survivors(given.fifo)
                breaches += ["a process goes on after the job's end"] if state == "alive" else []
                ended = "nobody held the fifo" if state == "nobody came" else ""
        finally:
            if given:
                given.close()
        if other and survivors(other.fifo) != "alive":
            breaches.append("the other job was killed")
    return _seen(end, ended=ended, breaches=tuple(breaches))


@asynccontextmanager
async def _beside(probe: Probe, where: Ground) -> AsyncIterator[_Given | None]:
    """Keep the other job alive meanwhile, if the probe has one."""
    if not probe.beside:
        yield None
        return
    given = _Given(where.place, where.world)
    running = asyncio.ensure_future(where.sandbox.run(_job(probe, probe.beside, where, given)))
    try:
        either: set[asyncio.Future[Any]] = {running, _readable(given.fifo)}
        await asyncio.wait(either, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        if running.done() or survivors(given.fifo) != "alive":
            raise AssertionError(f"the job beside it did not start, or did not stay: {running}")
        yield given
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        given.close()


def _readable(descriptor: int) -> asyncio.Future[None]:
    """Return a future that is done as soon as there is something to read."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def tell() -> None:
        loop.remove_reader(descriptor)
        ready.set_result(None)

    loop.add_reader(descriptor, tell)
    return ready


def _job(probe: Probe, script: str, where: Ground, given: _Given | None) -> Job:
    facts: dict[str, Any] = {
        **where.world.facts(), "workspace": "/workspace", "hold_s": HOLD_S, "bare": False, "fifo": "/workspace/fifo",
    }  # fmt: skip
    return Job(
        profile=probe.profile,
        argv=(base_interpreter().binary, "-I", "-S", "-c", program(script, facts)),
        stdin=b"input",
        mounts=(given.mount,) if given else (),
        limits=Limits.model_validate({**LIMITS, **probe.limits}),
        exports=probe.may_export is not None,
    )


def _seen(end: JobEnd, *, ended: str = "", breaches: tuple[str, ...] = ()) -> Outcome:
    said = (end.stdout + end.stderr).decode(errors="replace")
    return Outcome(
        said=said + (f"\n{end.message}" if end.message else ""), ended=ended or _ended(end), breaches=breaches
    )


def _ended(end: JobEnd) -> str:
    if end.reason == "exit":
        return f"exit {end.exit_code}"
    return f"signal {end.signal}" if end.reason == "signal" else end.reason


def _exported(probe: Probe, end: JobEnd, world: World) -> list[str]:
    found = [f"came out: {file.name!r}" for file in end.files if file.name not in (probe.may_export or ())]
    found += [f"came out changed: {file.name!r}" for file in end.files if file.data not in (b"good", b"")]
    found += [f"{len(end.files)} files came out"] if len(end.files) > 64 else []
    return found + [f"{file.name!r} holds a secret" for file in end.files if world.reveals(file.data)]


async def use_in_cell(use: Use, where: Ground) -> str:
    """Run something ordinary; nothing if it works, else what went wrong."""
    end = await where.sandbox.run(
        Job(
            profile="usual", argv=(base_interpreter().binary, "-I", "-c", f"{use.script}\nprint('WORKS')"),
            stdin=use.stdin, limits=Limits(timeout_s=20, output_limit_bytes=4 << 20),
        )
    )  # fmt: skip
    if _ended(end) == use.ends and b"WORKS" in end.stdout:
        return ""
    return f"{_ended(end)}: {end.message} {end.stderr.decode(errors='replace')[-400:]}"
