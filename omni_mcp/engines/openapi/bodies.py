"""Bodies: what an operation takes as its body, and the schemas of what it answers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.engines.openapi.document import Document, Fault, Operation
from omni_mcp.engines.openapi.reader import Place
from omni_mcp.engines.openapi.schemas import SchemaBook

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
_JSON = re.compile(r"application/(?:[a-z0-9.+-]+\+)?json|text/json", re.IGNORECASE)
_MEDIA = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+*-]+(?:;[ A-Za-z0-9=\"_.;/+-]*)?|\*/\*")
_BYTES: JsonObject = {"type": "string", "contentEncoding": "base64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The body of a request. `form` is how it is written; `parts` say it for the members of a form."""

    media: str
    form: str  # json, form, multipart, text or base64
    required: bool
    schema: JsonObject | bool
    parts: dict[str, JsonObject] = field(default_factory=dict)

    def plan(self, argument: str) -> JsonObject:
        """Return what the cell needs to write it."""
        return {"argument": argument, "media": self.media, "form": self.form, "parts": self.parts}


def read_body(document: Document, operation: Operation, book: SchemaBook) -> Body | None:
    """Return the body that *operation* takes, in the form that is easiest to write if it takes several.

    Raises:
        Fault: it cannot be understood.
    """
    if "requestBody" not in operation.value:
        return None
    value, place = document.resolve(operation.value["requestBody"], (*operation.place, "requestBody"))
    content = value.get("content")
    if not isinstance(content, dict) or not content:
        raise Fault((*place, "content"), "must name a media type")
    for media in content:
        if not _MEDIA.fullmatch(media):
            raise Fault((*place, "content", media), "is no media type")
    media = min(content, key=lambda name: (_ORDER.index(_form_of(name)), list(content).index(name)))
    facts, at = content[media], (*place, "content", media)
    if not isinstance(facts, dict):
        raise Fault(at, "must be a mapping")
    form = _form_of(media)
    schema: JsonObject | bool = book.convert(facts.get("schema", {}), (*at, "schema"), "request")
    parts: dict[str, JsonObject] = {}
    if form in ("form", "multipart"):
        parts, schema = _parts(document, facts, at, book)
    elif form == "base64":
        schema = {**_BYTES, "description": f"The body ({media}) as base64."}
    elif form == "text":
        schema = {**(schema if isinstance(schema, dict) and schema.get("type") == "string" else {}), "type": "string"}
    return Body(media=_concrete(media), form=form, required=value.get("required") is True, schema=schema, parts=parts)


_ORDER = ("json", "form", "multipart", "text", "base64")


def _form_of(media: str) -> str:
    kind = media.partition(";")[0].strip().lower()
    if _JSON.fullmatch(kind) or kind in ("*/*", "application/*"):
        return "json"
    if kind == FORM:
        return "form"
    if kind == MULTIPART:
        return "multipart"
    return "text" if kind.startswith("text/") or re.fullmatch(r"application/(.+\+)?(xml|yaml)", kind) else "base64"


def _concrete(media: str) -> str:
    if media in ("*/*", "application/*"):
        return "application/json"
    if media == "text/*":
        return "text/plain"
    return "application/octet-stream" if "*" in media else media


def _parts(
    document: Document, facts: JsonObject, place: Place, book: SchemaBook
) -> tuple[dict[str, JsonObject], JsonObject]:
    """Return how each member of a form is written, and the schema of the form with its bytes as base64.

    Raises:
        Fault: it is not described as an object.
    """
    source, at = document.resolve(facts.get("schema", {}), (*place, "schema"))
    if not isinstance(source.get("properties"), dict):
        raise Fault((*place, "schema"), "a form must be described as an object with properties")
    encodings = _mapping(facts.get("encoding"))
    found: dict[str, JsonObject] = {}
    converted = book.convert(source, at, "request")
    assert isinstance(converted, dict)
    properties = dict(converted["properties"])
    for name in converted["properties"]:
        member, _ = document.resolve(source["properties"][name], (*at, "properties", name))
        encoding = _mapping(encodings.get(name))
        media = str(encoding.get("contentType", "")).partition(",")[0].strip()
        found[name] = {
            "media": media if _MEDIA.fullmatch(media) and "*" not in media else "",
            "style": str(encoding.get("style", "form")),
            "explode": encoding.get("explode", True) is True,
            "bytes": _is_bytes(document, member, (*at, "properties", name)),
        }
        if found[name]["bytes"]:
            many = member.get("type") == "array"
            properties[name] = {"type": "array", "items": dict(_BYTES)} if many else dict(_BYTES)
    return found, {**converted, "properties": properties}


def _mapping(value: JsonValue) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _is_bytes(document: Document, member: JsonObject, place: Place) -> bool:
    if member.get("type") == "array" and "items" in member:
        member, _ = document.resolve(member["items"], (*place, "items"))
    if member.get("format") == "binary":
        return True
    return "contentMediaType" in member and not str(member["contentMediaType"]).startswith(
        ("text/", "application/json")
    )


def read_answer(document: Document, operation: Operation, book: SchemaBook) -> tuple[JsonObject | None, str]:
    """Return a schema that each JSON answer of success fits, None where one is not described, and what to ask for.

    Raises:
        Fault: a response cannot be understood.
    """
    responses = operation.value.get("responses", {})
    if not isinstance(responses, dict):
        raise Fault((*operation.place, "responses"), "must be a mapping")
    good = {code: one for code, one in responses.items() if re.fullmatch(r"2[0-9X]{2}", code)}
    schemas: list[JsonValue] = []
    media: list[str] = []
    described = True
    for code, one in good.items():
        value, place = document.resolve(one, (*operation.place, "responses", code))
        content = value.get("content") or {}
        if not isinstance(content, dict):
            raise Fault((*place, "content"), "must be a mapping")
        for name, facts in content.items():
            if not _MEDIA.fullmatch(name) or not isinstance(facts, dict):
                raise Fault((*place, "content", name), "is no media type with its schema")
            media.append(name.partition(";")[0].strip())
            if _form_of(name) == "json" and "schema" in facts:
                schemas.append(book.convert(facts["schema"], (*place, "content", name, "schema"), "response"))
            elif _form_of(name) == "json":
                described = False
    distinct = [one for n, one in enumerate(schemas) if one not in schemas[:n]]
    accept = ", ".join(dict.fromkeys(media[:8])) or "*/*"
    if not distinct or not described:
        return None, accept
    only = distinct[0] if isinstance(distinct[0], dict) else {}
    return (only if len(distinct) == 1 else {"anyOf": distinct}), accept
