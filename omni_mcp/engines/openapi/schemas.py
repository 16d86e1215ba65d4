"""SchemaBook: the schemas of a document as JSON Schema 2020-12, each tool's with all that it refers to and no more.

References stay references, so a circle of schemas is no endless text. What a gateway cannot check in bounded time is
loosened step by step: the interface itself still checks what it is sent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import partial
from typing import Literal

import orjson

from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.engines.openapi.document import Document, Fault
from omni_mcp.engines.openapi.keywords import KEPT, LISTS, MAPS, ONE, TYPES
from omni_mcp.engines.openapi.reader import Place
from omni_mcp.engines.openapi.texts import plain_text

SIZE_LIMIT_BYTES = 128 * 1024  # of one tool's schema: a model reads it
EXAMPLE_CHARACTERS = 200
DESCRIPTION_CHARACTERS = 1_000

Direction = Literal["request", "response"]
Refusals = Callable[[JsonObject], list[str]]

_DEFS = "#/$defs/"
_CUTS = (6, 4, 2, 1)
_CUT_LIMIT = 1_500  # subschemas that are written out; fewer than may be checked
_PATTERNS = frozenset({"pattern", "patternProperties"})


class SchemaBook:
    """Converts the schemas of one document.

    Args:
        document: whose schemas.
        refusals: why a schema may not be used for checking; nothing if it may.
    """

    def __init__(self, document: Document, refusals: Refusals) -> None:
        self._document = document
        self._refusals = refusals
        self._waiting: dict[tuple[Direction, str], tuple[JsonValue, Place]] = {}
        self._definitions: dict[tuple[Direction, str], JsonObject | bool] = {}

    def convert(self, schema: JsonValue, place: Place, direction: Direction) -> JsonObject | bool:
        """Return one schema, its references pointing to `#/$defs/`; `complete` adds those.

        Raises:
            Fault: it is no schema, or refers to something that is not there.
        """
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise Fault(place, "must be a schema")
        if "$ref" in schema:
            found = self._reference(schema, place, direction)
            if self._document.version == "3.0":
                return {"$ref": found}
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            return {"$ref": found, **self._members(rest, place, direction)}
        converted = self._members(schema, place, direction)
        return self._with_null(schema, converted) if self._document.version == "3.0" else converted

    def complete(self, schema: JsonObject, direction: Direction) -> JsonObject:
        """Return *schema* with all it refers to, loosened until it may be used for checking.

        Raises:
            Fault: something that it refers to is no schema.
        """
        whole = self._with_definitions(schema, direction)
        for candidate in (
            partial(_without, whole, frozenset()),
            partial(_without, whole, _PATTERNS),
            *(partial(_cut, whole, depth) for depth in _CUTS),
        ):
            found: JsonObject = candidate()
            if len(orjson.dumps(found)) <= SIZE_LIMIT_BYTES and not self._refusals(found):
                return found
        return {"type": "object"}

    def _reference(self, schema: JsonObject, place: Place, direction: Direction) -> str:
        """Return the reference that stands for a `$ref`."""
        target, goal = self._document.follow(schema["$ref"], (*place, "$ref"))
        name = _definition_name(goal)
        self._waiting.setdefault((direction, name), (target, goal))  # later: what it holds may lead back here
        return _DEFS + name

    def _definition(self, direction: Direction, name: str) -> JsonObject | bool:
        found = self._definitions.get((direction, name))
        if found is None:
            found = self._definitions[direction, name] = self.convert(*self._waiting[direction, name], direction)
        return found

    def _members(self, schema: JsonObject, place: Place, direction: Direction) -> JsonObject:
        found: JsonObject = {}
        for key, value in schema.items():
            here = (*place, key)
            if key in ONE:
                found[key] = self.convert(value, here, direction)
            elif key in LISTS:
                if not isinstance(value, list):
                    raise Fault(here, "must be a list of schemas")
                if value:
                    found[key] = [self.convert(one, (*here, n), direction) for n, one in enumerate(value)]
            elif key in MAPS:
                if not isinstance(value, dict):
                    raise Fault(here, "must be a mapping of schemas")
                found[key] = {name: self.convert(one, (*here, name), direction) for name, one in value.items()}
            elif key == "type":
                found[key] = _checked_type(value, here)
            elif key in KEPT and not (key == "required" and isinstance(value, bool)):  # a slip from version 2.0
                if not KEPT[key](value):
                    raise Fault(here, "is not what a JSON Schema may hold here")
                found[key] = value
        self._leave_one_way(schema, found, place, direction)
        _say(schema, found)
        return _with_numbers(found)

    def _leave_one_way(self, schema: JsonObject, found: JsonObject, place: Place, direction: Direction) -> None:
        """What only an answer holds is not sent; what is only sent need not be in an answer."""
        mark = "readOnly" if direction == "request" else "writeOnly"
        marked = {
            name
            for name, one in (schema.get("properties") or {}).items()
            if self._is_marked(one, (*place, "properties", name), mark)
        }
        if not marked:
            return
        if isinstance(found.get("required"), list):
            found["required"] = [name for name in found["required"] if name not in marked]
        if direction == "request":
            found["properties"] = {name: one for name, one in found["properties"].items() if name not in marked}

    def _is_marked(self, schema: JsonValue, place: Place, mark: str) -> bool:
        if isinstance(schema, dict) and "$ref" in schema and mark not in schema:
            try:
                schema, _ = self._document.resolve(schema, place)
            except Fault:
                return False
        return isinstance(schema, dict) and schema.get(mark) is True

    def _with_null(self, schema: JsonObject, converted: JsonObject) -> JsonObject:
        """`nullable` of 3.0. Without a type it has no effect by the letter, and nobody who writes it means that."""
        if schema.get("nullable") is not True:
            return converted
        if isinstance(converted.get("enum"), list) and None not in converted["enum"]:
            converted["enum"] = [*converted["enum"], None]
        if isinstance(converted.get("type"), str):
            converted["type"] = [converted["type"], "null"]
            return converted
        return {"anyOf": [converted, {"type": "null"}]} if converted else converted

    def _with_definitions(self, schema: JsonObject, direction: Direction) -> JsonObject:
        found: dict[str, JsonObject | bool] = {}
        todo = _references(schema)
        while todo:
            name = todo.pop()
            if name not in found:
                found[name] = self._definition(direction, name)
                todo |= _references(found[name])
        return {**schema, "$defs": {name: found[name] for name in sorted(found)}} if found else schema


def _definition_name(goal: Place) -> str:
    """Return a name that follows from where a schema stands and from nothing else."""
    text = str(goal[-1]) if goal else "document"
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:48]
    if name == text and len(goal) == 3 and goal[:2] == ("components", "schemas"):
        return name
    return f"{name}.{hashlib.sha256(orjson.dumps(list(goal))).hexdigest()[:8]}"


def _checked_type(value: JsonValue, place: Place) -> JsonValue:
    names = value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str) or name not in TYPES:
            raise Fault(place, f"{str(name)[:40]!r} is no type of JSON Schema")
    return value


def _say(schema: JsonObject, found: JsonObject) -> None:
    """Titles, descriptions and one small example, without characters that show nothing."""
    for key, most in (("title", 200), ("description", DESCRIPTION_CHARACTERS)):
        if isinstance(schema.get(key), str) and schema[key].strip():
            found[key] = plain_text(schema[key], most)
    examples = [schema["example"]] if "example" in schema else schema.get("examples")
    if isinstance(examples, list) and examples and len(orjson.dumps(examples[0])) <= EXAMPLE_CHARACTERS:
        found["examples"] = examples[:1]


def _with_numbers(schema: JsonObject) -> JsonObject:
    """`exclusiveMinimum: true` of 3.0 becomes the number that it excludes."""
    for exclusive, inclusive in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(exclusive), bool) and schema.pop(exclusive) and inclusive in schema:
            schema[exclusive] = schema.pop(inclusive)
    return schema


def _references(schema: JsonValue) -> set[str]:
    """Return the names of the definitions that *schema* refers to itself. Its data may look like references."""
    found: set[str] = set()
    todo: list[JsonValue] = [schema]
    while todo:
        value = todo.pop()
        if not isinstance(value, dict):
            continue
        if "$ref" in value:
            found.add(value["$ref"].removeprefix(_DEFS))
        for key, inner in value.items():
            if key in ONE:
                todo.append(inner)
            elif key in LISTS:
                todo.extend(inner)
            elif key in MAPS:
                todo.extend(inner.values())
    return found


def _without(schema: JsonValue, keywords: frozenset[str]) -> JsonValue:
    """Return *schema* without some keywords; properties of the same names stay."""
    if isinstance(schema, list):
        return [_without(one, keywords) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found: JsonObject = {}
    for key, value in schema.items():
        if key in MAPS or key == "$defs":
            if key not in keywords:
                found[key] = {name: _without(one, keywords) for name, one in value.items()}
        elif key in ONE or key in LISTS:
            found[key] = _without(value, keywords)
        elif key not in keywords:
            found[key] = value
    return found


def _cut(schema: JsonObject, depth: int) -> JsonObject:
    """Return *schema* with its references written out, and anything below *depth* levels left open."""
    found: JsonObject = _Cutting(schema.get("$defs", {})).cut(schema, depth)
    return found


class _Cutting:
    def __init__(self, definitions: JsonObject) -> None:
        self._definitions = definitions
        self._left = _CUT_LIMIT

    def cut(self, schema: JsonValue, depth: int) -> JsonValue:
        if not isinstance(schema, dict):
            return schema
        self._left -= 1
        if depth < 0 or self._left < 0:
            return {}
        found: JsonObject = {}
        for key, value in schema.items():
            if key == "$ref":
                written = self.cut(self._definitions[value.removeprefix(_DEFS)], depth - 1)
                found |= written if isinstance(written, dict) else {}
            elif key in MAPS and key not in _PATTERNS:
                found[key] = {name: self.cut(one, depth - 1) for name, one in value.items()}
            elif key in LISTS:
                found[key] = [self.cut(one, depth - 1) for one in value]
            elif key in ONE:
                found[key] = self.cut(value, depth - 1)
            elif key not in _PATTERNS and key != "$defs":
                found[key] = value
        return found
