"""Thousands of calls of every kind through one gateway, and then: has anything grown that should not?

Counts descriptors, processes, threads, memory, cgroups and mounts of the real daemon before and after; exits 1 if one
of them grew beyond its bound. Run: `python tests/bench/soak.py [--thousands N] [--json]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.bench import gateway as world
from tests.clients.running import Running

MIX: list[tuple[str, dict[str, Any], int]] = [  # tool, arguments, how many of every hundred
    ("bench__echo", {"text": "x" * 200}, 60),
    ("runs__list", {"limit": 5}, 15),
    ("bench__missing", {}, 10),
    ("tools__text_hash", {"text": "soak"}, 10),
    ("tools__text_hash", {"wrong": True}, 5),
]
WARM_UP = 300
SETTLE_LOOKS = 40
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Bound:
    """What is counted, and how much more of it there may be at the end."""

    name: str
    more: float


BOUNDS = (
    Bound("descriptors", 4),
    Bound("processes", 0),
    Bound("threads", 4),
    Bound("cgroups", 0),
    Bound("mounts", 0),
    Bound("temporary files", 0),
)
MEMORY_MIB_A_THOUSAND = 4.0  # caches fill; a leak of one event a call would be three times as much


def census(running: Running) -> dict[str, float]:
    """Count what the daemon and its descendants hold."""
    pid = running.process.pid
    family = descendants(pid)
    return {
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "processes": len(family),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
        "cgroups": cgroups_of(pid),
        "mounts": sum(len(mounts_of(member)) for member in family),
        "temporary files": sum(1 for _ in running.place.home.runtime.rglob("*")),
        "memory MiB": world.rss_kib(pid) / 1024,
    }


def cgroups_of(pid: int) -> int:
    """Return how many cgroups the cells of a daemon have; cells of others may come and go meanwhile."""
    return sum(name.startswith(f"omni-cell-{pid}-") for _, names, _ in os.walk(CGROUPS) for name in names)


def mounts_of(pid: int) -> list[str]:
    """Return the mounts that a process sees; none for one that has just ended."""
    try:
        return Path(f"/proc/{pid}/mounts").read_text().splitlines()
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    """Return *pid* and the processes that come from it."""
    found, todo = [], [pid]
    while todo:
        found.append(current := todo.pop())
        for task in Path(f"/proc/{current}/task").glob("*/children"):
            try:
                todo += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


async def settled(running: Running) -> dict[str, float]:
    """Look until two looks in a row count the same: cells that end need a moment to be gone."""
    seen = census(running)
    for _ in range(SETTLE_LOOKS):
        await asyncio.sleep(0.25)
        before, seen = seen, census(running)
        if all(before[bound.name] == seen[bound.name] for bound in BOUNDS):
            break
    return seen


async def calls(running: Running, count: int, *, in_flight: int = 16) -> None:
    """Make *count* calls of the mix over HTTP in both eras, by clients that come and go."""
    plan = [(tool, arguments) for tool, arguments, share in MIX for _ in range(share)]
    left = iter(range(count))

    async def one(version: str) -> None:
        while True:
            async with world.http_clients(running.port, 1, token=running.token, version=version) as [ask]:
                for _, number in zip(range(50), left, strict=False):
                    tool, arguments = plan[(number * 37) % len(plan)]
                    reply = await ask("tools/call", {"name": tool, "arguments": arguments})
                    assert "result" in reply, reply
                else:
                    if next(left, None) is None:
                        return

    await asyncio.gather(*(one(world.MODERN if number % 2 else world.OLD) for number in range(in_flight)))


async def abandoned(running: Running, count: int) -> None:
    """Clients that hang up in the middle of a call into a cell."""
    for _ in range(count):
        client = world.HttpClient(running.port, token=running.token)
        await client.open()
        asking = asyncio.ensure_future(client.ask("tools/call", {"name": "tools__python_run", "arguments": {
            "code": "import time; time.sleep(5)"}}))  # fmt: skip
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.wait([asking])
        await client.close()


async def soak(thousands: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the census before and after."""
    with world.bench_gateway() as running:
        await calls(running, WARM_UP)
        before = await settled(running)
        for _ in range(thousands):
            await calls(running, 1000)
            await abandoned(running, 5)
        return before, await settled(running)


def grown(before: dict[str, float], after: dict[str, float], thousands: int) -> list[str]:
    """Return what grew beyond its bound."""
    return grown_beyond(before, after, memory_mib=8 + MEMORY_MIB_A_THOUSAND * thousands)


def grown_beyond(before: dict[str, float], after: dict[str, float], *, memory_mib: float) -> list[str]:
    """Return what grew beyond its bound, memory by more than *memory_mib*."""
    found = [
        f"{bound.name}: {before[bound.name]:g} before, {after[bound.name]:g} after"
        for bound in BOUNDS
        if after[bound.name] > before[bound.name] + bound.more
    ]
    if after["memory MiB"] - before["memory MiB"] > memory_mib:
        found.append(f"memory: {before['memory MiB']:.1f} MiB before, {after['memory MiB']:.1f} after")
    return found


def main() -> int:
    """Soak, print, and return 1 if something grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--thousands", type=int, default=10, help="thousands of calls")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    given = parser.parse_args()
    began = time.perf_counter()
    before, after = asyncio.run(soak(given.thousands))
    faults = grown(before, after, given.thousands)
    if given.json:
        print(json.dumps({"benchmark": "soak", "thousands": given.thousands, "before": before, "after": after,
                          "grown": faults}))  # fmt: skip
    else:
        for name, value in before.items():
            print(f"{name:<16} {value:>10.4g} {after[name]:>10.4g}")
        print(
            f"{given.thousands},000 calls in {time.perf_counter() - began:.0f} s; "
            + ("; ".join(faults) or "nothing grew")
        )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
