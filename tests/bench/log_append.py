"""How many events a second become durable with everything on: masked, chained, heads authenticated, indexed, projected.

Each writer appends one event and waits until it is on disk, as a call does; making the events is part of what is timed.
CPU time says more than the rate on a machine that others use. Run: `python tests/bench/log_append.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_urlsafe
from statistics import median

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.events import Draft, ToolCall, ToolResult, draft
from omni_mcp.contracts.ids import new_id
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.runlog.store import SqliteRunLog, open_run_log
from omni_mcp.engines.secrets.masking import SecretMasker

WRITERS = (1, 16, 256)
TEXT = "Read the notes of the last meeting and list every decision with its owner and the day it is due; "
HEADING = "writers  events/s (best)  p50 ms  p99 ms  CPU us/event: loop  writer  events/commit  bytes/event"
LINE = (
    "{writers:>7}  {events_per_s:>8.0f} {best_events_per_s:>6}  {p50_ms:>6.2f}  {p99_ms:>6.2f}  "
    "{loop_cpu_us_per_event:>18.1f}  {writer_cpu_us_per_event:>6.1f}  {events_per_commit:>13.1f}  "
    "{file_bytes_per_event:>11.0f}"
)
SOMEONE = Principal(kind="User", id="1000")


def _asked(call: str, number: int) -> Draft:
    payload = ToolCall(
        call_kind="tool", name="tools__files_read", arguments={"path": f"notes/{number}.txt", "question": TEXT + call},
        arguments_hmac="hmac-sha256:" + "ab" * 32, arguments_bytes=180, principal=SOMEONE.key, profile="default",
        client={"name": "bench", "version": "1.0", "transport": "stdio"},
    )  # fmt: skip
    return draft(payload, actor=SOMEONE.key, call=call)


def _answered(call: str, number: int) -> Draft:
    payload = ToolResult(
        is_error=False, result={"content": [{"type": "text", "text": f"{TEXT}{number} {call} {TEXT}"}]}, where="cell",
        isolation={"namespaces": True, "landlock": True, "seccomp": True}, usage={"wall_ms": 12.5, "cpu_ms": 3.25},
        duration_ms=13.0, bytes_out=260,
    )  # fmt: skip
    return draft(payload, actor=SOMEONE.key, call=call)


async def _writer(log: SqliteRunLog, run: str, events: int, latencies_s: list[float]) -> None:
    for number in range(0, events, 2):
        call = new_id()
        for send in (_asked, _answered):
            began = time.perf_counter()
            await log.append(run, send(call, number)).durable()
            latencies_s.append(time.perf_counter() - began)


@asynccontextmanager
async def _fresh_log() -> AsyncIterator[tuple[SqliteRunLog, Path]]:
    secrets = {f"key{number}": token_urlsafe(32) for number in range(10)}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "log.db"
        opened = open_run_log(
            file, keys=Path(directory) / "keys", masker=SecretMasker(secrets), gateway_version="bench"
        )  # fmt: skip
        async with opened as log:
            yield log, file


async def _writers_thread(log: SqliteRunLog) -> tuple[float, int]:
    """Return (CPU seconds, commits) of the writer's thread so far."""
    return await log._writer.call(lambda ledger: (time.thread_time(), ledger.commits))


async def measure(writers: int, events: int) -> dict[str, float]:
    """Measure one round on a fresh log, after a warm-up of a tenth as many events that is not counted."""
    async with _fresh_log() as (log, file):
        runs = [
            await log.create_run(kind="session", principal=SOMEONE, actor=SOMEONE.key, client={})
            for _ in range(writers)
        ]
        each = max(2, events // writers // 2 * 2)
        warm_up = max(2, each // 10 // 2 * 2)
        await asyncio.gather(*(_writer(log, run, warm_up, []) for run in runs))
        latencies_s: list[float] = []
        writer_cpu_s, commits = await _writers_thread(log)
        loop_cpu_s, began = time.thread_time(), time.perf_counter()
        await asyncio.gather(*(_writer(log, run, each, latencies_s) for run in runs))
        took_s, loop_cpu_s = time.perf_counter() - began, time.thread_time() - loop_cpu_s
        cpu_after_s, commits_after = await _writers_thread(log)
        on_record = sum([run["last_seq"] for run in await log.runs(limit=writers)])
        await log.flush_index()
        size = file.stat().st_size
    count = len(latencies_s)
    if on_record != writers * (1 + warm_up + each):
        raise RuntimeError("an event that was acknowledged is not on record")
    latencies_s.sort()
    return {
        "events": count,
        "events_per_s": count / took_s,
        "p50_ms": latencies_s[count // 2] * 1e3,
        "p99_ms": latencies_s[count * 99 // 100] * 1e3,
        "loop_cpu_us_per_event": loop_cpu_s / count * 1e6,
        "writer_cpu_us_per_event": (cpu_after_s - writer_cpu_s) / count * 1e6,
        "events_per_commit": count / (commits_after - commits),
        "file_bytes_per_event": size / on_record,
    }


async def measure_page() -> float:
    """Return the median milliseconds of a page of 1,000 events of one of 16 runs, each read for the first time."""
    took_s = []
    async with _fresh_log() as (log, file):
        runs = [
            await log.create_run(kind="session", principal=SOMEONE, actor=SOMEONE.key, client={}) for _ in range(16)
        ]
        await asyncio.gather(*(_writer(log, run, 1000, []) for run in runs))
        with LogReader(file) as reader:
            for run in runs:
                began = time.perf_counter()
                page = reader.events(run, limit=1000)
                took_s.append(time.perf_counter() - began)
                if len(page) != 1000:
                    raise RuntimeError("an event that was acknowledged is not on record")
    return median(took_s) * 1e3


def _summary(writers: int, rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure, and the best rate beside the median one."""
    row = {name: round(median(each[name] for each in rounds), 3) for name in rounds[0]}
    return {"writers": writers, "best_events_per_s": round(max(each["events_per_s"] for each in rounds)), **row}


def main() -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--events", type=int, default=16_000, help="of a round with 16 or 256 writers; a tenth for one")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = []
    for writers in WRITERS:
        events = options.events if writers > 1 else options.events // 10
        rows.append(_summary(writers, [asyncio.run(measure(writers, events)) for _ in range(options.rounds)]))
    page_ms = round(median(asyncio.run(measure_page()) for _ in range(options.rounds)), 2)
    if options.json:
        print(json.dumps({"benchmark": "log_append", "rounds": options.rounds, "rows": rows, "page_1000_ms": page_ms}))
        return
    print(HEADING)
    for row in rows:
        print(LINE.format(**row))
    print(f"medians of {options.rounds} rounds; a page of 1,000 events is read in {page_ms} ms")


if __name__ == "__main__":
    main()
