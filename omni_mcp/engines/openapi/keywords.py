"""The keywords of JSON Schema that a tool's schema keeps: which hold schemas, and what the others may hold."""

from __future__ import annotations

from collections.abc import Callable

from omni_mcp.contracts.json import JsonValue

TYPES = frozenset({"null", "boolean", "object", "array", "number", "string", "integer"})
ONE = frozenset(
    {
        "items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedItems",
        "unevaluatedProperties",
    }
)  # fmt: skip
LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
MAPS = frozenset({"properties", "patternProperties", "dependentSchemas"})


def _is_number(value: JsonValue) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: JsonValue) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_text(value: JsonValue) -> bool:
    return isinstance(value, str)


def _is_words(value: JsonValue) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_number_or_flag(value: JsonValue) -> bool:
    return isinstance(value, int | float)


def _is_flag(value: JsonValue) -> bool:
    return isinstance(value, bool)


def _is_list(value: JsonValue) -> bool:
    return isinstance(value, list)


def _is_map_of_words(value: JsonValue) -> bool:
    return isinstance(value, dict) and all(map(_is_words, value.values()))


def _is_anything(value: JsonValue) -> bool:
    return True


KEPT: dict[str, Callable[[JsonValue], bool]] = {
    **dict.fromkeys(("multipleOf", "maximum", "minimum"), _is_number),
    **dict.fromkeys(("exclusiveMaximum", "exclusiveMinimum"), _is_number_or_flag),
    **dict.fromkeys(("maxLength", "minLength", "maxItems", "minItems", "maxContains", "minContains"), _is_count),
    **dict.fromkeys(("maxProperties", "minProperties"), _is_count),
    **dict.fromkeys(("pattern", "format", "contentEncoding", "contentMediaType"), _is_text),
    **dict.fromkeys(("uniqueItems", "deprecated"), _is_flag),
    **dict.fromkeys(("const", "default"), _is_anything),
    "enum": _is_list,
    "required": _is_words,
    "dependentRequired": _is_map_of_words,
}
