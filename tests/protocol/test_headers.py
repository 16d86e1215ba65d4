"""Headers and body of a modern request say the same, judged beside the SDK's own rules."""

from __future__ import annotations

import base64
import warnings
from typing import Any

import pytest

from omni_mcp.protocol.headers import (
    check_headers,
    check_param_headers,
    declared_headers,
    decode_value,
    fault_of_header_schema,
)
from omni_mcp.protocol.rpc import RpcError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mcp.shared import inbound as sdk

VERSION = "2026-07-28"
META = {"io.modelcontextprotocol/protocolVersion": VERSION, "io.modelcontextprotocol/clientCapabilities": {}}
RIGHT = {"mcp-protocol-version": VERSION, "mcp-method": "tools/call", "mcp-name": "echo"}


def encoded(text: str) -> str:
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


def code(headers: dict[str, str], *, name: str = "echo", version: str = VERSION) -> int | None:
    meta = {**META, "io.modelcontextprotocol/protocolVersion": version}
    try:
        check_headers("tools/call", {"name": name, "_meta": meta}, meta, headers)
    except RpcError as fault:
        return fault.code
    return None


CASES = [
    (RIGHT, None),
    ({**RIGHT, "mcp-name": encoded("echo")}, None),
    ({k: v for k, v in RIGHT.items() if k != "mcp-protocol-version"}, -32020),
    ({k: v for k, v in RIGHT.items() if k != "mcp-method"}, -32020),
    ({k: v for k, v in RIGHT.items() if k != "mcp-name"}, -32020),
    ({**RIGHT, "mcp-method": "TOOLS/CALL"}, -32020),
    ({**RIGHT, "mcp-method": "tools/list"}, -32020),
    ({**RIGHT, "mcp-name": "harmless"}, -32020),
    ({**RIGHT, "mcp-name": "=?base64?ZWNobw?="}, -32020),
    ({**RIGHT, "mcp-name": "=?base64?ZWNobx==?="}, -32020),
    ({**RIGHT, "mcp-name": "=?BASE64?ZWNobw==?="}, -32020),
]


@pytest.mark.parametrize(("headers", "expected"), CASES)
def test_a_header_that_differs_from_the_body_is_a_mismatch(headers: dict[str, str], expected: int | None) -> None:
    assert code(headers) == expected
    verdict = sdk.classify_inbound_request(
        {"method": "tools/call", "params": {"name": "echo", "_meta": META}}, headers=headers
    )
    assert getattr(verdict, "code", None) == expected, "the SDK judges this differently"


def test_a_version_that_nobody_knows_is_named_as_such_whatever_the_body_says() -> None:
    assert code({**RIGHT, "mcp-protocol-version": "2999-01-01"}) == -32022
    assert code(RIGHT, version="v999.0.0") == -32020


@pytest.mark.parametrize("text", ["", " x", "ä", "=?base64?eA==?=", "a\nb", "plain", "\U0001f600"])
def test_every_value_survives_the_sentinel(text: str) -> None:
    assert decode_value(sdk.encode_header_value(text)) == text


@pytest.mark.parametrize(
    "raw", ["=?base64?SGVsbG8?=", "=?base64?SGVs bG8=?=", "=?base64?/w==?=", "=?base64?SGVsbG9=?="]
)
def test_a_malformed_sentinel_equals_nothing(raw: str) -> None:
    assert decode_value(raw) is None and sdk.decode_header_value(raw) is None


SCHEMA = {"type": "object", "properties": {
    "region": {"type": "string", "x-mcp-header": "Region"},
    "size": {"type": "integer", "x-mcp-header": "Size"},
    "deep": {"type": "object", "properties": {"on": {"type": "boolean", "x-mcp-header": "On"}}},
}}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "headers"),
    [
        ({"region": "eu"}, {"mcp-param-region": "eu"}),
        ({"region": "eu"}, {"mcp-param-region": encoded("eu")}),
        ({"region": "eu"}, {"mcp-param-region": "us"}),
        ({"region": "eu"}, {}),
        ({}, {"mcp-param-region": "eu"}),
        ({"region": None}, {}),
        ({"region": None}, {"mcp-param-region": ""}),
        ({"size": 42}, {"mcp-param-size": "42"}),
        ({"size": 42.0}, {"mcp-param-size": "42"}),
        ({"size": 42}, {"mcp-param-size": "42.0"}),
        ({"size": 42}, {"mcp-param-size": "43"}),
        ({"size": 42}, {"mcp-param-size": "042"}),
        ({"size": 42}, {"mcp-param-size": "4e1"}),
        ({"deep": {"on": True}}, {"mcp-param-on": "true"}),
        ({"deep": {"on": True}}, {"mcp-param-on": "True"}),
        ({"deep": 3}, {}),
        ({"region": {"a": 1}}, {"mcp-param-region": "x"}),
        ({"unknown": 1}, {"mcp-param-unknown": "9"}),
    ],
)
def test_declared_parameters_are_judged_as_the_sdk_judges_them(arguments: Any, headers: dict[str, str]) -> None:
    try:
        check_param_headers(declared_headers(SCHEMA), arguments, headers)
        ours = None
    except RpcError as fault:
        ours = fault.code
    theirs = sdk.validate_mcp_param_headers(SCHEMA, arguments, headers)
    assert ours == (theirs.code if theirs else None)


@pytest.mark.parametrize(
    "schema",
    [
        SCHEMA,
        None,
        True,
        {"type": "object", "x-mcp-header": "Root"},
        {"properties": {"a": {"type": "number", "x-mcp-header": "A"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": "A b"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": 1}}},
        {"properties": {"a": {"type": ["string"], "x-mcp-header": "A"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": "A"}, "b": {"type": "string", "x-mcp-header": "a"}}},
        {"properties": {"a": {"items": {"type": "string", "x-mcp-header": "A"}}}},
        {"anyOf": [{"properties": {"a": {"type": "string", "x-mcp-header": "A"}}}]},
        {"$defs": {"d": {"type": "string", "x-mcp-header": "A"}}},
        {"properties": {"a": {"type": "string", "default": {"x-mcp-header": "A b"}}}},
    ],
)
def test_faulty_annotations_are_found_where_the_sdk_finds_them(schema: Any) -> None:
    assert (fault_of_header_schema(schema) is None) == (sdk.find_invalid_x_mcp_header(schema) is None)
