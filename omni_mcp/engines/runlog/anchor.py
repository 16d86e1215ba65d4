"""The anchor: the newest global head, kept in a file beside the keys, so that an older copy of the database is noticed.

Heads in the database prove that it is ours and whole; they cannot prove that it is the newest. The anchor is written
after the commit it speaks of and never before, so a database that is behind its anchor was put back.
"""

from __future__ import annotations

import errno
import hmac
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

import orjson

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.engines.runlog.heads import GlobalHead, roll
from omni_mcp.engines.runlog.keys import LogKeys
from omni_mcp.paths import sync_directory

ANCHOR_FILE = "log-anchor"
ANCHOR_EVERY_S = 1.0
_NAME = "anchor"  # what its MAC is made for: the MAC of a head in the database does not fit
_LIMIT_BYTES = 4096
_WAY_OUT = (
    "Put the newest database back. If this older one was restored on purpose, move {file} away: the gateway says that "
    "it is gone and begins a new one"
)


@dataclass(frozen=True, slots=True)
class KnownHead:
    """A global head that somebody noted: the number of events, and the rolling hash over theirs. `source` says who."""

    count: int
    hash: bytes
    source: str


def find_anchor(directory: Path, keys: LogKeys) -> KnownHead | None:
    """Return the anchor kept in *directory*, or None if there is none.

    Raises:
        LogCorrupt: it is not one that was made with these keys.
    """
    file = directory / ANCHOR_FILE
    try:
        with file.open("rb") as source:
            found = orjson.loads(source.read(_LIMIT_BYTES))
        count, digest, mac = int(found["count"]), bytes.fromhex(found["hash"]), bytes.fromhex(found["mac"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LogCorrupt(
            "the anchor of the run log is damaged; the log itself may be whole",
            detail=f"{file}: {error!r}. If `omni-mcp audit verify` finds nothing else, move this file away and start",
        ) from error
    if not hmac.compare_digest(mac, keys.head_mac(_NAME, count, digest)):
        raise LogCorrupt("the anchor of the run log does not fit its key", detail=f"{file}. {_way_out(file)}")
    return KnownHead(count, digest, str(file))


def check_anchor(connection: sqlite3.Connection, anchor: KnownHead, head: GlobalHead) -> None:
    """Check that the log, whose authentic head is *head*, goes on from *anchor*: what came after it leads to *head*.

    Raises:
        LogCorrupt: the log is older than the anchor, or another one.
    """
    hint = _way_out(Path(anchor.source))
    if head.count < anchor.count:
        told = f"it has {head.count} events, and had {anchor.count} when {anchor.source} was written. {hint}"
        raise LogCorrupt("the run log is older than it was: events at its end are gone", detail=told)
    rolling = anchor.hash
    after = "SELECT hash FROM events WHERE gid > ? AND gid <= ? ORDER BY gid"
    for (digest,) in connection.execute(after, (anchor.count, head.count)):
        rolling = roll(rolling, digest)
    if rolling != head.hash:
        told = f"it does not go on from event {anchor.count} as {anchor.source} knows it. {hint}"
        raise LogCorrupt("the run log is not the one that was written here", detail=told)


class AnchorKeeper:
    """Writes the anchor, at most once in `ANCHOR_EVERY_S`. Belongs to one thread."""

    def __init__(self, directory: Path, keys: LogKeys, *, kept: int) -> None:
        self._directory = directory
        self._keys = keys
        self._kept = kept
        self._next_s = 0.0
        self.problem = ""  # why the last one could not be written; events go on, only their rollback would not be seen

    def due_in_s(self, count: int) -> float | None:
        """Return in how many seconds a log of *count* events is to be anchored; None if it is already."""
        return None if count <= self._kept else max(0.0, self._next_s - time.monotonic())

    def keep(self, head: GlobalHead) -> None:
        """Write *head*, which must be committed, durably and whole or not at all."""
        self._next_s = time.monotonic() + ANCHOR_EVERY_S
        mac = self._keys.head_mac(_NAME, head.count, head.hash)
        line = orjson.dumps({"count": head.count, "hash": head.hash.hex(), "mac": mac.hex()}) + b"\n"
        try:
            _replace(self._directory / ANCHOR_FILE, line)
        except OSError as error:
            self.problem = f"the anchor of the run log cannot be written: {error}"
            return
        self._kept, self.problem = head.count, ""


def _replace(file: Path, content: bytes) -> None:
    part = file.with_suffix(".new")
    descriptor = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    try:
        if os.write(descriptor, content) != len(content):
            raise OSError(errno.ENOSPC, "only a part of it could be written")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    part.rename(file)
    sync_directory(file.parent)


def _way_out(file: Path) -> str:
    return _WAY_OUT.format(file=file)
