"""The OpenAPI 3.1 document, made from the table of routes and the shapes that it names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from omni_mcp.contracts.api import ProblemShown
from omni_mcp.contracts.json import JsonObject
from omni_mcp.serving.api.multipart import FIELD
from omni_mcp.serving.api.routes import BYTES, EVENTS, JSON, ApiRoute

REF = "#/components/schemas/{model}"
_ABOUT = (
    "What an agent or a person asks of the gateway without speaking MCP. The same rules hold as on every other way in. "
    'Every answer carries `X-Request-ID`; times are ISO 8601 in UTC; errors are `{"detail", "code"}`; a list is a '
    "page whose `next` goes back as `cursor`."
)


def document(routes: Sequence[ApiRoute], *, version: str) -> JsonObject:
    """Return the document that describes *routes*."""
    schemas = _schemas(routes)
    paths: JsonObject = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {"title": "omni-mcp", "version": version, "description": _ABOUT},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        "security": [{"bearer": []}, {"key": []}],
    }


def _schemas(routes: Sequence[ApiRoute]) -> JsonObject:
    """Return every shape by its name. A request is described as it is taken, an answer as it is sent."""
    used: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(ProblemShown, "serialization"): None}
    for route in routes:
        if route.answer is not None:
            used[route.answer, "serialization"] = None
        if (body := route.shape) is not None:
            used[body, "validation"] = None
    _, found = models_json_schema(list(used), ref_template=REF)
    schemas: JsonObject = found["$defs"]
    return schemas


def _operation(route: ApiRoute, schemas: JsonObject) -> JsonObject:
    answers: JsonObject = {str(route.status): _answer(route)}
    answers["default"] = {
        "description": "What is wrong.",
        "content": {JSON: {"schema": {"$ref": REF.format(model=ProblemShown.__name__)}}},
    }
    found: JsonObject = {
        "operationId": route.operation,
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": [*_path_parameters(route), *_query_parameters(route)],
        "responses": answers,
    }
    if route.like is not None:
        found["x-decided-like"] = f"{route.like[1]} {route.like[2]}"
    if route.body is bytes:
        found["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _upload_schema()}}}
    elif (body := route.shape) is not None:
        found["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": {"$ref": REF.format(model=body.__name__)}}},
        }
    return found


def _answer(route: ApiRoute) -> JsonObject:
    headers = {"X-Request-ID": {"schema": {"type": "string", "format": "uuid"}}}
    found: JsonObject = {"description": route.summary, "headers": headers}
    if route.media == BYTES:
        found["content"] = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
    elif route.answer is not None:
        shape = {"$ref": REF.format(model=route.answer.__name__)}
        if route.media == EVENTS:
            found["description"] = "Events; each `data` is one of these, and each `id` a place to come back to."
        found["content"] = {route.media: {"schema": shape}}
    return found


def _path_parameters(route: ApiRoute) -> list[JsonObject]:
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in route.names]


def _query_parameters(route: ApiRoute) -> list[JsonObject]:
    schema: dict[str, Any] = route.query.model_json_schema()
    required = schema.get("required", [])
    found: list[JsonObject] = [
        {"name": name, "in": "query", "required": name in required, "schema": _without_null(one)}
        for name, one in schema.get("properties", {}).items()
    ]
    if route.media == EVENTS:
        found.append({"name": "Last-Event-ID", "in": "header", "required": False, "schema": {"type": "string"}})
    return found


def _without_null(schema: JsonObject) -> JsonObject:
    """A parameter that is not there is left out, and never null."""
    kinds = schema.get("anyOf")
    if not isinstance(kinds, list):
        return schema
    kept = [one for one in kinds if one != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**rest, **kept[0]} if len(kept) == 1 else {**rest, "anyOf": kept}


def _upload_schema() -> JsonObject:
    return {
        "type": "object",
        "properties": {FIELD: {"type": "string", "contentMediaType": BYTES}},
        "required": [FIELD],
        "additionalProperties": False,
    }
