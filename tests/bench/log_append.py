"""How many events a second become durable with everything on: masked, chained, heads authenticated, indexed, projected.

Each writer appends one event and waits until it is on disk, as a call does. Run: `python tests/bench/log_append.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from secrets import token_urlsafe

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.events import Draft, ToolCall, ToolResult, draft
from omni_mcp.contracts.ids import new_id
from omni_mcp.engines.runlog.store import SqliteRunLog, open_run_log
from omni_mcp.engines.secrets.masking import SecretMasker

WRITERS = (1, 16, 256)
TEXT = "Read the notes of the last meeting and list every decision with its owner and the day it is due; "
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


async def measure(writers: int, events: int) -> dict[str, float]:
    """Return writers, events, events_per_s, p50_ms, p99_ms and bytes_per_event of one run on a fresh log."""
    secrets = {f"key{number}": token_urlsafe(32) for number in range(10)}
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        async with open_run_log(
            place / "log.db", keys=place / "keys", masker=SecretMasker(secrets), gateway_version="bench"
        ) as log:
            run_of = [
                await log.create_run(kind="session", principal=SOMEONE, actor=SOMEONE.key, client={})
                for _ in range(writers)
            ]
            latencies_s: list[float] = []
            began = time.perf_counter()
            await asyncio.gather(*(_writer(log, run, events // writers, latencies_s) for run in run_of))
            took_s = time.perf_counter() - began
        size = (place / "log.db").stat().st_size
    latencies_s.sort()
    return {
        "writers": writers, "events": len(latencies_s), "events_per_s": round(len(latencies_s) / took_s),
        "p50_ms": round(latencies_s[len(latencies_s) // 2] * 1000, 3),
        "p99_ms": round(latencies_s[len(latencies_s) * 99 // 100] * 1000, 3),
        "bytes_per_event": round(size / len(latencies_s)),
    }  # fmt: skip


def main() -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--events", type=int, default=20_000, help="events for 16 and 256 writers; a tenth for one")
    options = parser.parse_args()
    rows = [asyncio.run(measure(count, options.events if count > 1 else options.events // 10)) for count in WRITERS]
    if options.json:
        print(json.dumps({"benchmark": "log_append", "rows": rows}))
        return
    print(f"{'writers':>8} {'events/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'bytes/event':>12}")
    for row in rows:
        print("{writers:>8} {events_per_s:>9} {p50_ms:>8} {p99_ms:>8} {bytes_per_event:>12}".format(**row))


if __name__ == "__main__":
    main()
