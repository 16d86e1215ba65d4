"""An event as a row: how it is sealed into the chain, stored and read again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import orjson

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.contracts.events import CONTRACT_VERSION, NO_BODY, RunEvent, chain_hash, header_bytes, payload_digest

SALT_BYTES = 16
_FIELDS = set(RunEvent.model_fields)
COLUMNS = (
    "run", "seq", "gid", "at_ns", "v", "kind", "code", "actor", "call", "parent", "privacy", "erased_by",
    "payload_digest", "body_digest", "prev", "hash",
)  # fmt: skip
Row = tuple[Any, ...]
EVENT_COLUMNS = (
    "k.id, e.seq, e.gid, e.at_ns, e.v, e.kind, e.code, e.actor, e.call, e.parent, e.privacy, e.erased_by, "
    "e.payload_digest, e.body_digest, e.prev, e.hash, t.body"
)
SELECT_EVENT = (
    f"SELECT {EVENT_COLUMNS} FROM events e JOIN run_keys k ON k.run = e.run LEFT JOIN texts t ON t.gid = e.gid "
)
BODY = 16  # the column of salt and payload
_ROWS_AT_ONCE = 64  # one statement is one hand-over of the interpreter lock; each size is prepared once and then kept
_INSERT_EVENTS = f"INSERT INTO events ({', '.join(COLUMNS)}) VALUES {{rows}}"
_INSERT_TEXTS = "INSERT INTO texts VALUES {rows}"
_INSERT_BODIES = "INSERT INTO bodies VALUES {rows}"
_VALUES = f"({', '.join('?' * len(COLUMNS))})"


def sealed_row(
    *, run_key: int, run: str, seq: int, gid: int, at_ns: int, kind: str, code: str | None, actor: str,
    call: str | None, parent: int | None, privacy: tuple[str, ...], payload: bytes, prev: bytes,
    body_digest: bytes = NO_BODY, salt: bytes | None = None,
) -> Row:  # fmt: skip
    """Return the row of a new event and, behind its columns, its text: salt and payload.

    Args:
        salt: `SALT_BYTES` random bytes that are used for nothing else; made here if not given.
    """
    salt = os.urandom(SALT_BYTES) if salt is None else salt
    digest = payload_digest(salt, payload)
    header = header_bytes(
        v=CONTRACT_VERSION, run=run, seq=seq, at_ns=at_ns, kind=kind, code=code, actor=actor, call=call, parent=parent,
        privacy=privacy,
    )  # fmt: skip
    sealed = chain_hash(prev, header, digest, body_digest)
    paths = orjson.dumps(privacy).decode() if privacy else "[]"
    return (
        run_key, seq, gid, at_ns, CONTRACT_VERSION, kind, code, actor, call, parent, paths, None, digest, body_digest,
        prev, sealed, salt + payload,
    )  # fmt: skip


def in_portions(template: str, row: str, rows: Sequence[Row]) -> list[tuple[str, list[Any]]]:
    """Return statements for *rows*, many at once: *template* with one *row* of marks for each in place of `{rows}`."""
    if not rows:
        return []
    if len(rows) <= _ROWS_AT_ONCE:
        return [(_statement(template, row, len(rows)), list(chain.from_iterable(rows)))]
    statements = []
    for at in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[at : at + _ROWS_AT_ONCE]
        statements.append((_statement(template, row, len(part)), list(chain.from_iterable(part))))
    return statements


@lru_cache(maxsize=1024)
def _statement(template: str, row: str, count: int) -> str:
    """The same string object each time, so that finding the prepared statement does not hash a kilobyte."""
    return template.format(rows=", ".join([row] * count))


def event_statements(rows: Sequence[Row], sealed: Sequence[Row] = ()) -> list[tuple[str, list[Any]]]:
    """Return statements that insert *rows* made by `sealed_row`, their texts, and the sealed bodies of some."""
    headers = [row[:BODY] for row in rows]
    bodies = [(row[2], row[BODY]) for row in rows]
    statements = in_portions(_INSERT_EVENTS, _VALUES, headers) + in_portions(_INSERT_TEXTS, "(?, ?)", bodies)
    return statements + in_portions(_INSERT_BODIES, "(?, ?)", sealed)


def payload_of(erased_by: int | None, body: bytes | None) -> bytes | None:
    """Return the payload in a body; None once it is erased, or gone."""
    return None if erased_by is not None or body is None else body[SALT_BYTES:]


def event_of(row: Row) -> RunEvent:
    """Return the event of a row of `SELECT_EVENT`. Not validated: the chain says whether it is what was written.

    Raises:
        LogCorrupt: its text is no JSON.
    """
    payload = payload_of(row[11], row[BODY])
    try:
        told = None if payload is None else orjson.loads(payload)
        privacy = () if row[10] == "[]" else tuple(orjson.loads(row[10]))
    except (ValueError, TypeError) as error:
        place = f"run {row[0]} event {row[1]} cannot be read: {error}; run `omni-mcp audit verify`"
        raise LogCorrupt("the run log is damaged", detail=place) from error
    event = RunEvent.__new__(RunEvent)
    # What `model_construct` does, without its loop over the fields: a page of 1,000 events takes a third of the time.
    object.__setattr__(event, "__pydantic_fields_set__", _FIELDS)
    object.__setattr__(event, "__pydantic_extra__", None)
    object.__setattr__(event, "__pydantic_private__", None)
    values = {
        "v": row[4], "gid": row[2], "run": row[0], "seq": row[1], "at_ns": row[3], "kind": row[5], "code": row[6],
        "actor": row[7], "call": row[8], "parent": row[9],
        "privacy": privacy, "payload": told, "erased_by": row[11],
        "salt": "" if payload is None else row[BODY][:SALT_BYTES].hex(), "payload_digest": row[12].hex(),
        "body_digest": row[13].hex(), "prev": row[14].hex(), "hash": row[15].hex(),
    }  # fmt: skip
    object.__setattr__(event, "__dict__", values)
    return event
