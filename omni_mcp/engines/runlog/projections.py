"""Projections: tables derived from the events alone. Dropping and rebuilding them gives the same rows."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import orjson

from omni_mcp.contracts.events import OUTCOME_KINDS
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.runlog.rows import Row, in_portions, payload_of
from omni_mcp.engines.runlog.search_index import digest_of_index, drop_index, index_up_to
from omni_mcp.engines.runlog.word_filters import made, stored

_OPEN = "INSERT INTO open_calls VALUES {rows} ON CONFLICT (call) DO NOTHING"
_COUNT = "UPDATE runs SET calls = calls + v.column2 FROM (VALUES {rows}) AS v WHERE runs.run = v.column1"


class Fact(NamedTuple):
    """What the projections need of one event. `values` depends on the kind; erased events have none."""

    run_key: int
    seq: int
    at_ns: int
    kind: str
    code: str | None
    call: str | None
    values: tuple[Any, ...]


def values_of(kind: str, payload: JsonObject | None) -> tuple[Any, ...]:
    """Return what is projected of a masked payload."""
    if payload is None:
        return ()
    if kind == "run_created":
        names = ("run_kind", "project", "principal", "parent_run", "trace_id")
        return tuple(payload.get(name) for name in names)
    return ()


def project(connection: sqlite3.Connection, facts: Sequence[Fact]) -> None:
    """Add *facts*, in their order, to `runs` and `open_calls`: folded first, so that each row is written once."""
    counts: dict[int, int] = {}
    opened: dict[str, Row] = {}
    closed: list[Row] = []
    for fact in facts:
        if fact.kind == "run_created":
            _add_run(connection, fact)
        elif fact.kind == "tool_call" and fact.call is not None:
            counts[fact.run_key] = counts.get(fact.run_key, 0) + 1
            opened.setdefault(fact.call, (fact.call, fact.run_key, fact.seq))
        elif fact.kind in OUTCOME_KINDS and fact.call is not None:
            opened.pop(fact.call, None)
            closed.append((fact.call,))
        elif fact.code == "run_closed":
            connection.execute(
                "UPDATE runs SET closed_seq = ? WHERE run = ? AND closed_seq IS NULL", (fact.seq, fact.run_key)
            )
    statements: list[tuple[str, list[Any]]] = []
    if closed:
        statements += in_portions("DELETE FROM open_calls WHERE call IN ({rows})", "?", closed)
    if opened:
        statements += in_portions(_OPEN, "(?, ?, ?)", list(opened.values()))
    if counts:
        statements += in_portions(_COUNT, "(?, ?)", list(counts.items()))
    for statement, values in statements:
        connection.execute(statement, values)


def _add_run(connection: sqlite3.Connection, fact: Fact) -> None:
    values = fact.values or (None,) * 5
    connection.execute(
        "INSERT INTO runs (run, kind, project, principal, parent_run, trace_id, created_at_ns) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (fact.run_key, *values, fact.at_ns),
    )


def project_run_again(connection: sqlite3.Connection, run_key: int) -> None:
    """Derive everything about one run anew, as after an erasure."""
    connection.execute("DELETE FROM runs WHERE run = ?", (run_key,))
    connection.execute("DELETE FROM open_calls WHERE run = ?", (run_key,))
    rows = connection.execute(
        "SELECT e.seq, e.at_ns, e.kind, e.code, e.call, e.erased_by, t.body FROM events e "
        "LEFT JOIN texts t ON t.gid = e.gid AND e.kind = 'run_created' WHERE e.run = ? AND (e.kind IN ('run_created', "
        "'tool_call', 'tool_result', 'tool_error') OR e.code = 'run_closed') ORDER BY e.seq",
        (run_key,),
    )
    project(connection, list(_facts(run_key, rows)))
    erased = "SELECT count(*) FROM events WHERE run = ?1 AND erased_by IS NOT NULL"
    connection.execute(f"UPDATE runs SET erased = ({erased}) WHERE run = ?1", (run_key,))


def rebuild(connection: sqlite3.Connection) -> None:
    """Drop all projections and derive them anew, in the caller's transaction."""
    drop_index(connection)
    connection.execute("DELETE FROM runs")
    connection.execute("DELETE FROM open_calls")
    for (run_key,) in connection.execute("SELECT run FROM run_keys ORDER BY run").fetchall():
        project_run_again(connection, run_key)
    last = connection.execute("SELECT max(gid) FROM events").fetchone()[0] or 0
    index_up_to(connection, last)


def digest_of_projections(connection: sqlite3.Connection) -> str:
    """Return a sha256 over every row of every projection: equal before and after a rebuild."""
    digest = hashlib.sha256()
    for table, order in (("runs", "run"), ("open_calls", "call")):
        for row in connection.execute(f"SELECT * FROM {table} ORDER BY {order}"):
            digest.update(orjson.dumps(row))
    for row in connection.execute("SELECT run, number, length(digest) FROM sheets ORDER BY run, number"):
        digest.update(orjson.dumps(row))
    for number in made(connection):
        digest.update(b"%d " % number + b"".join(stored(connection, number)))
    digest.update(digest_of_index(connection))
    return digest.hexdigest()


def _facts(run_key: int, rows: Iterable[Row]) -> Iterable[Fact]:
    for seq, at_ns, kind, code, call, erased_by, body in rows:
        payload = payload_of(erased_by, body)
        values = () if payload is None else values_of(kind, orjson.loads(payload))
        yield Fact(run_key, seq, at_ns, kind, code, call, values)
