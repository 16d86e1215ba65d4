"""Change: one place in which two definitions differ, named by what it means where a JSON Schema says it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from omni_mcp.contracts.json import JsonObject, JsonValue, canonical, json_path
from omni_mcp.engines.catalog.difference_finding import Place

_MISSING = object()
_SCHEMAS = frozenset({"inputSchema", "outputSchema"})
_MAPS = frozenset({"properties", "$defs", "definitions", "patternProperties", "dependentSchemas"})
_INNER = frozenset(
    {"items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames", "unevaluatedProperties"}
)
_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_OPEN_UPWARD = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})
_OPEN_DOWNWARD = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
_RULES_OUT = frozenset({"pattern", "format", "const", "multipleOf", "not", "uniqueItems"})  # without it more fits
_PROSE = frozenset({"description", "title"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference. `widens` says that arguments fit which did not before, or that a promise was dropped.

    `before` and `after` are None where there was or is nothing; `added` are new sentences of a text.
    """

    kind: str
    path: str
    before: JsonValue = None
    after: JsonValue = None
    added: tuple[str, ...] = ()
    widens: bool = False

    def as_json(self) -> JsonObject:
        return {
            "kind": self.kind, "path": self.path, "before": self.before, "after": self.after,
            "added": list(self.added), "widens": self.widens,
        }  # fmt: skip


def changes_between(old: JsonObject, new: JsonObject) -> list[Change]:
    """Return every place in which the two differ, in order; the order of members is no difference."""
    return list(_objects(old, new, ()))


def same(one: object, other: object) -> bool:
    """Whether two JSON values are one; `1`, `1.0` and `true` are three."""
    return canonical(one) == canonical(other)


def sentences_added(old: str, new: str) -> tuple[str, ...]:
    """Return the sentences of *new* that *old* does not have."""
    known = set(_sentences(old))
    return tuple(sentence for sentence in _sentences(new) if sentence not in known)


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]


def _objects(old: JsonObject, new: JsonObject, place: Place) -> Iterator[Change]:
    """Members that are no schema: the definition itself, annotations, `_meta`."""
    for name, before, after in _members(old, new):
        here = (*place, name)
        both = isinstance(before, dict) and isinstance(after, dict)
        if name in _SCHEMAS and not place and both:
            yield from _schemas(before, after, here)
        elif both:
            yield from _objects(before, after, here)
        elif name.endswith("Hint"):
            yield _change("hint_flipped", here, before, after, widens=True)
        elif name in _PROSE:
            yield _text(here, before, after)
        else:
            yield _change(_plain_kind(before, after), here, before, after)


def _schemas(old: JsonObject, new: JsonObject, place: Place) -> Iterator[Change]:
    for name, before, after in _members(old, new):
        here = (*place, name)
        both = isinstance(before, dict) and isinstance(after, dict)
        if name in _MAPS and both:
            yield from _named(before, after, here, "parameter" if name == "properties" else "subschema")
        elif name in _MAPS:
            old_map, new_map = (value if isinstance(value, dict) else {} for value in (before, after))
            found = list(_named(old_map, new_map, here, "parameter"))
            yield from found or [_change("schema_changed", here, before, after)]
        elif name in _INNER and both:
            yield from _schemas(before, after, here)
        elif name in _LISTS and isinstance(before, list) and isinstance(after, list):
            yield from _alternatives(name, before, after, here)
        else:
            yield _keyword(name, here, before, after)


def _named(old: JsonObject, new: JsonObject, place: Place, what: str) -> Iterator[Change]:
    for name, before, after in _members(old, new):
        here = (*place, name)
        if before is _MISSING:
            yield _change(f"{what}_added", here, before, after, widens=True)
        elif after is _MISSING:
            yield _change(f"{what}_removed", here, before, after)
        elif isinstance(before, dict) and isinstance(after, dict):
            yield from _schemas(before, after, here)
        else:
            yield _change("schema_changed", here, before, after, widens=after is True)


def _alternatives(name: str, old: list[JsonValue], new: list[JsonValue], place: Place) -> Iterator[Change]:
    if len(old) == len(new) and all(isinstance(item, dict) for item in (*old, *new)):
        for number, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _schemas(before, after, (*place, number))
        return
    more = len(new) > len(old) if name in ("anyOf", "oneOf") else len(new) < len(old)
    yield _change("alternatives_changed", place, old, new, widens=more)


def _keyword(name: str, here: Place, before: object, after: object) -> Change:
    if name == "type":
        return _choices("type", here, before, after)
    if name == "enum":
        return _choices("enum", here, before, after)
    if name == "required":
        dropped = _words(before or []) - _words(after or [])
        kind = "required_dropped" if dropped else "required_added"
        return _change(kind, here, before, after, widens=bool(dropped))
    if name in ("additionalProperties", "unevaluatedProperties"):
        opened = before is not _MISSING and before is not True and (after is _MISSING or after is not False)
        return _change(
            "additional_properties_opened" if opened else "schema_changed", here, before, after, widens=opened
        )
    if name in _OPEN_UPWARD | _OPEN_DOWNWARD:
        loosened = _is_loosened(before, after, upward=name in _OPEN_UPWARD)
        return _change("limit_loosened" if loosened else "limit_tightened", here, before, after, widens=loosened)
    if name in _PROSE:
        return _text(here, before, after)
    if name in _RULES_OUT:
        return _change("schema_changed", here, before, after, widens=before is not _MISSING)
    return _change("schema_changed", here, before, after, widens=name in ("$ref", "default", "anyOf", "oneOf", "allOf"))


def _choices(what: str, here: Place, before: object, after: object) -> Change:
    """A closed set of choices; none at all is every choice."""
    widened = before is not _MISSING and (after is _MISSING or bool(_words(after) - _words(before)))
    return _change(f"{what}_widened" if widened else f"{what}_narrowed", here, before, after, widens=widened)


def _words(value: object) -> frozenset[bytes]:
    if value is _MISSING:
        return frozenset()
    items = value if isinstance(value, list) else [value]
    return frozenset(canonical(item) for item in items)


def _is_loosened(before: object, after: object, *, upward: bool) -> bool:
    if before is _MISSING or after is _MISSING:
        return after is _MISSING
    if isinstance(before, int | float) and isinstance(after, int | float):
        return after > before if upward else after < before
    return True


def _text(here: Place, before: object, after: object) -> Change:
    old, new = (value if isinstance(value, str) else "" for value in (before, after))
    return _change(f"{here[-1]}_changed", here, before, after, added=sentences_added(old, new))


def _plain_kind(before: object, after: object) -> str:
    return "field_added" if before is _MISSING else "field_removed" if after is _MISSING else "field_changed"


def _change(
    kind: str, place: Place, before: object, after: object, *, added: tuple[str, ...] = (), widens: bool = False
) -> Change:
    return Change(
        kind=kind, path=json_path(place), before=None if before is _MISSING else before,
        after=None if after is _MISSING else after, added=added, widens=widens,
    )  # fmt: skip


def _members(old: JsonObject, new: JsonObject) -> Iterator[tuple[str, JsonValue, JsonValue]]:
    """Yield (name, before, after) of what differs: removed and changed members, then added ones."""
    for name, before in old.items():
        after = new.get(name, _MISSING)
        if after is _MISSING or not same(before, after):
            yield name, before, after
    for name, after in new.items():
        if name not in old:
            yield name, _MISSING, after
