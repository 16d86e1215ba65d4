"""What a cell costs: hot and cold, a function and a command, beside fork+exec and bare bubblewrap in the same run.

Run: `python tests/bench/cells.py [--runs N]`, on a quiet machine. On a busy one `chrt -r 10` in front keeps the
neighbours out, and the cgroups too: a process with real-time priority cannot join one that limits the processor. So the
posture that was measured is printed. Event loop and garbage collection are the daemon's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import statistics
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import uvloop

from omni_mcp.contracts.sandbox import Job
from omni_mcp.daemon.run import collect_seldom
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox, open_sandbox
from omni_mcp.engines.sandbox.profiles import load_profiles
from omni_mcp.paths import bundled
from tests.bench.rows import Row, at_least, at_most

REST_S = 0.02  # between single calls: a person's client does not ask again within a millisecond
SUSTAINED_S = 5.0
FUNCTION = Job(profile="job", function="text:text_hash", arguments={"text": "x", "algorithm": "sha256"}, bundled=True)
COMMAND = Job(profile="shell", argv=("/bin/true",))
_PRESENT, _OF_A_FILE, _FRAME = 1 << 63, 1 << 61, (1 << 55) - 1  # Documentation/admin-guide/mm/pagemap.rst
_KERNEL_PAGES = 1 << 35
BARE = (
    "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib",
    "/lib", "--symlink", "usr/lib64", "/lib64", "--symlink", "usr/bin", "/bin", "--proc", "/proc", "--dev", "/dev",
    "--tmpfs", "/tmp", "--clearenv", "/bin/true",
)  # fmt: skip


def go_first() -> None:
    """Be nice to nobody, where that is allowed; so is all that this process starts."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)


def quantiles_ms(spent: list[float]) -> tuple[float, float]:
    """Return (median, p95) of times in seconds, in milliseconds."""
    spent.sort()
    return statistics.median(spent) * 1000, spent[len(spent) * 95 // 100] * 1000


def spawning_ms(command: tuple[str, ...], runs: int) -> tuple[float, float]:
    """Time of one process from its start to its end."""
    spent = []
    for _ in range(runs):
        began = time.perf_counter()
        process = os.posix_spawnp(command[0], command, os.environ)
        os.waitpid(process, 0)
        spent.append(time.perf_counter() - began)
        time.sleep(REST_S)
    return quantiles_ms(spent)


async def jobs_ms(sandbox: BubblewrapSandbox, job: Job, runs: int, *, hot: bool = True) -> tuple[float, float]:
    """Time of one job from `run` to its end."""

    async def once() -> float:
        began = time.perf_counter()
        end = await sandbox.run(job)
        assert end.reason == "exit" and end.exit_code == 0, end
        return time.perf_counter() - began if (end.usage["temperature"] == "hot") is hot else -1.0

    await once()
    await asyncio.sleep(0.2)
    spent: list[float] = []
    while len(spent) < runs:
        took = await once()
        if took >= 0:
            spent.append(took)
        await asyncio.sleep(REST_S)
    return quantiles_ms(spent)


async def cold_ms(sandbox: BubblewrapSandbox, runs: int) -> tuple[float, float]:
    """Time of the first job of a profile, its template not being there."""
    spent = []
    for _ in range(runs):
        await sandbox.drop_templates()
        began = time.perf_counter()
        end = await sandbox.run(COMMAND)
        spent.append(time.perf_counter() - began)
        assert end.usage["temperature"] == "cold", end
    return quantiles_ms(spent)


async def per_second(sandbox: BubblewrapSandbox, job: Job, at_once: int) -> float:
    """Jobs a second over some seconds."""
    done, until = 0, time.monotonic() + SUSTAINED_S

    async def one_after_another() -> None:
        nonlocal done
        while time.monotonic() < until:
            await sandbox.run(job)
            done += 1

    began = time.monotonic()
    await asyncio.gather(*(one_after_another() for _ in range(at_once)))
    return done / (time.monotonic() - began)


async def idle_cell_mib(sandbox: BubblewrapSandbox) -> float:
    """Memory that one more ready cell takes: what its processes do not share with their template."""
    for _ in range(3):
        await sandbox.run(FUNCTION)
        await asyncio.sleep(1.0)  # the used one has gone, the next one is ready
    templates = templates_of(sandbox.spawner_pid or 0)
    shared = set[int]().union(*map(frames_of, templates))
    own = [set[int]().union(*map(frames_of, family_of(cell))) - shared for cell in map_all(children_of, templates)]
    return statistics.mean(map(len, own)) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def cells_of(spawner_pid: int) -> list[int]:
    """Return the processes 1 of all ready cells: children of a template's process 1 in namespaces of their own."""
    return map_all(children_of, templates_of(spawner_pid))


def templates_of(spawner_pid: int) -> list[int]:
    """Return the processes 1 of all templates: children of bubblewrap, which the spawner started."""
    return map_all(children_of, children_of(spawner_pid))


def family_of(pid: int) -> list[int]:
    """Return *pid* and all that comes from it."""
    family = [pid]
    for member in family:
        family += children_of(member)
    return family


def map_all(found: Callable[[int], list[int]], pids: list[int]) -> list[int]:
    return [other for pid in pids for other in found(pid)]


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def frames_of(pid: int) -> set[int]:
    """Return the page frames that *pid* has written to, whoever shares them; only root is told (see pagemap(5))."""
    frames: set[int] = set()
    size = os.sysconf("SC_PAGE_SIZE")
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/pagemap", "rb") as pages:
        for line in maps:
            first, last = (int(word, 16) // size for word in line.split()[0].split("-"))
            if first >= _KERNEL_PAGES:
                continue
            pages.seek(first * 8)
            entries = struct.iter_unpack("Q", pages.read((last - first) * 8))
            frames.update(entry & _FRAME for (entry,) in entries if entry & _PRESENT and not entry & _OF_A_FILE)
    return frames


async def measure(runs: int) -> list[Row]:
    """Measure everything; needs bubblewrap."""
    if shutil.which("bwrap") is None:
        return []
    rows: list[Row] = []

    def say(what: str, found: tuple[float, float], limit: float | None = None, floor: float | None = None) -> None:
        named = f"{what}: p50"
        rows.append(
            Row(named, found[0], "ms", floor=floor) if limit is None
            else at_most(named, found[0], "ms", limit, floor=floor)
        )  # fmt: skip
        rows.append(Row(f"{what}: p95", found[1], "ms"))

    true = spawning_ms(("/bin/true",), runs)
    say("fork+exec /bin/true", true)
    say("bare bubblewrap, /bin/true", spawning_ms(BARE, runs))
    profiles = load_profiles(bundled("sandbox") / "profiles")
    async with open_sandbox(profiles=profiles, sandbox_dir=bundled("sandbox")) as sandbox:
        collect_seldom()
        print("posture:", sandbox.isolation().posture)
        say("cell, hot: Python function", await jobs_ms(sandbox, FUNCTION, runs), 4, true[0])
        command = await jobs_ms(sandbox, COMMAND, runs)
        say("cell, hot: command", command, floor=true[0])
        rows.append(at_most("cell, hot: over the command itself", command[0] - true[0], "ms", 3))
        rows.append(at_least("cells, commands, 4 at once", await per_second(sandbox, COMMAND, 4), "/s", 200))
        rows.append(at_least("cells, functions, 4 at once", await per_second(sandbox, FUNCTION, 4), "/s", 200))
    async with open_sandbox(profiles=profiles, sandbox_dir=bundled("sandbox")) as sandbox:
        if os.geteuid() == 0:
            rows.append(at_most("idle cell: memory", await idle_cell_mib(sandbox), "MiB", 1.5))
        say("cell, cold profile: command", await cold_ms(sandbox, runs), 60)
    return rows


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    given = parser.parse_args()
    go_first()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rows = runner.run(measure(given.runs))
    for row in rows:
        met = {None: "", True: "ok", False: "MISS"}[row.met]
        print(f"{row.what:<44} {row.measured:>8.3g} {row.unit:<4} {row.reach:>8} {met}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
