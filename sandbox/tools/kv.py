"""The kv tools: small JSON values that outlive a call, in a SQLite file of the project's own state directory."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

from failure import ToolFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FILE = "kv.sqlite"
VALUE_LIMIT_BYTES = 64 * 1024
KEY_LIMIT = 10_000
TOTAL_LIMIT_BYTES = 32 * 1024 * 1024

_TABLE = """
CREATE TABLE IF NOT EXISTS kv (
  namespace TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, version INTEGER NOT NULL, expires_at REAL,
  PRIMARY KEY (namespace, key)
) STRICT, WITHOUT ROWID
"""


def kv_get(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the value of a key, or that there is none."""
    with _transaction() as database:
        row = _find(database, *_key(arguments))
    if row is None:
        return {"found": False, "version": 0}
    found = {"found": True, "value": json.loads(row[0]), "version": row[1]}
    return found if row[2] is None else {**found, "expires_in_s": round(max(0.0, row[2] - time.time()), 3)}


def kv_set(arguments: dict[str, Any]) -> dict[str, Any]:
    """Set or delete a key, if asked to only when it has the version that the caller knows."""
    delete = arguments.get("delete", False)
    if delete == ("value" in arguments):
        raise ToolFailure("give a value, or delete: true")
    if delete and "ttl_s" in arguments:
        raise ToolFailure("ttl_s goes with a value")
    namespace, key = _key(arguments)
    with _transaction() as database:
        row = _find(database, namespace, key)
        version = row[1] if row else 0
        if arguments.get("if_version", version) != version:
            return {"stored": False, "version": version}
        database.execute("DELETE FROM kv WHERE namespace = ? AND key = ?", (namespace, key))
        if delete:
            return {"stored": row is not None, "version": 0}
        _insert(database, namespace, key, arguments, version + 1)
    return {"stored": True, "version": version + 1}


def _insert(database: sqlite3.Connection, namespace: str, key: str, arguments: dict[str, Any], version: int) -> None:
    text = json.dumps(arguments["value"], ensure_ascii=False, separators=(",", ":"))
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > VALUE_LIMIT_BYTES:
        raise ToolFailure(f"a value has at most {VALUE_LIMIT_BYTES} bytes as JSON; this one has {size}")
    count, total = database.execute("SELECT count(*), coalesce(sum(length(CAST(value AS BLOB))), 0) FROM kv").fetchone()
    if count >= KEY_LIMIT or total + size > TOTAL_LIMIT_BYTES:
        raise ToolFailure(
            f"the project's store is full ({KEY_LIMIT} keys, {TOTAL_LIMIT_BYTES} bytes); delete some keys"
        )
    expires_at = time.time() + arguments["ttl_s"] if "ttl_s" in arguments else None
    database.execute("INSERT INTO kv VALUES (?, ?, ?, ?, ?)", (namespace, key, text, version, expires_at))


def _key(arguments: dict[str, Any]) -> tuple[str, str]:
    return arguments.get("namespace", "default"), arguments["key"]


def _find(database: sqlite3.Connection, namespace: str, key: str) -> tuple[str, int, float | None] | None:
    """Return (value, version, expiry) of a key that has not expired."""
    row: tuple[str, int, float | None] | None = database.execute(
        "SELECT value, version, expires_at FROM kv WHERE namespace = ? AND key = ?", (namespace, key)
    ).fetchone()
    return row


@contextmanager
def _transaction() -> Iterator[sqlite3.Connection]:
    """Open the store, forget what has expired, and commit at the end; calls of other cells wait their turn."""
    database = sqlite3.connect(FILE, timeout=10.0, isolation_level=None)
    try:
        database.execute("BEGIN IMMEDIATE")
        database.execute(_TABLE)
        database.execute("DELETE FROM kv WHERE expires_at <= ?", (time.time(),))
        yield database
        database.execute("COMMIT")
    except (sqlite3.Error, UnicodeError) as error:
        raise ToolFailure(f"the store cannot be used: {error}") from error
    finally:
        database.close()
