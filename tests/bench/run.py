"""How long the path of a call takes with everything on, beside the number to reach and beside a floor of the same run.

Everything is measured against the real daemon in its own process; clients and gateway share the cores of this machine.
Run: `python tests/bench/run.py [--json] [--quick]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from omni_mcp.config import LimitSettings, Settings, SurfaceSettings
from omni_mcp.protocol.frames import Request
from omni_mcp.serving.session import Nowhere
from omni_mcp.testing import ALLOW_ALL, ANN, Canary, local_gateway
from tests.bench import (
    catalog_scale,
    cells,
    log_append,
    log_scale,
    memory_quality,
    memory_scale,
    neighbours,
    policy_decide,
    proxied,
    streams,
)
from tests.bench import gateway as world
from tests.bench.rows import Row, at_least, at_most
from tests.clients.running import OMNI, Place, Running

CALLS = {
    "in process (runs list)": ("runs__list", {"limit": 1}, 400),
    "fake upstream": ("bench__echo", {"text": "x" * 64}, 1500),
    "cell (text_hash)": ("tools__text_hash", {"text": "x"}, 60),
}
ROADS = ("http modern", "http handshake", "stdio shim")


@dataclass(frozen=True, slots=True)
class Load:
    """How a number of equal calls went."""

    p50_ms: float
    p99_ms: float
    per_s: float
    cpu_ms: float  # of the server, for each call


async def load(
    askers: Sequence[world.Ask], calls: int, pid: int, params: dict[str, Any], *, method: str = "tools/call"
) -> Load:
    """Send *calls* requests, one at a time for each asker."""
    spent_ms: list[float] = []
    left = iter(range(calls))

    async def one(ask: world.Ask) -> None:
        for _ in left:
            began = time.perf_counter()
            reply = await ask(method, params)
            spent_ms.append((time.perf_counter() - began) * 1000)
            assert "result" in reply and not reply["result"].get("isError"), reply

    cpu, began = world.cpu_s(pid), time.perf_counter()
    await asyncio.gather(*(one(ask) for ask in askers))
    took_s = time.perf_counter() - began
    spent_ms.sort()
    return Load(
        p50_ms=statistics.median(spent_ms), p99_ms=spent_ms[len(spent_ms) * 99 // 100], per_s=calls / took_s,
        cpu_ms=(world.cpu_s(pid) - cpu) / calls * 1000,
    )  # fmt: skip


def road(running: Running, name: str, count: int) -> AbstractAsyncContextManager[list[world.Ask]]:
    """Open the askers of one transport."""
    if name == "stdio shim":
        return world.shim_clients(running.place, count)
    version = world.MODERN if name == "http modern" else world.OLD
    return world.http_clients(running.port, count, token=running.token, version=version)


async def floors_of(count: int, calls: int) -> tuple[Load, Load]:
    """Measure a web server that echoes, and a relay in front of it, with the same client and the same body."""
    params = {"name": "bench__echo", "arguments": {"text": "x" * 64}}
    with world.floor_server() as (echo, echo_pid), world.floor_server(behind=echo) as (relay, relay_pid):
        found = []
        for port, pid in ((echo, echo_pid), (relay, relay_pid)):
            async with world.http_clients(port, count) as askers:
                await load(askers, 50, pid, params)
                found.append(await load(askers, calls, pid, params))
    return found[0], found[1]


async def calls_of(running: Running, share: float) -> list[Row]:
    """Measure each kind of call over each transport, one at a time and sixteen at a time."""
    rows: list[Row] = []
    for count in (1, 16):
        floor, relay = await floors_of(count, max(50, int(2000 * share)))
        for name, found in (("floor (web server that echoes)", floor), ("bare relay in front of it", relay)):
            rows += [
                Row(f"{name}, {count} in flight: p50", found.p50_ms, "ms"),
                Row(f"{name}, {count} in flight: throughput", found.per_s, "/s"),
                Row(f"{name}, {count} in flight: CPU a call", found.cpu_ms, "ms"),
            ]
        for kind, (tool, arguments, calls) in CALLS.items():
            for name in ROADS:
                async with road(running, name, count) as askers:
                    params = {"name": tool, "arguments": arguments}
                    await load(askers, 2 * count, running.process.pid, params)
                    found = await load(askers, max(20, int(calls * share)), running.process.pid, params)
                judged = relay if (kind, name) == ("fake upstream", "http modern") else None
                rows += rows_of(f"{kind}, {name}, {count} in flight", found, floor, judged, count)
    return rows


def rows_of(what: str, found: Load, floor: Load, relay: Load | None, count: int) -> list[Row]:
    """Put the numbers of one load beside the floor; *relay* is given where there is something to reach.

    The fake upstream is in the gateway's process, so a gateway with a real one has the hop of the relay on top.
    """
    p50 = Row(f"{what}: p50", found.p50_ms, "ms", floor=floor.p50_ms)
    p99 = Row(f"{what}: p99", found.p99_ms, "ms", floor=floor.p99_ms)
    rate = Row(f"{what}: throughput", found.per_s, "/s", floor=floor.per_s)
    cpu = Row(f"{what}: gateway CPU a call", found.cpu_ms, "ms", floor=floor.cpu_ms)
    if relay is not None and count == 1:
        added = at_most(f"{what}: added p50", found.p50_ms - floor.p50_ms, "ms", 1.2)
        return [p50, added, p99, rate, at_most(cpu.what, cpu.measured, cpu.unit, 0.6, floor=cpu.floor)]
    if relay is not None:
        return [p50, p99, at_least(f"{what}: share of the relay", found.per_s / relay.per_s, "", 0.6), rate, cpu]
    return [p50, p99, rate, cpu]


async def shim_start_ms(place: Place, times: int) -> float:
    """Time from the start of a shim's process to its first answer, the gateway being up: the median."""
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        client = world.ShimClient(place)
        await client.open()
        spent.append((time.perf_counter() - began) * 1000)
        await client.close()
    return statistics.median(spent)


def command_ms(times: int, *arguments: str) -> float:
    """Time of one command from start to end: the median."""
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run([OMNI, *arguments], stdout=subprocess.DEVNULL, check=True)
        spent.append((time.perf_counter() - began) * 1000)
    return statistics.median(spent)


async def list_cpu_ms(tools: int, times: int) -> float:
    """Processor time of `tools/list` over all pages, warm, without a transport."""
    with tempfile.TemporaryDirectory() as directory:
        canary = Canary(Path(directory) / "touched", server="bench")
        for number in range(tools):
            canary.tool(f"tool_{number}", definition={"description": "Does one thing well and says what it did."})
        limits = LimitSettings(calls_per_minute=1_000_000)
        settings = Settings(limits=limits, surface=SurfaceSettings(mode="full"))
        async with (
            local_gateway(ALLOW_ALL, canary=canary, settings=settings) as here,
            here.client(version=world.OLD) as c,
        ):
            assert len(await c.listed("tools")) >= tools
            cursors: list[dict[str, Any]] = [{}]
            while "nextCursor" in (page := (await c.request("tools/list", cursors[-1]))["result"]):
                cursors.append({"cursor": page["nextCursor"]})
            edge = here.gateway.edge
            session = edge.open(principal=ANN, profile="default", transport="memory", outlet=Nowhere())
            session.version = world.OLD
            began = time.process_time()
            for number in range(times):
                for cursor in cursors:
                    await edge.begin(session, Request(number, "tools/list", cursor), Nowhere())
            return (time.process_time() - began) / times * 1000


async def client_kib(running: Running, count: int) -> float:
    """Memory of the gateway for each open handshake client over HTTP."""
    world.many_files()
    before = world.rss_kib(running.process.pid)
    async with world.http_clients(running.port, count, token=running.token, version=world.OLD):
        return (world.rss_kib(running.process.pid) - before) / count


def decision_us() -> float:
    """Median of one decision at 100 rules that each look at every call."""
    with tempfile.TemporaryDirectory() as directory:
        policy = policy_decide.policy_of(100, Path(directory), named=False)
    entry = policy_decide.tool(96)
    return policy_decide.timings_us(lambda: policy_decide.decide(policy, entry), 1000)[0]


async def measure(*, quick: bool, said: Callable[[str], None]) -> list[Row]:
    """Measure everything; *said* hears what is being done."""
    share = 0.1 if quick else 1.0
    times = 3 if quick else 10
    rows: list[Row] = []
    with world.bench_gateway() as running:
        said("an idle gateway")
        rows.append(at_most("idle gateway: memory", world.rss_kib(running.process.pid) / 1024, "MiB", 90))
        said("the shim and the commands")
        rows.append(at_most("shim: start to first answer", await shim_start_ms(running.place, times), "ms", 150))
        rows.append(at_most("omni-mcp --help", command_ms(times, "--help"), "ms", 200))
        said("calls")
        rows += await calls_of(running, share)
        said("many clients")
        rows.append(at_most("memory for each open client", await client_kib(running, 50 if quick else 400), "KiB", 50))
    said("cells")
    rows += await cells.measure(runs=20 if quick else 200)
    said("streams")
    rows += await asyncio.to_thread(streams.rows, share)
    said("lists, decisions, the log")
    rows.append(at_most("tools/list of 1,000 tools, warm: CPU", await list_cpu_ms(1000, 20), "ms", 1))
    rows.append(at_most("decision at 100 rules: median", decision_us() / 1000, "ms", 0.15))
    with tempfile.TemporaryDirectory() as directory:
        rows += log_scale.measure(Path(directory), 50_000 if quick else log_scale.EVENTS)
    events = await log_append.measure(16, 2000 if quick else 20_000)
    rows.append(at_least("durable events, 16 writers", events["events_per_s"], "/s", 12_000))
    said("the memory")
    rows += await asyncio.to_thread(memory_quality.measure, quick=quick)
    rows += memory_scale.measure(10_000 if quick else memory_scale.ITEMS, 20 if quick else 200)
    said("calls to a server over HTTP")
    rows += await proxied.measure(calls=int(proxied.CALLS * share))
    said("a thousand tools")
    rows += await catalog_scale.measure(starts=2 if quick else 5)
    rows += await neighbours.measure(seconds=1.0 if quick else neighbours.SECONDS, said=said)
    return rows


def print_table(rows: Sequence[Row]) -> None:
    """Print the rows for people."""
    wide = max(len(row.what) for row in rows)
    print(f"{'':<{wide}} {'measured':>12} {'reach':>10} {'':>4} {'floor':>10} {'x floor':>8}")
    for row in rows:
        met = {None: "", True: "ok", False: "MISS"}[row.met]
        floor = f"{row.floor:.3g}" if row.floor else ""
        ratio = f"{row.ratio:.2f}" if row.ratio else ""
        print(f"{row.what:<{wide}} {row.measured:>8.4g} {row.unit:<3} {row.reach:>10} {met:>4} {floor:>10} {ratio:>8}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls: whether it runs, not how fast")
    given = parser.parse_args()
    began = time.perf_counter()
    rows = asyncio.run(measure(quick=given.quick, said=lambda what: print(f"… {what}", file=sys.stderr)))
    faults: list[str] = []
    if not given.quick:
        print("… other gateways", file=sys.stderr)
        theirs, faults = asyncio.run(proxied.measure_peers())
        rows += [*theirs, *proxied.beside_peers(rows, theirs)]
    load_1, *_ = os.getloadavg()
    facts = {"cores": os.cpu_count(), "python": platform.python_version(), "load": round(load_1, 2),
             "took_s": round(time.perf_counter() - began, 1)}  # fmt: skip
    if given.json:
        print(json.dumps({"benchmark": "run", **facts, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
                          "faults": faults}))  # fmt: skip
        return 1 if faults else 0
    print_table(rows)
    print("\n".join(faults))
    print(f"\n{facts['cores']} cores, load {facts['load']}, {facts['took_s']} s. A MISS is a number to work on.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
