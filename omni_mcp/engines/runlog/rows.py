"""An event as a row: how it is sealed into the chain, stored and read again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import orjson

from omni_mcp.contracts.events import CONTRACT_VERSION, NO_BODY, RunEvent, chain_hash, header_bytes, payload_digest

SALT_BYTES = 16
COLUMNS = (
    "run", "seq", "gid", "at_ns", "v", "kind", "code", "actor", "call", "parent", "privacy", "erased_by", "salt",
    "payload_digest", "body_digest", "prev", "hash", "payload",
)  # fmt: skip
Row = tuple[Any, ...]
SELECT_EVENT = (
    "SELECT k.id, e.seq, e.gid, e.at_ns, e.v, e.kind, e.code, e.actor, e.call, e.parent, e.privacy, e.erased_by, "
    "e.salt, e.payload_digest, e.body_digest, e.prev, e.hash, e.payload FROM events e JOIN run_keys k ON k.run = e.run "
)
_CHUNKS = (128, 32, 8, 4, 2, 1)  # rows per INSERT: one statement is one hand-over of the interpreter lock
_VALUES = f"({', '.join('?' * len(COLUMNS))})"


def sealed_row(
    *, run_key: int, run: str, seq: int, gid: int, at_ns: int, kind: str, code: str | None, actor: str,
    call: str | None, parent: int | None, privacy: tuple[str, ...], payload: bytes, prev: bytes,
) -> Row:  # fmt: skip
    """Return the row of a new event; its last but one column is its hash."""
    salt = os.urandom(SALT_BYTES)
    digest = payload_digest(salt, payload)
    header = header_bytes(
        v=CONTRACT_VERSION, run=run, seq=seq, at_ns=at_ns, kind=kind, code=code, actor=actor, call=call, parent=parent,
        privacy=privacy,
    )  # fmt: skip
    sealed = chain_hash(prev, header, digest)
    paths = orjson.dumps(privacy).decode() if privacy else "[]"
    return (
        run_key, seq, gid, at_ns, CONTRACT_VERSION, kind, code, actor, call, parent, paths, None, salt, digest, NO_BODY,
        prev, sealed, payload,
    )  # fmt: skip


def insert_many(target: str, values: str, rows: Sequence[Row]) -> list[tuple[str, list[Any]]]:
    """Return statements that insert *rows*, in chunks of few different sizes so that each is prepared only once."""
    statements, at = [], 0
    for size in _CHUNKS:
        while len(rows) - at >= size:
            flat = [value for row in rows[at : at + size] for value in row]
            statements.append((f"INSERT INTO {target} VALUES {', '.join([values] * size)}", flat))
            at += size
    return statements


def event_statements(rows: Sequence[Row]) -> list[tuple[str, list[Any]]]:
    """Return statements that insert event *rows*."""
    return insert_many(f"events ({', '.join(COLUMNS)})", _VALUES, rows)


def event_of(row: Row) -> RunEvent:
    """Return the event of a row of `SELECT_EVENT`. Not validated: the chain says whether it is what was written."""
    payload = row[17]
    return RunEvent.model_construct(
        run=row[0], seq=row[1], gid=row[2], at_ns=row[3], v=row[4], kind=row[5], code=row[6], actor=row[7], call=row[8],
        parent=row[9], privacy=tuple(orjson.loads(row[10])), erased_by=row[11], salt=row[12].hex(),
        payload_digest=row[13].hex(), body_digest=row[14].hex(), prev=row[15].hex(), hash=row[16].hex(),
        payload=None if payload is None else orjson.loads(payload),
    )  # fmt: skip
