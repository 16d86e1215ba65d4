"""Crowd: ten clients of every kind that connect, use two shared servers and leave, politely or not, again and again.

Run by itself it is the long form: `python tests/clients_many/crowd.py [--rounds N] [--json]`; it exits 1 if anything
is left behind, or if a shared server ran more than once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.bench import gateway as world
from tests.bench.soak import grown_beyond, settled
from tests.upstream_faults.yard import (
    GENEROUS,
    SURFACE,
    Yard,
    directory_of_nobody_else,
    open_yard,
    over_http,
    stdio,
    text_of,
)

SERVERS = ("lines", "web")
IDLE_S = 1.0  # a session whose client just vanished ends after this
SETTINGS = f"{SURFACE}{GENEROUS}\n[server]\nsession_idle_s = {IDLE_S}\n"
WARM_UP_ROUNDS = 2
KEPT_CONNECTIONS = 4  # to the server over HTTP, for the next call
GONE_LIMIT_S = 60.0
MEMORY_MIB_A_HUNDRED_ROUNDS = 16.0  # 1,000 clients with some 5,000 events; a leaked connection is 50 KiB


@dataclass
class Seen:
    """What the clients of all rounds saw: which process of each server answered them."""

    processes: dict[str, set[str]] = field(default_factory=lambda: {server: set() for server in SERVERS})


Client = Callable[[Yard, Seen], Awaitable[None]]


async def use(ask: world.Ask, seen: Seen) -> None:
    """List the tools and have both servers say who they are."""
    listed = await ask("tools/list", {})
    assert listed["result"]["tools"]
    for server in SERVERS:
        reply = await ask("tools/call", {"name": f"{server}__who", "arguments": {}})
        seen.processes[server].add(text_of(reply))


async def over_modern_http(yard: Yard, seen: Seen) -> None:
    """A stateless client."""
    async with world.http_clients(yard.running.port, 1, token=yard.running.token) as [ask]:
        await use(ask, seen)


async def over_handshake_http(yard: Yard, seen: Seen) -> None:
    """A client with a session, which it ends."""
    client = world.HttpClient(yard.running.port, token=yard.running.token, version=world.OLD)
    await client.open()
    await use(client.ask, seen)
    await client.end_session()
    await client.close()


async def gone_without_a_word(yard: Yard, seen: Seen) -> None:
    """A client with a session that it just leaves, by a reset connection."""
    client = world.HttpClient(yard.running.port, token=yard.running.token, version=world.OLD)
    await client.open()
    await use(client.ask, seen)
    client.reset()


async def gone_in_a_call(yard: Yard, seen: Seen) -> None:
    """A stateless client that hangs up while it waits for an answer: that is a cancel."""
    client = world.HttpClient(yard.running.port, token=yard.running.token)
    await client.open()
    await use(client.ask, seen)
    asking = asyncio.ensure_future(client.ask("tools/call", {"name": "lines__hang", "arguments": {"seconds": 1}}))
    await asyncio.sleep(0)  # it is sent, and not answered
    client.reset()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def listening(yard: Yard, seen: Seen) -> None:
    """A client with a session that holds the stream for what the gateway says by itself."""
    client = world.HttpClient(yard.running.port, token=yard.running.token, version=world.OLD)
    await client.open()
    reader, writer = await asyncio.open_connection("127.0.0.1", yard.running.port)
    writer.write(client.head("GET").encode())
    assert b" 200 " in await reader.readline()
    await use(client.ask, seen)
    writer.transport.abort()
    await client.close()


async def over_a_shim(yard: Yard, seen: Seen) -> None:
    """A desktop client: a process of its own, ended as clients end it."""
    client = world.ShimClient(yard.place)
    await client.open()
    await use(client.ask, seen)
    await client.close()


async def over_a_killed_shim(yard: Yard, seen: Seen) -> None:
    """A desktop client whose process is killed."""
    client = world.ShimClient(yard.place)
    await client.open()
    await use(client.ask, seen)
    client.process.send_signal(signal.SIGKILL)
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        await client.close()


TEN: tuple[Client, ...] = (
    over_modern_http, over_modern_http, over_modern_http, over_handshake_http, over_handshake_http,
    gone_without_a_word, gone_in_a_call, listening, over_a_shim, over_a_killed_shim,
)  # fmt: skip


async def rounds(yard: Yard, count: int, seen: Seen) -> None:
    """Have ten clients come and go *count* times."""
    for _ in range(count):
        await asyncio.gather(*(client(yard, seen) for client in TEN))


async def all_gone(yard: Yard) -> dict[str, float]:
    """Wait until the gateway knows of no client any more; returns what it holds then."""
    ends_s = time.monotonic() + GONE_LIMIT_S
    while True:
        status = await asyncio.to_thread(yard.status)
        open_now = {name: status[name] for name in ("clients", "sessions", "open_calls")}
        if not any(open_now.values()):
            break
        assert time.monotonic() < ends_s, f"still open: {open_now}"
        await asyncio.sleep(0.2)
    held = await settled(yard.running)
    return {**held, "tasks": status["tasks"], "sockets": sockets_of(yard.pid)}


def sockets_of(pid: int) -> int:
    """Return how many sockets a process holds."""
    found = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found += os.readlink(descriptor).startswith("socket:")
    return found


@contextmanager
def shared_servers() -> Iterator[tuple[Yard, Callable[[], dict[str, int]]]]:
    """Run the daemon with two shared servers; also yields what tells how often each was started."""
    with directory_of_nobody_else() as place, over_http("--starts", str(place / "web")) as web:
        mount = {"source": str(place), "writable": True}
        lines = stdio("--starts", str(place / "lines"), mounts=[mount])
        with open_yard({"lines": lines, "web": web}, settings=SETTINGS) as yard:
            yield yard, lambda: {name: len((place / name).read_text().splitlines()) for name in SERVERS}


async def crowd(count: int) -> tuple[dict[str, float], dict[str, float], list[str]]:
    """Return what the daemon held before and after *count* rounds, and what is wrong with that."""
    with shared_servers() as (yard, starts):
        seen = Seen()
        await rounds(yard, WARM_UP_ROUNDS, seen)
        before = await all_gone(yard)
        await rounds(yard, count, seen)
        after = await all_gone(yard)
        return before, after, faults_of(before, after, count, seen, starts())


def faults_of(
    before: dict[str, float], after: dict[str, float], count: int, seen: Seen, starts: dict[str, int]
) -> list[str]:
    """Say what was left behind, and which server did not run exactly once."""
    memory_mib = 16 + MEMORY_MIB_A_HUNDRED_ROUNDS * count / 100
    found = grown_beyond(before, after, memory_mib=memory_mib)
    found += [
        f"{name}: {before[name]:g} before, {after[name]:g} after"
        for name, more in (("tasks", 0), ("sockets", KEPT_CONNECTIONS))
        if after[name] > before[name] + more
    ]
    found += [f"{name} was started {number} times" for name, number in starts.items() if number != 1]
    found += [f"{len(them)} processes of {name} answered" for name, them in seen.processes.items() if len(them) != 1]
    return found


def main() -> int:
    """Run the long form; 1 if something is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300, help="how often ten clients come and go")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    given = parser.parse_args()
    began = time.perf_counter()
    before, after, faults = asyncio.run(crowd(given.rounds))
    if given.json:
        print(json.dumps({"benchmark": "crowd", "rounds": given.rounds, "before": before, "after": after,
                          "faults": faults}))  # fmt: skip
    else:
        for name, value in before.items():
            print(f"{name:<16} {value:>10.4g} {after[name]:>10.4g}")
        took_s = time.perf_counter() - began
        print(f"ten clients came and went {given.rounds} times in {took_s:.0f} s; " + ("; ".join(faults) or "all gone"))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
