"""A call through the gateway to a server over HTTP, everything on, beside a direct one, a relay, and other gateways.

Policy, lockfile, schemas and the durable log are those of an operator. What is compared is processor time of the
proxy's processes for each call, after a warm-up, with 1 and with 16 calls in flight; times are the client's.
Run: `python tests/bench/proxied.py [--peers] [--calls N] [--json]`; with a peer that does not start it exits 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from omni_mcp import __version__
from omni_mcp.server_definition import ServerDefinition
from tests.bench import gateway as world
from tests.bench import peers
from tests.bench.rows import Row, at_least, at_most
from tests.bench.soak import descendants
from tests.upstream_faults.yard import GENEROUS, READS, SURFACE, open_yard

REACH_MS, WANTED_MS = 0.6, 0.35
IN_FLIGHT = (1, 16)
WARM_UP = 300
CALLS = 4000
PEER_CALLS = 300
CALL_LIMIT_S = 60.0
TEXT = "x" * 64
SERVER = "tests.bench.echo_server\x00--stdio"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to the server: where clients connect, how they speak, and whose processor time counts."""

    name: str
    port: int
    pid: int
    tool: str = "echo"
    token: str = ""
    path: str = "/mcp"
    version: str = world.OLD


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call costs."""

    cpu_ms: float
    p50_ms: float
    p99_ms: float
    per_s: float
    failed: int


@contextmanager
def echo_server() -> Iterator[tuple[str, int, int]]:
    """Run the server behind all of them; yields its URL, port and pid."""
    with world.listening() as (port, handle):
        command = [sys.executable, "-m", "tests.bench.echo_server", "--socket", str(handle)]
        process = subprocess.Popen(command, pass_fds=[handle], env={**os.environ, "PYTHONPATH": str(world.ROOT)})
        try:
            yield f"http://127.0.0.1:{port}/mcp", port, process.pid
        finally:
            process.terminate()
            process.wait(10)


async def cost_of(way: Way, calls: int, in_flight: int) -> Cost:
    """Send *calls* calls, *in_flight* at a time, after a warm-up."""
    clients = [
        world.HttpClient(way.port, token=way.token, version=way.version, path=way.path) for _ in range(in_flight)
    ]
    for client in clients:
        await client.open()
    await load(clients, way.tool, min(WARM_UP, calls))
    before, began = tree_cpu_s(way.pid), time.perf_counter()
    spent_ms, failed = await load(clients, way.tool, calls)
    took_s, after = time.perf_counter() - began, tree_cpu_s(way.pid)
    for client in clients:
        await client.close()
    return Cost(
        cpu_ms=(after - before) / calls * 1000, p50_ms=statistics.median(spent_ms),
        p99_ms=spent_ms[len(spent_ms) * 99 // 100], per_s=calls / took_s, failed=failed,
    )  # fmt: skip


async def load(clients: Sequence[world.HttpClient], tool: str, calls: int) -> tuple[list[float], int]:
    """Return the sorted times of *calls* calls, and how many did not bring the text back."""
    spent_ms: list[float] = []
    left = iter(range(calls))
    failed = 0

    async def one(client: world.HttpClient) -> None:
        nonlocal failed
        for _ in left:
            began = time.perf_counter()
            async with asyncio.timeout(CALL_LIMIT_S):
                reply = await client.ask("tools/call", {"name": tool, "arguments": {"text": TEXT}})
            spent_ms.append((time.perf_counter() - began) * 1000)
            failed += not brought_back(reply)

    await asyncio.gather(*map(one, clients))
    return sorted(spent_ms), failed


async def open_loop_p99_ms(way: Way, per_s: float, seconds: float) -> float:
    """Return the p99 of calls that are made at a steady rate, whatever became of those before them."""
    spent_ms: list[float] = []
    free: list[world.HttpClient] = []
    began = time.perf_counter()

    async def one(due_s: float) -> None:
        client = free.pop() if free else world.HttpClient(way.port, token=way.token, version=way.version, path=way.path)
        if not client.is_open:
            await client.open()
        await client.ask("tools/call", {"name": way.tool, "arguments": {"text": TEXT}})
        spent_ms.append((time.perf_counter() - due_s) * 1000)
        free.append(client)

    async with asyncio.TaskGroup() as calls:
        for number in range(int(per_s * seconds)):
            due_s = began + number / per_s
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            calls.create_task(one(due_s))
    for client in free:
        await client.close()
    return sorted(spent_ms)[len(spent_ms) * 99 // 100]


def brought_back(reply: dict[str, Any]) -> bool:
    """Whether a reply holds the text that was sent."""
    result = reply.get("result", {})
    return not result.get("isError") and any(TEXT in str(block.get("text")) for block in result.get("content", ()))


def tree_cpu_s(pid: int) -> float:
    """Processor time of a process and its children, the measured server over stdio left out."""
    return sum(world.cpu_s(one) for one in descendants(pid) if one == pid or SERVER not in words_of(one))


def words_of(pid: int) -> str:
    """Return the command line of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


async def measure(*, calls: int = CALLS) -> list[Row]:
    """Measure ours beside a direct call and a bare relay."""
    rows: list[Row] = []
    with ExitStack() as stack:
        url, port, pid = stack.enter_context(echo_server())
        relay = stack.enter_context(world.floor_server(behind=port))
        servers = {"bench": ServerDefinition.model_validate({"url": url})}
        yard = stack.enter_context(open_yard(servers, labels=READS, settings=GENEROUS + SURFACE))
        ours = Way("", yard.running.port, yard.pid, tool="bench__echo", token=yard.running.token)
        ways = (
            Way("direct", port, pid, version=world.MODERN), Way("bare relay", *relay, version=world.MODERN),
            replace_name(ours, f"omni-mcp {__version__}, handshake client"),
            replace_name(ours, f"omni-mcp {__version__}, modern client", version=world.MODERN),
        )  # fmt: skip
        for in_flight in IN_FLIGHT:
            relayed = 0.0
            for way in ways:
                cost = await cost_of(way, calls, in_flight)
                relayed = cost.per_s if way.name == "bare relay" else relayed
                rows += rows_of(way, cost, in_flight, relayed)
        late_ms = await open_loop_p99_ms(ways[-1], cost.per_s / 2, calls / cost.per_s)
        rows.append(at_most(f"{ways[-1].name}, open loop at half of that: p99", late_ms, "ms", 10))
    return rows


def replace_name(way: Way, name: str, *, version: str = world.OLD) -> Way:
    """Return *way* under another name, for clients of *version*."""
    return Way(name, way.port, way.pid, way.tool, way.token, way.path, version)


def rows_of(way: Way, cost: Cost, in_flight: int, relayed: float) -> list[Row]:
    """Return what is told of one way."""
    what = f"{way.name}, {in_flight} in flight"
    cpu = Row(f"{what}: CPU a call", cost.cpu_ms, "ms")
    rate = Row(f"{what}: calls", cost.per_s, "/s")
    if way.name.startswith("omni-mcp"):
        cpu = at_most(cpu.what, cost.cpu_ms, "ms", REACH_MS)
        if in_flight > 1:
            rate = at_least(f"{what}: share of the bare relay", cost.per_s / relayed, "", 0.6)
    rows = [cpu, Row(f"{what}: p50", cost.p50_ms, "ms"), Row(f"{what}: p99", cost.p99_ms, "ms"), rate]
    return [*rows, at_most(f"{what}: failed calls", cost.failed, "", 0)] if cost.failed else rows


def beside_peers(ours: Sequence[Row], theirs: Sequence[Row]) -> list[Row]:
    """Return how much less processor time a call takes than with the best of the peers, 16 in flight."""

    def least(rows: Sequence[Row]) -> float:
        found = [row.measured for row in rows if row.what.endswith(f"{IN_FLIGHT[-1]} in flight: CPU a call")]
        return min(found, default=0.0)

    mine = [row for row in ours if row.what.startswith("omni-mcp")]
    return [Row("processor time of the best peer, as a multiple of ours", least(theirs) / least(mine), "x")]


async def measure_peers(*, calls: int = PEER_CALLS) -> tuple[list[Row], list[str]]:
    """Measure every peer; also returns why one could not be measured."""
    rows: list[Row] = []
    faults: list[str] = []
    with echo_server() as (url, _, _):
        for kind in peers.KINDS:
            try:
                with peers.running(kind, url) as peer:
                    name = f"{kind.name} {peers.version_of(kind)}"
                    way = Way(name, peer.port, peer.pid, tool=peer.tool, token=peer.token, path=peer.path)
                    for in_flight in IN_FLIGHT:
                        rows += rows_of(way, await cost_of(way, calls, in_flight), in_flight, 0.0)
            except (peers.PeerFailed, AssertionError, OSError, TimeoutError, EOFError) as error:
                faults.append(f"{kind.name} was not measured: {type(error).__name__}: {error}")
    return rows, faults


def main() -> int:
    """Measure and print; 1 if something was not reached or not measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", action="store_true", help="other gateways too; installs them below .work/")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    given = parser.parse_args()
    rows = asyncio.run(measure(calls=given.calls))
    faults: list[str] = []
    if given.peers:
        more, faults = asyncio.run(measure_peers(calls=min(PEER_CALLS, given.calls)))
        rows += [*more, *beside_peers(rows, more)]
    if given.json:
        print(json.dumps({"benchmark": "proxied", "rows": [asdict(row) for row in rows], "faults": faults}))
    else:
        for row in rows:
            met = {None: "", True: "ok", False: "MISS"}[row.met]
            print(f"{row.what:<62} {row.measured:9.3f} {row.unit:<3} {row.reach:>7} {met}")
        print(f"CPU of ours: ≤ {REACH_MS:g} ms, wanted {WANTED_MS:g}; load {os.getloadavg()[0]:.1f}")
        print("\n".join(faults))
    return 0 if not faults and all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
