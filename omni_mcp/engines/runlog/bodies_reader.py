"""Opens sealed bodies, for replays; and says which of them are not what was sealed, for `audit verify`."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.contracts.events import NO_BODY
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.runlog.bodies import DIRECTORY, BodyFiles, find_run_key, opened
from omni_mcp.engines.runlog.connection import open_reader, translated
from omni_mcp.engines.runlog.keys import LogKeys

_OF_RUN = (
    "SELECT e.run, e.seq, e.gid, e.body_digest, b.sealed FROM events e JOIN run_keys k ON k.run = e.run "
    "LEFT JOIN bodies b ON b.gid = e.gid WHERE k.id = ? AND e.erased_by IS NULL AND e.body_digest != ? ORDER BY e.seq"
)
_ALL = (
    "SELECT coalesce(k.id, '(unknown run)'), e.seq, e.gid, e.erased_by, e.body_digest, b.sealed FROM events e "
    "LEFT JOIN run_keys k ON k.run = e.run LEFT JOIN bodies b ON b.gid = e.gid WHERE e.body_digest != ? "
    "ORDER BY e.run, e.seq"
)


def read_bodies(file: Path, keys: LogKeys, run: str) -> dict[int, JsonObject]:
    """Return what is inside the sealed bodies of a run, by seq; those that were erased are not there.

    Raises:
        LogUnavailable, LogCorrupt: the log cannot be read, or a body is not what was sealed.
    """
    files = BodyFiles(file.parent / DIRECTORY)
    with closing(open_reader(file)) as connection:
        try:
            rows = connection.execute(_OF_RUN, (run, NO_BODY)).fetchall()
            key = find_run_key(connection, keys.bodies, rows[0][0], run) if rows else None
        except sqlite3.DatabaseError as error:
            raise translated(error, file) from error
    found: dict[int, JsonObject] = {}
    for _, seq, gid, digest, stored in rows:
        sealed = stored or files.read(gid) or b""
        if key is None or hashlib.sha256(sealed).digest() != digest:
            detail = f"the body of run {run} event {seq} is gone or was changed; run: omni-mcp audit verify"
            raise LogCorrupt("a sealed body cannot be opened", detail=detail)
        # the standard library's parser: it keeps integers of any size
        found[seq] = json.loads(opened(sealed, key, run=run, seq=seq))
    return found


def body_faults(connection: sqlite3.Connection, directory: Path) -> Iterator[tuple[str, int, str]]:
    """Yield (run, seq, what is wrong) of each body that is gone, changed, or still there after its erasure.

    Needs no key: the chain covers the digest of what is sealed. A log of an earlier version has no bodies.
    """
    if not connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'bodies')").fetchone()[0]:
        return
    files = BodyFiles(directory)
    for run, seq, gid, erased_by, digest, stored in connection.execute(_ALL, (NO_BODY,)):
        if erased_by is not None:
            if (stored is not None and any(stored)) or (not stored and files.read(gid) is not None):
                yield run, seq, "said to be erased, but its sealed body is still there"
        elif stored is None or not (sealed := stored or files.read(gid) or b""):
            yield run, seq, "its sealed body is gone without an erasure"
        elif hashlib.sha256(sealed).digest() != digest:
            yield run, seq, "changed: its sealed body is not what was recorded"
