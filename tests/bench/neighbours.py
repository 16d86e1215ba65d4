"""What other clients notice while one server misbehaves: their p99 during each fault, beside that of a quiet time.

The daemon runs as an operator has it: a faulty server in a cell and one over HTTP, policy, lockfile, log, and a calm
server. A client of another principal's calls the calm one at a steady pace (an open loop, so that a stall counts for
every call that should have been made in it). Quiet and fault take turns, so that a busy machine touches both. The p99
of few calls says little: it is of 2,000 quiet and 2,000 loud ones, unless asked otherwise. Beside it stands how far
apart the ratios of single pairs of turns lie.

That client takes real-time priority where it may, for it stands for one on another machine: what it waits for is then
the gateway. Everything else runs as an operator has it, and shares the cores: gateway, helper, and both servers. Other
work on the machine counts, so there should be none; real-time priority for all of this would not do, because the
kernel's own threads, which the log waits for, would come last.
Run: `python tests/bench/neighbours.py [--seconds S] [--only WORDS] [--json]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.bench import gateway as world
from tests.bench.rows import Row, at_most
from tests.upstream_faults.yard import GENEROUS, SURFACE, Yard, open_yard, over_http, stdio

PACE_S = 0.01  # between two calls of the neighbour
REACH = 2.0
FLOOR_MS = 5.0  # a p99 below this is as good as this one: what a scheduler does is no fault of a gateway
WARM_UP = 200
AFTERMATH_S = 0.5  # in which what was begun in a fault comes to its end
TURNS = 5  # quiet, fault, quiet, fault, …: what else the machine does touches both
SECONDS = 20.0  # of each, over all turns


@dataclass(frozen=True, slots=True)
class Fault:
    """What is asked of the faulty servers again and again, so many at once."""

    name: str
    tool: str
    arguments: dict[str, Any]
    at_once: int = 1


@dataclass(frozen=True, slots=True)
class Spent:
    """How long after its due time each of the neighbour's calls was answered, in ms: a list for each turn."""

    quiet: list[list[float]] = field(default_factory=list)
    loud: list[list[float]] = field(default_factory=list)

    def row(self, what: str) -> Row:
        """Return the ratio of the p99s; the rest stands in its words."""
        quiet, loud = list(chain(*self.quiet)), list(chain(*self.loud))
        pairs = sorted(map(ratio, self.quiet, self.loud))
        told = (
            f"{p99(quiet):.2f} -> {p99(loud):.2f} ms; p50 {median(quiet):.2f} -> {median(loud):.2f}; "
            f"{len(quiet)} + {len(loud)} calls; turns {pairs[0]:.2f} to {pairs[-1]:.2f}x"
        )
        return at_most(f"neighbour's p99: {what} ({told})", ratio(quiet, loud), "x", REACH)


FAULTS = (
    Fault("killed in the call", "die", {}),
    Fault("hangs", "hang", {"seconds": 1}, 8),
    Fault("slow bytes", "slow_forever", {"seconds": 1}),
    Fault("half a line", "half_and_wait", {"seconds": 1}),
    Fault("noise", "noise_forever", {"seconds": 1}),
    Fault("flood of messages", "flood", {"lines": 5000}),
    Fault("invalid UTF-8", "utf8", {}),
    Fault("wrong ids", "wrong_id", {}),
    Fault("two answers", "twice", {}),
    Fault("NaN", "nan", {}),
    Fault("100,000 levels", "deep", {}),
    Fault("30 MB result", "big", {"bytes": 30_000_000}),
    Fault("100 MB result", "big", {"bytes": 100_000_000}),
    Fault("100 MB result, never the same", "big", {"bytes": 100_000_000, "fresh": True}),
)
KEPT = "artifact_bytes_per_principal = 100000000000\n"  # else what is new would soon be refused
LISTS = "1,000 tools and two lists that change every second"
PAUSES = {"die": 1.0, "utf8": 0.02, "wrong_id": 0.02, "twice": 0.02, "nan": 0.02}  # else nothing but a load


async def neighbour(yard: Yard, seconds: float) -> list[float]:
    """Call the calm server at a steady pace; returns how long after its due time each call was answered, in ms."""
    spent_ms: list[float] = []
    free: list[world.HttpClient] = []
    began = time.perf_counter()

    async def one(due_s: float) -> None:
        client = free.pop() if free else await opened(yard)
        reply = await client.ask("tools/call", {"name": "calm__echo", "arguments": {"text": "x" * 64}})
        assert "result" in reply and not reply["result"].get("isError"), reply
        spent_ms.append((time.perf_counter() - due_s) * 1000)
        free.append(client)

    async with asyncio.TaskGroup() as calls:
        for number in range(int(seconds / PACE_S)):
            due_s = began + number * PACE_S
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            calls.create_task(one(due_s))
    for client in free:
        await client.close()
    return spent_ms


async def opened(yard: Yard) -> world.HttpClient:
    """Connect one more."""
    client = world.HttpClient(yard.running.port, token=yard.running.token)
    await client.open()
    return client


async def misbehave(yard: Yard, server: str, fault: Fault) -> None:
    """Have a server do its worst until cancelled; how its calls end is what the tests look at."""
    client = await opened(yard)
    try:
        while True:
            await client.ask("tools/call", {"name": f"{server}__{fault.tool}", "arguments": fault.arguments})
            await asyncio.sleep(PAUSES.get(fault.tool, 0.0))
    finally:
        await client.close()


async def during(yard: Yard, fault: Fault, server: str, seconds: float) -> Spent:
    """Measure the neighbour in quiet times and during a fault, which take turns."""
    spent = Spent()
    for _ in range(TURNS):
        spent.quiet.append(await neighbour(yard, seconds / TURNS))
        faults = [asyncio.create_task(misbehave(yard, server, fault)) for _ in range(fault.at_once)]
        spent.loud.append(await neighbour(yard, seconds / TURNS))
        for task in faults:
            task.cancel()
        await asyncio.gather(*faults, return_exceptions=True)
        await neighbour(yard, AFTERMATH_S)  # counted for neither
    return spent


async def restless(quiet: Yard, loud: Yard, seconds: float) -> Spent:
    """The same for lists: a thousand tools, and one that changes every second, beside a yard without them."""
    spent = Spent()
    for _ in range(TURNS):
        spent.quiet.append(await neighbour(quiet, seconds / TURNS))
        spent.loud.append(await neighbour(loud, seconds / TURNS))
    return spent


def p99(spent_ms: list[float]) -> float:
    """Of timings in any order."""
    return sorted(spent_ms)[len(spent_ms) * 99 // 100]


def ratio(quiet_ms: list[float], loud_ms: list[float]) -> float:
    """Of two p99s."""
    return max(p99(loud_ms), FLOOR_MS) / max(p99(quiet_ms), FLOOR_MS)


async def measure(*, seconds: float, said: Callable[[str], None], only: str = "") -> list[Row]:
    """Measure every fault whose name has *only* in it, over both transports."""
    rows: list[Row] = []
    with ExitStack() as stack:
        web = stack.enter_context(over_http(timeout_s=30.0))
        servers = {"calm": stdio(), "bad_lines": stdio(timeout_s=30.0), "bad_http": web}
        yard = stack.enter_context(open_yard(servers, settings=GENEROUS + KEPT + SURFACE))
        go_first()
        await neighbour(yard, WARM_UP * PACE_S)
        for fault in (fault for fault in FAULTS if only in fault.name):
            for transport in ("lines", "http"):
                said(f"{fault.name}, {transport}")
                spent = await during(yard, fault, f"bad_{transport}", seconds)
                rows.append(spent.row(f"{fault.name}, {transport}"))
        if only not in LISTS:
            return rows
        said("lists")
        lists = {
            "calm": stdio(), "many": stdio("--tools", "1000"), "changing": stdio("--restless", "1"),
            "changing_web": stack.enter_context(over_http("--restless", "1")),
        }  # fmt: skip
        other = stack.enter_context(open_yard(lists, settings=GENEROUS + SURFACE))
        await neighbour(other, WARM_UP * PACE_S)
        rows.append((await restless(yard, other, seconds)).row(LISTS))
    return rows


def go_first() -> None:
    """Let this process have a core when it wants one; what it starts from now on does not inherit that."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def main() -> int:
    """Measure and print; 1 if somebody suffered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each quiet time and of each fault")
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    given = parser.parse_args()
    rows = asyncio.run(
        measure(seconds=given.seconds, only=given.only, said=lambda what: print(f"… {what}", file=sys.stderr))
    )
    if given.json:
        print(json.dumps({"benchmark": "neighbours", "rows": [asdict(row) for row in rows]}))
    else:
        for row in rows:
            print(f"{row.measured:6.2f}x  {'ok' if row.met else 'MISS':4}  {row.what}")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
