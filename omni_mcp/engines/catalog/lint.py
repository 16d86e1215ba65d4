"""Lints the JSON Schemas of a manifest: 2020-12, bounded, an object at the root, and every fault with its line."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from itertools import islice

import jsonschema_rs

from omni_mcp.contracts.errors import Problem
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.engines.catalog.documents import Document, Place
from omni_mcp.engines.catalog.preflight import DIALECT, preflight

FAULT_LIMIT = 200  # before those that name the same place are taken together


def lint_schema(document: Document, place: Place, *, needs_object: bool) -> Iterator[Problem]:
    """Yield every fault of the schema that stands at *place* of *document*."""
    schema = document.value
    for step in place:
        schema = schema[step]
    faults = list(_malformed(schema))
    if needs_object and schema.get("type") != "object":
        faults.append((("type",), "the root of the schema must say type: object"))
    faults.extend(preflight(schema, dialects=frozenset({DIALECT})).problems)
    seen: set[Place] = set()
    for where, message in faults:
        if where not in seen:  # one fault is found by several rules of the meta-schema
            seen.add(where)
            yield document.problem((*place, *where), message)


def _malformed(schema: JsonObject) -> Iterator[tuple[Place, str]]:
    """Yield where *schema* breaks the rules of JSON Schema 2020-12 itself.

    The fast validator answers yes or no; the slow one, 64 ms to import, is only needed for the places of a no.
    """
    if jsonschema_rs.meta.is_valid({**schema, "$schema": DIALECT}):
        return
    validators = importlib.import_module("jsonschema.validators")
    checker = validators.Draft202012Validator(validators.Draft202012Validator.META_SCHEMA)
    nothing = True
    for error in islice(checker.iter_errors(schema), FAULT_LIMIT):
        nothing = False
        best = _deepest(error)
        yield tuple(best.absolute_path), f"is not valid JSON Schema: {best.message[:200]}"
    if nothing:
        yield (), "is not valid JSON Schema 2020-12"  # a pattern that is no regular expression, for one


def _deepest(error: JsonValue) -> JsonValue:
    """Return the innermost cause: the meta-schema is a tree of `allOf`, whose own message says nothing."""
    while error.context:
        error = max(error.context, key=lambda inner: len(inner.absolute_path))
    return error
