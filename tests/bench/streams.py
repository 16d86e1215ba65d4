"""How long an event takes from its append to the client of a stream: `python tests/bench/streams.py [--json]`.

A real gateway in its own process; one client reads a stream over loopback while another reports one message at a time.
The time runs from the moment that the event itself carries, before it is committed, to the moment when the client has
parsed it: both clocks are this machine's. Beside it stands the same with neighbours: other streams of the same
principal, and another principal who writes all the time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from omni_mcp.client.client import Client
from tests.bench.gateway import RULES
from tests.bench.rows import Row, at_most
from tests.clients.running import new_place, serving

REACH_P50_MS = 10.0
NEIGHBOURS = 8
SETTINGS = "[limits]\ncalls_per_minute = 1000000\nevents_per_run = 1000000\n"


def rows(share: float = 1.0) -> list[Row]:
    """Measure; *share* of the usual number of events."""
    count = max(30, int(400 * share))
    with new_place() as place:
        place.write_policy(RULES)
        place.home.settings_file.write_text(SETTINGS)
        with serving(place) as running:
            other = place.run("keys", "create", "neighbour", "--agent", "neighbour").strip()
            here, there = Client(running.url(""), running.token), Client(running.url(""), other)
            alone = delays_ms(here, count, all_runs=False)
            every = delays_ms(here, count, all_runs=True)
            with neighbours(here, there):
                busy = delays_ms(here, count, all_runs=True)
    return [
        *_rows("append to client, one run", alone),
        *_rows("append to client, all runs", every),
        *_rows(f"append to client, all runs, {NEIGHBOURS} more streams and a busy neighbour", busy, judged=False),
    ]


def _rows(what: str, delays: list[float], *, judged: bool = True) -> list[Row]:
    """The clients of the last row are threads of one process, so it is a number to compare with and none to reach."""
    ordered = sorted(delays)
    p50 = statistics.median(ordered)
    return [
        at_most(f"{what}: p50", p50, "ms", REACH_P50_MS) if judged else Row(f"{what}: p50", p50, "ms"),
        Row(f"{what}: p99", ordered[len(ordered) * 99 // 100], "ms"),
    ]


def delays_ms(client: Client, count: int, *, all_runs: bool) -> list[float]:
    """Report *count* messages, each once the one before has been seen, and return how long each took."""
    seen = threading.Semaphore(0)
    found: list[float] = []

    def read(run: str) -> None:
        for streamed in client.stream(None if all_runs else run, last_id=start):
            now = time.time()
            event = streamed.event
            if event.run == run and event.kind == "user_message":
                found.append((now - datetime.fromisoformat(event.at).timestamp()) * 1000)
                seen.release()
                if len(found) == count:
                    return

    with client.begin("measured") as run:
        start = place_of(client) if all_runs else None
        reader = threading.Thread(target=read, args=(run.id,), daemon=True)
        reader.start()
        for number in range(count):
            while run.say("user_message", f"number {number}") and not seen.acquire(timeout=20):
                raise AssertionError("an event never came")
        reader.join(20)
    return found


def place_of(client: Client) -> str:
    """Return where a stream of all runs begins now, so that nothing is missed while it opens."""
    with client.begin("place") as run:
        path = "/api/stream"
        with client._connection.opened("GET", path, query={"begin": "now"}) as answer:
            while not (line := answer.readline()).startswith(b"id: "):
                pass
        assert run.id
    return line[4:].strip().decode()


@contextmanager
def neighbours(here: Client, there: Client) -> Iterator[None]:
    """Open more streams, and have somebody else write without a pause."""
    stop = threading.Event()

    def write() -> None:
        with there.begin("busy") as run:
            while not stop.is_set():
                run.say("assistant_message_delta", "word " * 20)
                time.sleep(0.05)  # within the rate of messages

    with ExitStack() as stack:
        answers = [
            stack.enter_context(here._connection.opened("GET", "/api/stream", timeout_s=600)) for _ in range(NEIGHBOURS)
        ]
        readers = [threading.Thread(target=_drain, args=(answer,), daemon=True) for answer in answers]
        writer = threading.Thread(target=write, daemon=True)
        for thread in (*readers, writer):
            thread.start()
        try:
            yield
        finally:
            stop.set()
            writer.join(20)


def _drain(answer: object) -> None:
    try:
        while answer.readline():  # type: ignore[attr-defined]
            pass
    except (OSError, ValueError, AttributeError):
        return


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    found = rows(0.2 if chosen.quick else 1.0)
    if chosen.json:
        print(json.dumps([asdict(row) for row in found], indent=1))
        return
    for row in found:
        reach = f"  reach {row.reach}: {'met' if row.met else 'NOT met'}" if row.reach else ""
        print(f"{row.what:<80} {row.measured:8.2f} {row.unit}{reach}")


if __name__ == "__main__":
    main()
