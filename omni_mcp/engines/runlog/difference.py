"""Two runs are compared event by event, up to what no second run can repeat: ids, times and a closed list of fields."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from omni_mcp.contracts.events import RunEvent
from omni_mcp.contracts.json import JsonObject, JsonValue, json_path

VOLATILE_ENVELOPE = ("gid", "run", "at_ns", "salt", "payload_digest", "body_digest", "prev", "hash")
VOLATILE: Mapping[str, tuple[str, ...]] = {
    "run_created": ("parent_run", "trace_id"),
    "tool_call": ("arguments_hmac", "trace_id"),
    "tool_result": ("duration_ms", "usage"),
    "tool_error": ("duration_ms", "usage"),
    "policy_decided": ("request.context.args_digest", "premises"),
    "approval_requested": ("arguments_hmac", "expires_at"),
    "standing_granted": ("given_at", "expires_at"),
    "standing_revoked": ("revoked_at",),
    "attempt_failed": ("delay_s",),
    "round_asked": ("expires_at",),
    "definition_accepted": ("accepted_at",),
    "egress_connection": ("duration_ms", "address"),
    "gateway_started": ("pid",),
}
ID_FIELDS = frozenset(
    {"approval", "standing", "grant", "flag", "item", "run", "call", "target_run", "target_call", "thread"}
)
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Absent:
    """Stands for a field or an event that one side does not have."""

    def __str__(self) -> str:
        return "(nothing)"


ABSENT = Absent()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first place where two runs differ: the event by its position, the field by its path, and both values.

    A value is `ABSENT` where its side has no such field or event.
    """

    seq: int
    path: str
    left: JsonValue
    right: JsonValue

    def as_json(self) -> JsonObject:
        """As JSON: a side that has nothing there is left out."""
        sides = {"left": self.left, "right": self.right}
        return {"seq": self.seq, "path": self.path} | {
            name: value for name, value in sides.items() if not isinstance(value, Absent)
        }


def comparable(events: Iterable[RunEvent], *, volatile: Mapping[str, Sequence[str]] = VOLATILE) -> list[JsonObject]:
    """Return the events of one run without what differs from run to run.

    Ids that the gateway gave become `id:1`, `id:2`, … in the order in which they appear, also inside texts, so that
    equal relations stay equal. Times and measurements go: those of the envelope, and the fields of *volatile* by kind
    or code. Keyed hashes of arguments go too; the arguments themselves are compared.

    Premises of decisions are compared with each decision that names them. As events of their own they go, and the
    others are numbered as if they were not there: when a run records them depends on when its gateway was restarted.

    Args:
        events: with their decisions put together, as a `LogReader` gives them.
    """
    ids: dict[str, str] = {}
    places: dict[int | None, int] = {}
    found: list[JsonObject] = []
    left_out = 0
    for event in events:
        if event.code == "decision_premises":
            left_out += 1
            continue
        places[event.seq] = event.seq - left_out
        parent = places.get(event.parent, event.parent)
        found.append({**_bare(event, ids, volatile), "seq": places[event.seq], "parent": parent})
    return found


def first_difference(left: Sequence[JsonObject], right: Sequence[JsonObject]) -> Difference | None:
    """Return where two lists made by `comparable` differ first, or None if they do not."""
    for seq, (one, other) in enumerate(zip_longest(left, right, fillvalue=ABSENT), 1):
        found = _differs((), one, other)
        if found is not None:
            path, a, b = found
            return Difference(seq=seq, path=json_path(path), left=a, right=b)
    return None


def _bare(event: RunEvent, ids: dict[str, str], volatile: Mapping[str, Sequence[str]]) -> JsonObject:
    shown: JsonObject = event.model_dump(exclude={*VOLATILE_ENVELOPE})
    for known in (event.run, event.call):
        _name(known, ids)
    payload = event.payload
    if payload is not None:
        for path in volatile.get(event.code or event.kind, ()):
            payload = _without(payload, path.split("."))
        _learn(payload, ids)
    return {**_renamed(shown, ids), "payload": _renamed(payload, ids)}


def _name(known: object, ids: dict[str, str]) -> None:
    if isinstance(known, str) and known not in ids and _ID.fullmatch(known):
        ids[known] = f"id:{len(ids) + 1}"


def _learn(payload: JsonObject, ids: dict[str, str]) -> None:
    """Take the ids that the gateway gave out of the fields that hold them; what a tool says is data, not an id."""
    for name in ID_FIELDS & payload.keys():
        _name(payload[name], ids)
    source = payload.get("source")
    if isinstance(source, dict):
        for name in ("run", "call"):
            _name(source.get(name), ids)


def _without(value: JsonObject, path: Sequence[str]) -> JsonObject:
    """Return *value* without the field at *path*; the input is not changed."""
    name, *rest = path
    if name not in value:
        return value
    inner = value[name]
    if not rest:
        return {key: other for key, other in value.items() if key != name}
    return {**value, name: _without(inner, rest)} if isinstance(inner, dict) else value


def _renamed(value: JsonValue, ids: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _ID.sub(lambda found: ids.get(found[0], found[0]), value) if len(value) >= 36 else value
    if isinstance(value, dict):
        return {_renamed(name, ids): _renamed(inner, ids) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(inner, ids) for inner in value]
    return value


def _differs(
    path: tuple[str | int, ...], left: JsonValue, right: JsonValue
) -> tuple[tuple[str | int, ...], JsonValue, JsonValue] | None:
    if isinstance(left, dict) and isinstance(right, dict):
        names: Iterable[str | int] = sorted(left.keys() | right.keys())
        pairs = [(name, left.get(name, ABSENT), right.get(name, ABSENT)) for name in names]
    elif isinstance(left, list) and isinstance(right, list):
        pairs = [(at, *both) for at, both in enumerate(zip_longest(left, right, fillvalue=ABSENT))]
    else:
        same = type(left) is type(right) and left == right
        return None if same else (path, left, right)
    for name, one, other in pairs:
        found = _differs((*path, name), one, other)
        if found is not None:
            return found
    return None
