"""A thousand tools from twenty servers: how soon they can be used after a start, and what lists and searches cost.

The twenty servers listen and never answer, so whoever waited for one of them would be seen: all that is served comes
from what they offered last time, through the lockfile. Run: `python tests/bench/catalog_scale.py [--json]`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from omni_mcp.assembly import open_gateway
from omni_mcp.config import load_settings
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.lock import launch_parts
from omni_mcp.engines.catalog.lock_listing import KeptListing, keep_listing, listings_dir
from omni_mcp.paths import make_private_dir
from omni_mcp.protocol.frames import Request
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.serving.session import Nowhere
from omni_mcp.testing import ANN
from tests.bench import gateway as world
from tests.bench.rows import Row, at_most
from tests.clients.running import OMNI, Place, new_place, stop
from tests.upstream_faults.yard import ALLOW_ALL, GENEROUS, READS, SURFACE, accept_kept, prepare

SERVERS, TOOLS_EACH = 20, 50
VERBS = ("create", "list", "delete", "close", "merge", "rename", "watch", "archive", "copy", "show")
NOUNS = ("issue", "branch", "commit", "release", "label", "comment", "folder", "invoice", "calendar", "team")
PLACES = ("repository", "workspace", "account", "mailbox", "cluster")
LISTS = 100
START_LIMIT_S = 30.0
LOOK_AGAIN_S = 0.002


def tools_of(server: int) -> list[dict[str, Any]]:
    """Return fifty definitions of the size that real ones have: some 600 bytes."""
    found = []
    for number, (verb, noun) in zip(range(TOOLS_EACH), itertools.product(VERBS, NOUNS), strict=False):
        place = PLACES[(server + number) % len(PLACES)]
        properties = {
            f"{noun}_id": {"type": "string", "description": f"Which {noun} of the {place} is meant."},
            "reason": {"type": "string", "description": f"Why the {noun} is to be changed; it is kept beside it."},
            "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
        }
        schema = {"type": "object", "properties": properties, "required": [f"{noun}_id"], "additionalProperties": False}
        about = f"{verb.title()} one {noun} of the {place}. Use it when somebody asks to {verb} what is there already."
        found.append({"name": f"{verb}_{noun}_{server}", "title": f"{verb} {noun}", "description": about,
                      "inputSchema": schema})  # fmt: skip
    return found


@contextmanager
def known_servers(place: Place) -> Iterator[None]:
    """Write the home of a gateway that knows twenty servers from before; they listen and say nothing."""
    with ExitStack() as stack:
        servers: dict[str, ServerDefinition] = {}
        kept = []
        for number in range(SERVERS):
            silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/mcp"
            definition = servers[f"server{number}"] = ServerDefinition.model_validate({"url": url})
            kept.append(KeptListing.model_validate({
                "server": f"server{number}", "seen_at": iso_time(time.time_ns()),
                "launch": launch_parts(definition.as_json()), "items": {"tool": tools_of(number)},
            }))  # fmt: skip
        prepare(place, servers, settings=GENEROUS + SURFACE, policy=ALLOW_ALL)
        make_private_dir(place.home.data)
        for listing in kept:
            keep_listing(listings_dir(place.home.data), listing)
        accept_kept(place, kept, READS)
        yield


async def all_pages(ask: world.Ask) -> int:
    """Walk through `tools/list`; returns how many tools there are."""
    count = 0
    cursor: dict[str, Any] = {}
    while True:
        page = (await ask("tools/list", cursor))["result"]
        count += len(page["tools"])
        if "nextCursor" not in page:
            return count
        cursor = {"cursor": page["nextCursor"]}


async def started(place: Place) -> tuple[subprocess.Popen[bytes], int, float]:
    """Start the daemon; returns it, its port, and how long it took until it had listed every tool, in ms."""
    place.home.runtime_file.unlink(missing_ok=True)
    began = time.perf_counter()
    process = subprocess.Popen(
        [OMNI, "serve", "--port", "0"], env=place.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        port = await listening(place, process)
        async with world.http_clients(port, 1, token=token_of(place)) as [ask]:
            assert await all_pages(ask) >= SERVERS * TOOLS_EACH
        return process, port, (time.perf_counter() - began) * 1000
    except BaseException:
        stop(process)
        raise


async def listening(place: Place, process: subprocess.Popen[bytes]) -> int:
    """Wait until the daemon says where it listens."""
    async with asyncio.timeout(START_LIMIT_S):
        while process.poll() is None:
            try:
                facts: Mapping[str, Any] = json.loads(place.home.runtime_file.read_text())
                if facts["pid"] == process.pid:
                    return int(facts["port"])
            except (OSError, ValueError):
                pass
            await asyncio.sleep(LOOK_AGAIN_S)
    raise RuntimeError(f"the daemon ended with {process.returncode}")


def token_of(place: Place) -> str:
    """Return the token that the first start minted."""
    return place.home.token_file.read_text().strip()


async def edge_list_cpu_ms(place: Place) -> float:
    """Processor time of one warm walk through `tools/list` without a transport, on the same home."""
    async with open_gateway(load_settings(place.home.settings_file), place.home) as gateway:
        session = gateway.edge.open(principal=ANN, profile="default", transport="memory", outlet=Nowhere())
        session.version = world.OLD
        cursors = await cursors_of(gateway.edge, session)
        began = time.process_time()
        for number in range(LISTS):
            for cursor in cursors:
                await gateway.edge.begin(session, Request(number, "tools/list", cursor), Nowhere())
        return (time.process_time() - began) / LISTS * 1000


async def cursors_of(edge: Any, session: Any) -> list[dict[str, Any]]:
    """Return the parameters of every page."""
    cursors: list[dict[str, Any]] = [{}]
    while True:
        reply = json.loads((await edge.begin(session, Request(0, "tools/list", cursors[-1]), Nowhere())).body)
        if "nextCursor" not in reply["result"]:
            return cursors
        cursors.append({"cursor": reply["result"]["nextCursor"]})


async def list_over_http(ask: world.Ask, pid: int) -> float:
    """Processor time of the daemon for one warm walk through `tools/list` over HTTP, in ms."""
    await all_pages(ask)
    before = world.cpu_s(pid)
    for _ in range(LISTS):
        await all_pages(ask)
    return (world.cpu_s(pid) - before) / LISTS * 1000


async def searches_ms(ask: world.Ask) -> list[float]:
    """Time of searches that differ, one after the other, as the client sees it, sorted."""
    spent = []
    for verb, noun, place in itertools.product(VERBS, NOUNS, PLACES[:3]):
        params = {"name": "tools__search_tools", "arguments": {"query": f"{verb} {noun} {place}", "limit": 5}}
        began = time.perf_counter()
        reply = await ask("tools/call", params)
        spent.append((time.perf_counter() - began) * 1000)
        assert "result" in reply and not reply["result"].get("isError"), reply
    return sorted(spent)


async def measure(*, starts: int = 5) -> list[Row]:
    """Measure starts, lists and searches."""
    with new_place() as place, known_servers(place):
        took_ms = []
        for number in range(starts + 1):
            process, port, spent_ms = await started(place)
            if number:  # the first one makes keys and the database
                took_ms.append(spent_ms)
            if number < starts:
                stop(process)
        try:
            async with world.http_clients(port, 1, token=token_of(place)) as [ask]:
                listed_ms = await list_over_http(ask, process.pid)
                searched = await searches_ms(ask)
            memory_mib = world.rss_kib(process.pid) / 1024
        finally:
            stop(process)
        edge_ms = await edge_list_cpu_ms(place)
    what = f"{SERVERS * TOOLS_EACH} tools of {SERVERS} silent servers"
    return [
        at_most(f"{what}: start to all tools listed, median", statistics.median(took_ms), "ms", 1000),
        at_most(f"{what}: tools/list warm, CPU", edge_ms, "ms", 1),
        Row(f"{what}: tools/list warm over HTTP, daemon's CPU", listed_ms, "ms"),
        at_most(f"{what}: search, p50", statistics.median(searched), "ms", 5),
        Row(f"{what}: search, p99", searched[len(searched) * 99 // 100], "ms"),
        Row(f"{what}: memory of the daemon", memory_mib, "MiB"),
    ]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    given = parser.parse_args()
    rows = asyncio.run(measure(starts=given.starts))
    if given.json:
        print(
            json.dumps({"benchmark": "catalog_scale", "cores": os.cpu_count(), "rows": [asdict(row) for row in rows]})
        )
    else:
        for row in rows:
            print(f"{row.what:<80} {row.measured:9.2f} {row.unit:<4} {row.reach:>8} "
                  f"{ {None: '', True: 'ok', False: 'MISS'}[row.met] }")  # fmt: skip
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
