"""Ten thousand jobs of every end in a row, and then: is a process, mount, cgroup, descriptor, file or memory left?

Prints the figures before and after; exits 1 if one grew. Run: `python tests/bench/soak_cells.py [--jobs N]`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from omni_mcp.contracts.manifest import Limits
from omni_mcp.contracts.sandbox import Job
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox, open_sandbox
from omni_mcp.engines.sandbox.profiles import load_profiles
from omni_mcp.paths import bundled

AT_ONCE = 4
MEMORY_MIB = 16.0  # what the gateway's process may have grown by: caches of the interpreter, not of jobs
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(60)
    os._exit(0)
"""
MIX: list[tuple[str, Job, int]] = [  # the end that is expected, the job, how many of every hundred
    ("exit", Job(profile="job", function="text:text_hash", arguments={"text": "x"}, bundled=True), 40),
    ("exit", Job(profile="shell", argv=("/bin/true",)), 30),
    ("exit", Job(profile="shell", argv=("sh", "-c", "mkdir out; echo kept > out/file; exit 3"), exports=True), 10),
    ("exit", Job(profile="shell", argv=("sh", "-c", "sleep 60 & setsid sleep 60 & echo left"), stdin=b"x"), 5),
    ("exit", Job(profile="python", argv=("python3", "-I", "-S", "-c", DAEMON)), 5),
    ("signal", Job(profile="shell", argv=("sh", "-c", "kill -SEGV $$")), 4),
    ("timeout", Job(profile="shell", argv=("sleep", "60"), limits=Limits(timeout_s=0.05)), 2),
    ("output_limit", Job(profile="shell", argv=("yes",), limits=Limits(output_limit_bytes=4096)), 2),
    ("start_failed", Job(profile="shell", argv=("/nowhere",)), 2),
]


def census(sandbox: BubblewrapSandbox) -> dict[str, float]:
    """Count what is held by this process, its descendants and the kernel on their behalf."""
    gc.collect()
    family = descendants(os.getpid())
    return {
        "processes": len(family),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "cgroups": len({str(path) for path in Path("/sys/fs/cgroup").glob(f"**/omni-cell-{os.getpid()}-*")}),
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "namespaces": len({link for pid in family for link in namespaces_of(pid)}),
        "temporary files": sum(1 for _ in Path(tempfile.gettempdir()).iterdir()),  # a directory of this run alone
        "memory MiB": rss_kib(os.getpid()) / 1024,
        "helper memory MiB": rss_kib(sandbox.spawner_pid or os.getpid()) / 1024,
    }


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    todo = [pid]
    while todo:
        for path in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            try:
                children = [int(word) for word in path.read_text().split()]
            except OSError:
                continue
            found += children
            todo += children
    return found


def namespaces_of(pid: int) -> list[str]:
    try:
        return [os.readlink(f"/proc/{pid}/ns/{name}") for name in ("user", "mnt", "pid", "net", "ipc", "uts")]
    except OSError:
        return []


def rss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


async def at_rest(sandbox: BubblewrapSandbox) -> dict[str, float]:
    """Let go of what is kept ready, and count once the last cell has gone."""
    await sandbox.drop_templates()
    counted = census(sandbox)
    for _ in range(100):
        await asyncio.sleep(0.1)
        await sandbox.drop_templates()  # what the last cells gave back meanwhile
        again = census(sandbox)
        if again["processes"] == counted["processes"] and again["cgroups"] == counted["cgroups"]:
            return again
        counted = again
    return counted


async def run(jobs: int) -> bool:
    """Run them and say what is left."""
    ends: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    kinds = [(expected, job) for expected, job, share in MIX for _ in range(share)]
    todo = iter(range(jobs))
    profiles = load_profiles(bundled("sandbox") / "profiles")
    async with open_sandbox(profiles=profiles, sandbox_dir=bundled("sandbox")) as sandbox:
        for _, job, _ in MIX:
            await sandbox.run(job)
        before = await at_rest(sandbox)
        began = time.monotonic()

        async def one_after_another() -> None:
            for number in todo:
                expected, job = kinds[(number * 37) % len(kinds)]
                end = await sandbox.run(job)
                ends[end.reason] += 1
                if end.reason != expected:
                    wrong[f"{expected} expected, {end.reason}: {end.message}"] += 1

        await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))
        took_s = time.monotonic() - began
        after = await at_rest(sandbox)
    print(f"{jobs} jobs in {took_s:.0f} s ({jobs / took_s:.0f}/s): {dict(ends)}")
    for text, count in wrong.items():
        print(f"WRONG {count} x {text}")
    grown = False
    print(f"{'':<20}{'before':>10}{'after':>10}")
    for name, value in before.items():
        bound = MEMORY_MIB if "MiB" in name else 0
        much = after[name] > value + bound
        grown |= much
        print(f"{name:<20}{value:>10.5g}{after[name]:>10.5g}{'  GREW' if much else ''}")
    return not grown and not wrong


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    jobs = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)
        tempfile.tempdir = directory
        return 0 if asyncio.run(run(jobs)) else 1


if __name__ == "__main__":
    sys.exit(main())
