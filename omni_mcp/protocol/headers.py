"""The headers of a modern HTTP request must say what its body says; the body is what counts.

Source: MCP 2026-07-28, basic/transports, "Standard request headers" and "Custom headers from tool parameters".
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omni_mcp.contracts.json import JsonObject
from omni_mcp.protocol.eras import KNOWN_VERSIONS, META_VERSION, check_version
from omni_mcp.protocol.rpc import HEADER_MISMATCH, RpcError

VERSION_HEADER = "mcp-protocol-version"
METHOD_HEADER = "mcp-method"
NAME_HEADER = "mcp-name"
PARAM_PREFIX = "mcp-param-"
MIRRORED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}

_SENTINEL = re.compile(r"=\?base64\?(.*)\?=", re.DOTALL)
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_DECIMAL = re.compile(r"-?[0-9]+(?:\.0*)?")
_SUBSCHEMAS = ("items", "contains", "unevaluatedItems", "additionalProperties", "propertyNames",
               "unevaluatedProperties", "not", "if", "then", "else", "contentSchema")  # fmt: skip
_SUBSCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SUBSCHEMA_MAPS = ("patternProperties", "dependentSchemas", "$defs", "definitions")


def decode_value(value: str) -> str | None:
    """Undo the base64 sentinel. None for a malformed one, which therefore never equals a body value."""
    found = _SENTINEL.fullmatch(value)
    if found is None:
        return value
    try:
        raw = base64.b64decode(found[1], validate=True)
        if base64.b64encode(raw).decode() != found[1]:
            return None  # not the canonical encoding: two readers could disagree
        return raw.decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def check_headers(method: str, params: JsonObject, meta: JsonObject, headers: Mapping[str, str]) -> None:
    """Compare the routing headers with the body. *headers* has lower-case names and stripped values.

    Raises:
        RpcError: -32022 for a version that nobody knows, -32020 where a header is missing or says something else.
    """
    version = headers.get(VERSION_HEADER)
    if version is None:
        raise RpcError(HEADER_MISMATCH, "the header MCP-Protocol-Version is missing")
    if version not in KNOWN_VERSIONS:
        check_version(version)
    if version != meta.get(META_VERSION):
        raise RpcError(HEADER_MISMATCH, "the header MCP-Protocol-Version and the body name different versions")
    if headers.get(METHOD_HEADER) != method:
        raise RpcError(HEADER_MISMATCH, "the header Mcp-Method does not equal the body's method")
    key = MIRRORED.get(method)
    wanted = params.get(key) if key else None
    said = headers.get(NAME_HEADER, "")
    if wanted is not None and (said != wanted or said.startswith("=?")) and decode_value(said) != wanted:
        raise RpcError(HEADER_MISMATCH, f"the header Mcp-Name does not equal the body's params.{key}")


def declared_headers(schema: Any) -> tuple[tuple[tuple[str, ...], str, str], ...]:
    """Return (path of the argument, header token, type) of each `x-mcp-header` that an input schema declares.

    A schema whose annotations are faulty declares nothing: no conforming client would send them.
    """
    return () if fault_of_header_schema(schema) is not None else tuple(_annotations(schema))


def check_param_headers(
    declared: tuple[tuple[tuple[str, ...], str, str], ...], arguments: JsonObject, headers: Mapping[str, str]
) -> None:
    """Compare each declared `Mcp-Param-*` header with its argument.

    Both must be there and equal, or both absent (a null argument counts as absent).

    Raises:
        RpcError: -32020.
    """
    for path, token, kind in declared:
        raw = headers.get(PARAM_PREFIX + token.lower())
        text = _rendered(_at(arguments, path))
        where = f"the header Mcp-Param-{token} and the argument {'.'.join(path)}"
        if raw is None and text is None:
            continue
        if raw is None or text is None:
            raise RpcError(HEADER_MISMATCH, f"{where} must both be there or both be absent")
        if not _same(kind, decode_value(raw), text):
            raise RpcError(HEADER_MISMATCH, f"{where} are not equal")


def fault_of_header_schema(schema: Any) -> str | None:
    """Say what is wrong with the `x-mcp-header` annotations of an input schema; None if nothing is.

    A tool with a fault is not offered to modern clients, whose libraries would have to drop it.
    """
    seen: set[str] = set()
    for path, node in _positions(schema):
        if "x-mcp-header" not in node:
            continue
        token, kind = node["x-mcp-header"], node.get("type")
        if not path:
            return "x-mcp-header stands where no chain of properties leads"
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            return f"{'.'.join(path)}: x-mcp-header must be a header name"
        if kind not in ("string", "integer", "boolean"):
            return f"{'.'.join(path)}: x-mcp-header needs the type string, integer or boolean"
        if token.lower() in seen:
            return f"{'.'.join(path)}: x-mcp-header {token!r} is used twice"
        seen.add(token.lower())
    return None


def _annotations(schema: Any) -> Iterator[tuple[tuple[str, ...], str, str]]:
    for path, node in _positions(schema):
        if path and isinstance(node.get("x-mcp-header"), str):
            yield path, node["x-mcp-header"], node["type"]


def _positions(root: Any) -> Iterator[tuple[tuple[str, ...] | None, dict[str, Any]]]:
    """Yield (chain of property names, or None off such a chain; schema) of every place where a schema stands."""
    todo: list[tuple[tuple[str, ...] | None, Any]] = [((), root)]
    while todo:
        path, node = todo.pop()
        if not isinstance(node, dict):
            continue
        yield path, node
        properties = node.get("properties")
        if isinstance(properties, dict):
            todo.extend((None if path is None else (*path, name), sub) for name, sub in properties.items())
        todo.extend((None, node[word]) for word in _SUBSCHEMAS if word in node)
        for word in _SUBSCHEMA_LISTS:
            if isinstance(node.get(word), list):
                todo.extend((None, sub) for sub in node[word])
        for word in _SUBSCHEMA_MAPS:
            if isinstance(node.get(word), dict):
                todo.extend((None, sub) for sub in node[word].values())


def _at(arguments: Any, path: tuple[str, ...]) -> Any:
    node = arguments
    for key in path:
        if not isinstance(node, dict):
            return None
        node = node.get(key)
    return node


def _rendered(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None


def _same(kind: str, decoded: str | None, text: str) -> bool:
    if decoded is None:
        return False
    if kind == "integer" and _DECIMAL.fullmatch(decoded) and _DECIMAL.fullmatch(text) and len(decoded) < 32:
        return int(decoded.partition(".")[0]) == int(text.partition(".")[0])
    return decoded == text
