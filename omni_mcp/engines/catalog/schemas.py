"""JsonSchemas checks values against JSON Schema without fetching anything, in bounded time and memory.

The validator never opens a reference: the preflight refuses every one that is not local, and the retriever refuses
again. Patterns run on a linear engine; the few that need look-around run under a cap on backtracking; the larger a
pattern, the less text it is let loose on. What a value may cost otherwise is bounded by the preflight's cost and by the
value's own size.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from threading import Lock

import jsonschema_rs

from omni_mcp.contracts.json import JsonObject, JsonValue, canonical, depth_of, json_path
from omni_mcp.engines.catalog.preflight import COST_LIMIT, INSTANCE_DEPTH_LIMIT, SUBSCHEMA_LIMIT, Preflight, preflight

MESSAGE_LIMIT = 300
PATH_LIMIT = 200
SCHEMA_LIMIT_BYTES = 1024 * 1024
WORK_LIMIT = 5_000_000  # values times subschemas that meet at one of them; about 0.1 s of the validator
MASK = "the value"  # stands in messages where the validator would repeat the value, which may be a secret

_Options = jsonschema_rs.RegexOptions | jsonschema_rs.FancyRegexOptions

# How patterns may be compiled, cheapest first, and the characters of text that a value may hold then. The worst found
# of each size (nested counts such as `(?:[ab]{0,320}){0,160}`) took 0.005, 0.07, 13 and 500 us a character; the limits
# keep a check under about half a second. The last one is for look-around and back references: 1,000 steps back
# over 20,000 characters took 58 ms.
_TIERS: tuple[tuple[_Options, int], ...] = (
    (jsonschema_rs.RegexOptions(size_limit=16 * 1024), 16_000_000),
    (jsonschema_rs.RegexOptions(size_limit=64 * 1024), 2_000_000),
    (jsonschema_rs.RegexOptions(size_limit=1024 * 1024), 16_000),
    (jsonschema_rs.RegexOptions(size_limit=8 * 1024 * 1024), 1_000),
    (jsonschema_rs.FancyRegexOptions(backtrack_limit=1_000, size_limit=64 * 1024), 64_000),
)
_FREE_PATTERNS = 8  # a schema with more of them gets less text, in proportion


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A schema that was compiled once, or the reasons why it never will be. `text_limit` is in characters."""

    validator: jsonschema_rs.Validator | None
    bound: Preflight
    refusals: tuple[str, ...] = ()
    text_limit: int | None = None


class JsonSchemas:
    """Port `Schemas`. Compiles each schema once and keeps the *keep* used last; safe to use from several threads."""

    def __init__(self, *, keep: int = 1024) -> None:
        self._keep = keep
        self._compiled: OrderedDict[bytes, _Compiled] = OrderedDict()
        self._by_object: dict[int, tuple[JsonObject, _Compiled]] = {}  # by the very object: a schema never changes
        self._lock = Lock()

    def problems(self, schema: JsonObject, value: JsonValue, *, limit: int = 5) -> list[str]:
        """Return up to *limit* faults as `$.path: message`; nothing if *value* fits.

        A schema that is itself refused fits nothing: its reasons are the faults. Messages name places, keywords and
        property names, never values, and are at most `MESSAGE_LIMIT` characters long.
        """
        compiled = self._get(schema)
        if compiled.validator is None:
            return [
                f"$: the tool's schema is refused: {reason}"[:MESSAGE_LIMIT] for reason in compiled.refusals[:limit]
            ]
        too_dear = _too_dear(compiled, value)
        if too_dear:
            return [f"$: {too_dear}"]
        try:
            if compiled.validator.is_valid(value):
                return []
            errors: Iterator[jsonschema_rs.ValidationError] = compiled.validator.iter_errors(value)
            return [_say(error) for error in islice(errors, limit)] or ["$: does not fit the schema"]
        except (ValueError, OverflowError, RecursionError) as error:
            return [f"$: cannot be checked: {error}"[:MESSAGE_LIMIT]]

    def refusals(self, schema: JsonObject) -> list[str]:
        """Return why *schema* itself may not be used, as `$.path: message`; nothing if it may."""
        return list(self._get(schema).refusals)

    def _get(self, schema: JsonObject) -> _Compiled:
        known = self._by_object.get(id(schema))
        if known is not None and known[0] is schema:
            return known[1]
        found = self._find(schema)
        if len(self._by_object) >= self._keep:
            self._by_object.clear()
        self._by_object[id(schema)] = schema, found
        return found

    def _find(self, schema: JsonObject) -> _Compiled:
        try:
            data = canonical(schema)
        except TypeError as error:
            return _refused(f"$: is not JSON: {error}")
        if len(data) > SCHEMA_LIMIT_BYTES:
            return _refused(f"$: is larger than {SCHEMA_LIMIT_BYTES} bytes")
        key = hashlib.sha256(data).digest()
        with self._lock:
            found = self._compiled.get(key)
            if found is not None:
                self._compiled.move_to_end(key)
                return found
        made = _compile(schema, patterns=data.count(b'"pattern'))
        with self._lock:
            self._compiled[key] = made
            while len(self._compiled) > self._keep:
                self._compiled.popitem(last=False)
        return made


def _refused(reason: str) -> _Compiled:
    return _Compiled(validator=None, bound=Preflight(problems=()), refusals=(reason,))


def _refuse_to_fetch(uri: str) -> JsonValue:
    """The retriever: nothing outside the schema is ever read."""
    raise ValueError("references outside the schema are not followed")


def _compile(schema: JsonObject, *, patterns: int) -> _Compiled:
    bound = preflight(schema)
    if bound.problems:
        return _Compiled(validator=None, bound=bound, refusals=tuple(bound.messages()))
    refusal = ""
    for options, text_limit in _TIERS:
        try:
            validator = jsonschema_rs.validator_for(
                schema, retriever=_refuse_to_fetch, mask=MASK, pattern_options=options
            )
        except jsonschema_rs.ValidationError as error:
            refusal = _say(error, whole=False)
        except (ValueError, jsonschema_rs.ReferencingError) as error:
            refusal = f"$: {error}"[:MESSAGE_LIMIT]
        else:
            room = text_limit * _FREE_PATTERNS // max(patterns, _FREE_PATTERNS) if patterns else None
            return _Compiled(validator=validator, bound=bound, text_limit=room)
        if not patterns:
            break
    return _refused(refusal)


def _say(error: jsonschema_rs.ValidationError, *, whole: bool = True) -> str:
    """Write one fault. Without *whole* only the keyword is named: the message would repeat the schema's own text."""
    place = json_path([part if isinstance(part, int) else str(part) for part in error.instance_path])
    text = error.message if whole else f"breaks the rule {error.kind.name!r} of JSON Schema"
    return f"{place[:PATH_LIMIT]}: {text}"[:MESSAGE_LIMIT]


def _too_dear(compiled: _Compiled, value: JsonValue) -> str | None:
    """Say why checking *value* would cost too much, or None. Ordinary schemas are cheap for every value."""
    if compiled.text_limit is not None and not _smaller_than(value, compiled.text_limit, text=True):
        return f"holds more than {compiled.text_limit} characters, too many for the patterns of this schema"
    if max(compiled.bound.cost) <= SUBSCHEMA_LIMIT:
        return None
    depth = depth_of(value, limit=INSTANCE_DEPTH_LIMIT)
    cost = compiled.bound.cost_at(depth)
    if depth > INSTANCE_DEPTH_LIMIT or cost > COST_LIMIT or not _smaller_than(value, WORK_LIMIT // cost):
        return f"nested {depth} deep, it would take too long to check against this schema"
    return None


def _smaller_than(value: JsonValue, limit: int, *, text: bool = False) -> bool:
    """Whether *value* holds at most *limit* values, with *text* counting their characters too; stops looking then."""
    layer: list[JsonValue] = [value]
    size = 0
    while layer and size <= limit:
        inner: list[JsonValue] = []
        for item in layer:
            size += 1
            if isinstance(item, Mapping):
                inner.extend(item.values())
                size += sum(map(len, item)) if text else 0
            elif isinstance(item, Sequence) and not isinstance(item, str | bytes):
                inner.extend(item)
            elif text and isinstance(item, str):
                size += len(item)
        layer = inner
    return size <= limit
