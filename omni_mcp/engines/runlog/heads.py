"""Heads: how long each chain is and how it ends, authenticated with a key that the database does not hold.

Whoever can write to the file but has no key cannot cut a chain short, drop a run or bring back an older state of one
without a head that no longer fits. The global head covers the hashes of all events in their global order.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.contracts.events import GENESIS
from omni_mcp.engines.runlog.keys import LogKeys
from omni_mcp.engines.runlog.rows import Row, in_portions

GLOBAL_NAME = "*"
_SAVE_HEADS = (
    "INSERT INTO heads VALUES {rows} ON CONFLICT (run) DO UPDATE "
    "SET count = excluded.count, hash = excluded.hash, mac = excluded.mac"
)


@dataclass(slots=True)
class Head:
    """Where the next event of a run goes. `unlimited` runs (the gateway's own) have no quota."""

    run_key: int
    run: str
    count: int = 0
    hash: bytes = GENESIS
    unlimited: bool = False
    quota_reached: bool | None = None  # None: not looked up yet
    premises: Mapping[bytes, int] = field(default_factory=dict)  # seq by key; 0: one decision has said them itself

    def copy(self) -> Head:
        """Return a copy. Written out, because each group makes one for each of its runs."""
        return Head(self.run_key, self.run, self.count, self.hash, self.unlimited, self.quota_reached, self.premises)


@dataclass(slots=True)
class GlobalHead:
    """Number of all events, and the rolling hash over theirs in the order of their global numbers."""

    count: int = 0
    hash: bytes = GENESIS

    def copy(self) -> GlobalHead:
        """Return a copy."""
        return GlobalHead(self.count, self.hash)


def roll(rolling: bytes, event_hash: bytes) -> bytes:
    """Return the global hash after one more event."""
    return hashlib.sha256(rolling + event_hash).digest()


def load_global_head(connection: sqlite3.Connection, keys: LogKeys) -> GlobalHead:
    """Read and check the global head; an empty log has none.

    Raises:
        LogCorrupt: it does not fit the key or the events.
    """
    found = connection.execute("SELECT count, hash, mac FROM global_head").fetchone()
    last = connection.execute("SELECT max(gid) FROM events").fetchone()[0] or 0
    if found is None and not last:
        return GlobalHead()
    if found is None or found[0] != last:
        raise LogCorrupt("the run log does not end where its head says", detail=_hint("the global head", last))
    if not hmac.compare_digest(found[2], keys.head_mac(GLOBAL_NAME, found[0], found[1])):
        raise LogCorrupt("the run log's head does not fit its key", detail=_hint("the global head", last))
    return GlobalHead(found[0], found[1])


def load_head(connection: sqlite3.Connection, keys: LogKeys, run: str) -> Head | None:
    """Read and check the head of *run*; None if there is no such run.

    Raises:
        LogCorrupt: it does not fit the key, or the run's last event.
    """
    found = connection.execute(
        "SELECT k.run, h.count, h.hash, h.mac, r.kind FROM run_keys k LEFT JOIN heads h ON h.run = k.run "
        "LEFT JOIN runs r ON r.run = k.run WHERE k.id = ?",
        (run,),
    ).fetchone()
    if found is None:
        return None
    key, count, digest, mac, kind = found
    if count is None or not hmac.compare_digest(mac, keys.head_mac(run, count, digest)):
        raise LogCorrupt("the head of a run does not fit its key", detail=_hint(f"the head of run {run}", count))
    last = connection.execute("SELECT seq, hash FROM events WHERE run = ? ORDER BY seq DESC LIMIT 1", (key,)).fetchone()
    if last != (count, digest):
        raise LogCorrupt("a run does not end where its head says", detail=_hint(f"run {run}", count))
    return Head(key, run, count, digest, unlimited=kind == "gateway")


def save_heads(connection: sqlite3.Connection, keys: LogKeys, heads: list[Head], total: GlobalHead) -> None:
    """Write *heads* and the global head, authenticated, in the caller's transaction."""
    rows: list[Row] = [(h.run_key, h.count, h.hash, keys.head_mac(h.run, h.count, h.hash)) for h in heads]
    for statement, values in in_portions(_SAVE_HEADS, "(?, ?, ?, ?)", rows):
        connection.execute(statement, values)
    connection.execute(
        "INSERT INTO global_head VALUES (1, ?, ?, ?) ON CONFLICT (id) DO UPDATE "
        "SET count = excluded.count, hash = excluded.hash, mac = excluded.mac",
        (total.count, total.hash, keys.head_mac(GLOBAL_NAME, total.count, total.hash)),
    )


def _hint(what: str, count: int | None) -> str:
    return (
        f"{what} (event {count}); run `omni-mcp audit verify`, and restore the key files or the database from a backup"
    )
