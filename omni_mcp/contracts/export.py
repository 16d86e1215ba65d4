"""The contracts as JSON Schema 2020-12: what is recorded, what is read, and what a person is asked.

Every schema is closed and stands alone. A RunEvent has one schema per kind, and one per code of `system_event`.
"""

from __future__ import annotations

from pydantic import BaseModel

from omni_mcp.contracts.approval import Approval, StandingGrant
from omni_mcp.contracts.artifact import ArtifactRef
from omni_mcp.contracts.errors import CATALOGUE, NotFound
from omni_mcp.contracts.events import CODES, CONTRACT_VERSION, PAYLOADS, RunEvent
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import ToolManifest

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_PLAIN: dict[str, type[BaseModel]] = {
    "ToolManifest": ToolManifest, "ArtifactRef": ArtifactRef, "Approval": Approval, "StandingGrant": StandingGrant,
}  # fmt: skip


def contract_names() -> list[str]:
    """Return the names of all contracts, such as `RunEvent.tool_call`, in a fixed order."""
    return ["RunEvent", *_event_names(), *_PLAIN, "Policy"]


def _event_names() -> list[str]:
    return [f"RunEvent.{kind}" for kind in PAYLOADS] + [f"RunEvent.system_event.{code}" for code in CODES]


def describe(name: str) -> str:
    """Return the first sentence about a contract."""
    if name == "Policy":
        return "The text of a Cedar policy file."
    parts = name.split(".")
    if len(parts) > 1:
        return _first_line(CODES[parts[2]] if len(parts) == 3 else PAYLOADS[parts[1]])
    return _first_line(_PLAIN.get(name, RunEvent))


def export(name: str, *, cedar_schema: str) -> JsonObject:
    """Return the JSON Schema of one contract.

    Args:
        cedar_schema: the text of the Cedar schema in force. Policies are Cedar and not JSON, so the schema of `Policy`
            says only that it is text, and carries what that text may name.

    Raises:
        NotFound: there is no contract of that name.
    """
    if name == "Policy":
        return _head(name) | {
            "type": "string",
            "description": "Cedar text. JSON Schema cannot check it: `omni-mcp policy check` does, against the Cedar "
            "schema given here as `x-cedar-schema`.",
            "contentMediaType": "text/plain",
            "x-cedar-schema": cedar_schema,
        }
    if name in _PLAIN:
        return _head(name) | _PLAIN[name].model_json_schema()
    if name == "RunEvent":
        alternatives = [{"$ref": f"#/$defs/{event}"} for event in _event_names()]
        return _head(name) | {"title": name, "description": describe(name), "oneOf": alternatives} | _all_events()
    if name in _event_names():
        _, kind, *code = name.split(".")
        return _head(name) | _event(kind, code[0] if code else None)
    raise NotFound(f"no contract {name!r}; see: omni-mcp contracts list")


def export_errors() -> list[JsonObject]:
    """Return the failure catalogue, in the order in which it is written."""
    return [
        {
            "code": entry.code,
            "category": entry.category,
            "retry": entry.retry,
            "http_status": entry.http_status,
            "meaning": entry.meaning,
            "recovery": entry.recovery,
        }
        for entry in CATALOGUE.values()
    ]


def _head(name: str) -> JsonObject:
    return {"$schema": DIALECT, "$id": f"urn:omni-mcp:contract:{CONTRACT_VERSION}:{name}"}


def _event(kind: str, code: str | None) -> JsonObject:
    """Return the envelope with the payload of one kind or code in it; `payload` is null once it is erased."""
    model = CODES[code] if code is not None else PAYLOADS[kind]
    schema = RunEvent.model_json_schema()
    payload = model.model_json_schema()
    definitions = {**schema.pop("$defs", {}), **payload.pop("$defs", {}), model.__name__: payload}
    schema["properties"]["kind"] = {"const": kind}
    schema["properties"]["code"] = {"const": code}
    schema["properties"]["payload"] = {"anyOf": [{"$ref": f"#/$defs/{model.__name__}"}, {"type": "null"}]}
    schema["required"] = sorted({*schema["required"], "kind", *(["code"] if code is not None else [])})
    return schema | {"description": _first_line(model), "$defs": definitions}


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _all_events() -> JsonObject:
    definitions: JsonObject = {}
    for name in _event_names():
        _, kind, *code = name.split(".")
        schema = _event(kind, code[0] if code else None)
        definitions.update(schema.pop("$defs"))
        definitions[name] = schema
    return {"$defs": definitions}
