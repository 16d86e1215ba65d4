"""How a decision is stored: with its premises in its own text, or with the seq of the event that holds them."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from itertools import islice

import orjson

from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.premises import together
from omni_mcp.engines.runlog.rows import SALT_BYTES, payload_of

PREMISES_OF_A_RUN = 16  # known at once; beyond that the oldest are forgotten, and said again by the next decision
_AHEAD = b',"request":'  # only a name looks like this: quotes inside of strings are escaped
_SELECT = (
    "SELECT e.erased_by, t.body FROM events e JOIN texts t ON t.gid = e.gid "
    "WHERE e.run = (SELECT run FROM run_keys WHERE id = ?) AND e.seq = ? AND e.code = 'decision_premises'"
)


def with_one_more(known: Mapping[bytes, int], key: bytes, seq: int) -> dict[bytes, int]:
    """Return the premises that a run knows with one more; the oldest goes where there is no room."""
    kept = {**known, key: seq}
    return dict(islice(kept.items(), len(kept) - PREMISES_OF_A_RUN, None)) if len(kept) > PREMISES_OF_A_RUN else kept


def naming_decision(own: bytes, seq: int) -> bytes:
    """Return the text of a decision with the seq of its premises, in canonical order again."""
    return own.replace(_AHEAD, b',"premises":%d,"request":' % seq, 1)


def whole_decision(
    own: bytes, privacy: tuple[str, ...], premises: tuple[bytes, tuple[str, ...]], run: str
) -> tuple[bytes, tuple[str, ...]]:
    """Return the text of a decision that says its premises itself, and the places that were masked in it."""
    shared, masked = premises
    told = together(orjson.loads(own), orjson.loads(shared), run=run)
    return canonical(told), tuple(dict.fromkeys((*privacy, *masked)))


def find_premises(connection: sqlite3.Connection, run: str, seq: int) -> JsonObject | None:
    """Return the payload of the premises of *run* with that seq; None if there are none, or no more."""
    row = connection.execute(_SELECT, (run, seq)).fetchone()
    payload = None if row is None else payload_of(*row)
    told = None if payload is None else orjson.loads(payload)
    return told if isinstance(told, dict) else None


def unnamed_premises(connection: sqlite3.Connection, run_key: int, calls: Sequence[str]) -> list[tuple[int, int]]:
    """Return (seq, gid) of the premises of a run that no decision names once the texts of *calls* are gone."""
    sql = "SELECT seq, gid FROM events WHERE run = ? AND erased_by IS NULL AND code = 'decision_premises'"
    found: list[tuple[int, int]] = list(connection.execute(sql, (run_key,)))
    if not found:
        return []
    sql = (
        "SELECT t.body FROM events e JOIN texts t ON t.gid = e.gid WHERE e.run = ? AND e.erased_by IS NULL "
        "AND e.code = 'policy_decided' AND (e.call IS NULL OR e.call NOT IN (SELECT value FROM json_each(?)))"
    )
    rows = connection.execute(sql, (run_key, canonical(list(calls)).decode()))
    named = {orjson.loads(body[SALT_BYTES:]).get("premises") for (body,) in rows}
    return [(seq, gid) for seq, gid in found if seq not in named]
