"""An event as its own caller sees it, in JSON: rules, requests and details of a decision are for operators."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.engines.runlog.rows import Row, payload_of

SELECT_SHOWN = (
    "SELECT k.id, e.seq, e.gid, e.at_ns, e.kind, e.code, e.actor, e.call, e.parent, e.erased_by, t.body "
    "FROM events e JOIN run_keys k ON k.run = e.run LEFT JOIN texts t ON t.gid = e.gid "
)
RUN, SEQ, GID, SHOWN_BODY = 0, 1, 2, 10  # columns of `SELECT_SHOWN`
_LINE = b'{"actor":%b,"at":"%b%06dZ","call":%b,"code":%b,"kind":%b,"parent":%b,"payload":%b,"run":%b,"seq":%d}'
_NS_PER_S = 1_000_000_000
_DECISIONS = frozenset({"policy_decided", "decision_premises", "access_refused"})
_DETAILED = frozenset({"tool_error", "attempt_failed"})  # a kind and a code
_DECIDED = ("code", "verdict", "method", "target")


def shown_payload(kind: str, code: str | None, payload: JsonObject) -> JsonObject:
    """Return what the caller may see of a payload. A missing tool and a forbidden one leave the same view.

    Sheets keep what this made: who changes it adds a migration that empties the table `sheets`.
    """
    if kind in _DETAILED or code in _DETAILED:
        return {name: value for name, value in payload.items() if name != "detail"}
    if kind == "system_event" and code in _DECISIONS:
        return {name: payload[name] for name in _DECIDED if name in payload}
    return payload


def line_of(row: Row) -> bytes:
    """Return one event of `SELECT_SHOWN` as canonical JSON. The stored text is looked at and passed on as it is.

    Raises:
        LogCorrupt: its text is no JSON.
    """
    run, seq, _, at_ns, kind, code, actor, call, parent, erased_by, body = row
    payload = payload_of(erased_by, body)
    try:
        told = None if payload is None else orjson.loads(payload)  # a text that is none would spoil its whole page
        if told is not None and (kind in _DETAILED or code in _DETAILED or code in _DECISIONS):
            payload = canonical(shown_payload(kind, code, told))
        return _LINE % (
            _text(actor), _second(at_ns // _NS_PER_S), at_ns % _NS_PER_S // 1000, orjson.dumps(call), _text(code),
            _text(kind), b"null" if parent is None else b"%d" % parent, payload or b"null", _text(run), seq,
        )  # fmt: skip
    except (ValueError, TypeError, AttributeError) as error:
        place = f"run {run} event {seq} cannot be read: {error}; run `omni-mcp audit verify`"
        raise LogCorrupt("the run log is damaged", detail=place) from error


@lru_cache(maxsize=1024)
def _text(value: Any) -> bytes:
    return orjson.dumps(value)


@lru_cache(maxsize=1024)
def _second(second: int) -> bytes:
    """Return the time up to the dot: events of one second share it."""
    return iso_time(second * _NS_PER_S)[:-7].encode()
