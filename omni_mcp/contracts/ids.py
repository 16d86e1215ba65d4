"""Time-ordered identifiers (UUIDv7, RFC 9562 section 5.7) and times as people and JSON write them."""

from __future__ import annotations

import os
import struct
import threading
import time
from datetime import UTC, datetime

RANDOM_AT_ONCE = 128
_lock = threading.Lock()
_last_ms = 0
_counter = 0
_random: list[int] = []


def new_id() -> str:
    """Return a fresh UUIDv7; ids made by one process sort in the order in which they were made."""
    global _last_ms, _counter
    with _lock:
        if not _random:  # asked of the system for many at once: each time lets another thread go first
            _random.extend(struct.unpack(f"{RANDOM_AT_ONCE}Q", os.urandom(8 * RANDOM_AT_ONCE)))
        random = _random.pop()
        now_ms = time.time_ns() // 1_000_000
        if now_ms > _last_ms:
            _last_ms, _counter = now_ms, random >> 54  # 10 random bits leave room to count up in 12
        else:
            _counter += 1
            if _counter > 0xFFF:
                _last_ms, _counter = _last_ms + 1, 0
        ms, counter = _last_ms, _counter
    variant = 0x8000 | (random >> 48) & 0x3FFF
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7{counter:03x}-{variant:04x}-{random & 0xFFFFFFFFFFFF:012x}"


def iso_time(at_ns: int) -> str:
    """Write nanoseconds since the epoch as ISO 8601 in UTC with microseconds."""
    seconds, rest = divmod(at_ns, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest // 1000:06d}Z"
