"""SchemaBook: the schemas of a document as JSON Schema 2020-12, each tool's with all that it refers to and no more.

References stay references, so a circle of schemas is no endless text. What a gateway cannot check in bounded time is
loosened step by step: the interface itself still checks what it is sent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Literal

import orjson

from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.engines.openapi.document import Document, Fault
from omni_mcp.engines.openapi.reader import Place
from omni_mcp.engines.openapi.texts import plain_text

SIZE_LIMIT_BYTES = 128 * 1024  # of one tool's schema: a model reads it
EXAMPLE_CHARACTERS = 200
DESCRIPTION_CHARACTERS = 1_000

Direction = Literal["request", "response"]
Refusals = Callable[[JsonObject], list[str]]

_TYPES = frozenset({"null", "boolean", "object", "array", "number", "string", "integer"})
_ONE = frozenset(
    {
        "items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedItems",
        "unevaluatedProperties",
    }
)  # fmt: skip
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAPS = frozenset({"properties", "patternProperties", "dependentSchemas"})
_KEPT = frozenset(
    {
        "enum", "const", "multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum", "maxLength",
        "minLength", "pattern", "maxItems", "minItems", "uniqueItems", "maxContains", "minContains", "maxProperties",
        "minProperties", "required", "dependentRequired", "default", "format", "contentEncoding", "contentMediaType",
        "deprecated",
    }
)  # fmt: skip
_DEFS = "#/$defs/"
_CUTS = (6, 4, 2, 1)


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
            if found is None or self._document.version == "3.0":
                return {} if found is None else {"$ref": found}
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
            lambda: whole,
            lambda: _without(whole, frozenset({"pattern", "patternProperties"})),
            *(lambda depth=depth: _cut(whole, whole.get("$defs", {}), depth) for depth in _CUTS),
        ):
            found = candidate()
            if len(orjson.dumps(found)) <= SIZE_LIMIT_BYTES and not self._refusals(found):
                return found
        return {"type": "object"}

    def _reference(self, schema: JsonObject, place: Place, direction: Direction) -> str | None:
        """Return the reference that stands for a `$ref`; None where a chain of them leads back to itself."""
        target, goal = self._document.follow(schema["$ref"], (*place, "$ref"))
        seen = {goal}
        while isinstance(target, dict) and set(target) & {"$ref"} and len(target) == 1:
            target, goal = self._document.follow(target["$ref"], (*goal, "$ref"))
            if goal in seen:
                return None
            seen.add(goal)
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
            if key in _ONE:
                found[key] = self.convert(value, here, direction)
            elif key in _LISTS:
                if not isinstance(value, list):
                    raise Fault(here, "must be a list of schemas")
                if value:
                    found[key] = [self.convert(one, (*here, n), direction) for n, one in enumerate(value)]
            elif key in _MAPS:
                if not isinstance(value, dict):
                    raise Fault(here, "must be a mapping of schemas")
                found[key] = {name: self.convert(one, (*here, name), direction) for name, one in value.items()}
            elif key == "type":
                found[key] = _checked_type(value, here)
            elif key in _KEPT:
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
        if not isinstance(name, str) or name not in _TYPES:
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
        if isinstance(schema.get(exclusive), bool):
            if schema.pop(exclusive) and inclusive in schema:
                schema[exclusive] = schema.pop(inclusive)
    return schema


def _references(schema: JsonValue) -> set[str]:
    """Return the names of the definitions that *schema* refers to itself."""
    found: set[str] = set()
    todo: list[JsonValue] = [schema]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            target = value.get("$ref")
            if isinstance(target, str) and target.startswith(_DEFS):
                found.add(target.removeprefix(_DEFS))
            todo.extend(inner for key, inner in value.items() if key not in ("enum", "const", "default", "examples"))
        elif isinstance(value, list):
            todo.extend(value)
    return found


def _without(schema: JsonValue, keywords: frozenset[str]) -> JsonValue:
    """Return *schema* without some keywords; properties of the same names stay."""
    if isinstance(schema, list):
        return [_without(one, keywords) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found: JsonObject = {}
    for key, value in schema.items():
        if key in _MAPS or key == "$defs":
            if key not in keywords:
                found[key] = {name: _without(one, keywords) for name, one in value.items()}
        elif key in _ONE or key in _LISTS:
            found[key] = _without(value, keywords)
        elif key not in keywords:
            found[key] = value
    return found


def _cut(schema: JsonValue, definitions: JsonObject, depth: int) -> JsonValue:
    """Return *schema* with its references written out, and anything below *depth* levels left open."""
    if not isinstance(schema, dict):
        return schema
    if depth < 0:
        return {}
    found: JsonObject = {}
    for key, value in schema.items():
        if key == "$ref":
            target = definitions[value.removeprefix(_DEFS)]
            written = _cut(target, definitions, depth - 1)
            found |= written if isinstance(written, dict) else {}
        elif key in ("$defs", "pattern", "patternProperties"):
            continue
        elif key in _MAPS:
            found[key] = {name: _cut(one, definitions, depth - 1) for name, one in value.items()}
        elif key in _LISTS:
            found[key] = [_cut(one, definitions, depth - 1) for one in value]
        elif key in _ONE:
            found[key] = _cut(value, definitions, depth - 1)
        else:
            found[key] = value
    return found
