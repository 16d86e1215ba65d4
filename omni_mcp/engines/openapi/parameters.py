"""Parameters of an operation: which argument of the tool becomes which part of the request, and how it is written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.openapi.document import Document, Fault, Operation
from omni_mcp.engines.openapi.reader import Place
from omni_mcp.engines.openapi.schemas import SchemaBook
from omni_mcp.engines.openapi.texts import plain_text

PARAMETER_LIMIT = 200
BODY_ARGUMENT = "body"

_STYLES = {
    "path": ("simple", "label", "matrix"),
    "query": ("form", "spaceDelimited", "pipeDelimited", "deepObject"),
    "header": ("simple",),
    "cookie": ("form",),
}  # the first one is the default
_IGNORED_HEADERS = frozenset({"accept", "content-type", "authorization"})  # OpenAPI 3.1.1, 4.8.12.1
_REFUSED_HEADERS = frozenset(
    {
        "host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect", "keep-alive",
        "cookie", "cookie2", "forwarded", "via", "x-real-ip", "x-original-url", "x-rewrite-url", "x-http-method",
        "x-http-method-override", "x-method-override", "http2-settings",
    }
)  # fmt: skip
_REFUSED_BEGINNINGS = ("proxy-", "x-forwarded-", "x-omni-", "sec-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter. `argument` is the tool's property for it; `media`, where set, is the type it is written as."""

    name: str
    where: str
    argument: str
    required: bool
    style: str
    explode: bool
    reserved: bool
    media: str
    schema: JsonObject | bool

    def plan(self) -> JsonObject:
        """Return what the cell needs to write it."""
        return {
            "name": self.name, "in": self.where, "argument": self.argument, "style": self.style,
            "explode": self.explode, "reserved": self.reserved, "media": self.media,
        }  # fmt: skip


def read_parameters(
    document: Document, operation: Operation, book: SchemaBook, *, credential_headers: frozenset[str]
) -> list[Parameter]:
    """Return the parameters of *operation*, those of its path included, each with an argument of its own.

    Headers that carry credentials, or that the way to the server sets, are left out.

    Raises:
        Fault: one of them cannot be understood, or must be given and may not.
    """
    found: dict[tuple[str, str], Parameter] = {}
    for holder, place in ((operation.shared, operation.shared_place), (operation.value, operation.place)):
        values = holder.get("parameters", [])
        if not isinstance(values, list) or len(values) > PARAMETER_LIMIT:
            raise Fault((*place, "parameters"), f"must be a list of at most {PARAMETER_LIMIT} parameters")
        for index, value in enumerate(values):
            parameter = _read(document, *document.resolve(value, (*place, "parameters", index)), book)
            if not _is_left_out(parameter, (*place, "parameters", index), credential_headers):
                found[parameter.where, parameter.name] = parameter
    _check_path(operation, found.values())
    return _with_arguments(found.values(), operation)


def _read(document: Document, value: JsonObject, place: Place, book: SchemaBook) -> Parameter:
    name, where = value.get("name"), value.get("in")
    if not isinstance(name, str) or not name:
        raise Fault((*place, "name"), "is missing")
    if not isinstance(where, str) or where not in _STYLES:
        raise Fault((*place, "in"), f"must be one of {', '.join(_STYLES)}")
    if where == "header" and not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", name):
        raise Fault((*place, "name"), "cannot be the name of a header")
    if where == "cookie" and not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", name):
        raise Fault((*place, "name"), "cannot be the name of a cookie")
    style = value.get("style", _STYLES[where][0])
    if style not in _STYLES[where]:
        raise Fault((*place, "style"), f"{str(style)[:40]!r} cannot be used in {where}")
    media, schema, at = _shape(value, place)
    converted = book.convert(schema, at, "request")
    if isinstance(value.get("description"), str) and isinstance(converted, dict):
        converted = {**converted, "description": plain_text(value["description"], 1_000)}
        if not converted["description"]:
            del converted["description"]
    return Parameter(
        name=name, where=where, argument=name, required=value.get("required") is True or where == "path", style=style,
        explode=value.get("explode", style in ("form", "deepObject")) is True,
        reserved=where == "query" and value.get("allowReserved") is True, media=media, schema=converted,
    )  # fmt: skip


def _shape(value: JsonObject, place: Place) -> tuple[str, object, Place]:
    """Return the media type, the schema and where that stands."""
    content = value.get("content")
    if content is None:
        return "", value.get("schema", {}), (*place, "schema")
    if not isinstance(content, dict) or len(content) != 1:
        raise Fault((*place, "content"), "must name exactly one media type")
    ((media, facts),) = content.items()
    if not isinstance(facts, dict):
        raise Fault((*place, "content", media), "must be a mapping")
    return media, facts.get("schema", {}), (*place, "content", media, "schema")


def _is_left_out(parameter: Parameter, place: Place, credential_headers: frozenset[str]) -> bool:
    folded = parameter.name.lower().replace("_", "-")
    if parameter.where == "cookie":
        return "cookie" in credential_headers
    if parameter.where != "header":
        return False
    if folded in _IGNORED_HEADERS or folded in credential_headers:
        return True
    refused = folded in _REFUSED_HEADERS or folded.startswith(_REFUSED_BEGINNINGS)
    if refused and parameter.required:
        raise Fault(place, f"needs the header {parameter.name!r}, which no call may set")
    return refused


def _check_path(operation: Operation, parameters: Iterable[Parameter]) -> None:
    """Every variable of the path is a parameter and the other way round, and the rest of it says one thing only."""
    place = ("paths", operation.path)
    named = re.findall(r"\{([^{}]*)\}", operation.path)
    known = {parameter.name for parameter in parameters if parameter.where == "path"}
    if set(named) != known or len(set(named)) != len(named):
        missing = sorted(set(named) ^ known) or named
        raise Fault(place, f"and its path parameters do not agree: {', '.join(missing)}")
    literal = re.sub(r"\{[^{}]*\}", "x", operation.path)
    if not re.fullmatch(r"/[A-Za-z0-9._~!$&'()*+,;=:@/-]*", literal):
        raise Fault(place, "holds characters that a path may not hold as they are")
    segments = literal[1:].split("/")
    if any(segment in (".", "..") for segment in segments) or "" in segments[:-1]:
        raise Fault(place, "holds an empty segment, . or ..")


def _with_arguments(parameters: Iterable[Parameter], operation: Operation) -> list[Parameter]:
    """Name the tool's properties: as the parameter where that is a plain word and unique, else with its place."""
    found = list(parameters)
    plain = [_plain(parameter.name) for parameter in found]
    count = Counter([*plain, *([BODY_ARGUMENT] if "requestBody" in operation.value else [])])
    named = [
        replace(one, argument=word if count[word] == 1 else f"{word[:56]}_{one.where}")
        for one, word in zip(found, plain, strict=True)
    ]
    names = Counter(one.argument for one in named)
    if double := next((one for one in named if names[one.argument] > 1), None):
        raise Fault((*operation.place, "parameters"), f"two parameters would both be {double.argument!r}")
    return named


def _plain(name: str) -> str:
    """What model providers take as the name of a property."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_")[:64] or "value"
