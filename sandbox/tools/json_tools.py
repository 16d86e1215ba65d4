"""The json tools: query a document with JSONPath, check one against a JSON Schema."""

from __future__ import annotations

import importlib

import jsonpath
from failure import ToolFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def json_query(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what a JSONPath query selects of the given document."""
    return query(arguments["document"], arguments["query"], arguments.get("limit", 100))


def query(document: Any, path: str, limit: int) -> dict[str, Any]:
    """Return the matches of *path* with their normalized paths."""
    found, more = jsonpath.select(document, path, limit=limit)
    return {
        "matches": [{"path": where, "value": value} for where, value in found],
        "count": len(found),
        "truncated": more,
    }


def json_validate(arguments: dict[str, Any]) -> dict[str, Any]:
    """Check a document against a schema of any draft; nothing is fetched.

    The validator is a distribution that the manifest asks for (`binding.packages`); the gateway mounts it.
    """
    rules = importlib.import_module("jsonschema_rs")
    schema, document, limit = arguments["schema"], arguments["document"], arguments.get("limit", 20)
    try:
        validator = rules.validator_for(schema, retriever=_refuse, validate_formats=True)
        errors = [
            {"path": _path(error.instance_path), "message": str(error.message)[:500]}
            for _, error in zip(range(limit + 1), validator.iter_errors(document), strict=False)
        ]
    except (rules.ValidationError, rules.ReferencingError, ValueError) as error:
        raise ToolFailure(f"the schema cannot be used: {str(error).splitlines()[0][:500]}") from error
    return {"valid": not errors, "errors": errors[:limit], "truncated": len(errors) > limit}


def _refuse(uri: str) -> Any:
    raise ValueError("references outside the schema are not followed")


def _path(parts: list[str | int]) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f"[{part!r}]" for part in parts)
