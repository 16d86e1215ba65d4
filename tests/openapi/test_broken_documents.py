"""A document that cannot be used is refused with the file, the line where that can be told, and the place in it."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.engines.openapi.reader import parse
from tests.openapi.world import PETSTORE, document, operation, tools_of

PARAMETER: dict[str, Any] = {"name": "q", "in": "query", "schema": {}}
IN_PATH: dict[str, Any] = {"name": "id", "in": "path", "required": True, "schema": {}}


def refused(place: Path, text: str | dict[str, Any], **settings: Any) -> Problem:
    with pytest.raises(ConfigError) as error:
        tools_of(place, text, **settings)
    assert error.value.problems[0].file.endswith("api.yaml")
    return error.value.problems[0]


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "message"),
    [
        ("openapi: 3.0.3", "swagger: '2.0'", 1, "$.swagger", "version 2.0"),
        ("openapi: 3.0.3", "openapi: 4.0.0", 1, "$.openapi", "not supported"),
        ("openapi: 3.0.3", "openapi: 3", 1, "$.openapi", "not supported"),
        ("openapi: 3.0.3", "openapi: [", 3, "", "not YAML"),
        ("openapi: 3.0.3", "openapi: &a 3.0.3", 1, "", "anchors"),
        ("openapi: 3.0.3", "openapi: !x 3.0.3", 1, "", "tags"),
        ("openapi: 3.0.3", "openapi: 3.0.3\nopenapi: 3.0.3", 2, "$.openapi", "duplicate key"),
        ("openapi: 3.0.3", "openapi: 3.0.3\n---\nx: 1", 2, "", "more than one"),
        ("openapi: 3.0.3", "openapi: 3.0.3\nx: 1e999", 2, "", "finite"),
        ("openapi: 3.0.3", "openapi: 3.0.3\n? [a]\n: 1", 2, "", "must be text"),
        ("openapi: 3.0.3", f"openapi: 3.0.3\nx: {'[' * 100}{']' * 100}", 2, "", "nested deeper"),
        ("  title: Pet shop\n  version: 2.1.0\n", "", None, "$.info", "no mapping"),
        ("region: {default: eu, enum: [eu, us]}", "other: {default: eu}", 6, "$.servers[0].url", "no default"),
        ("https://{region}.petshop.example/v2", "/v2", 6, "$.servers[0].url", "base_url"),
        ("https://{region}.petshop.example/v2", "https://u:p@petshop.example/v2", 6, "$.servers[0].url", "base_url"),
        ("https://{region}.petshop.example/v2", "https://a.example/v2/../x", 6, "$.servers[0].url", "base_url"),
        ("https://{region}.petshop.example/v2", "https://a.example/v2?x=1", 6, "$.servers[0].url", "base_url"),
        ("https://{region}.petshop.example/v2", "file:///etc", 6, "$.servers[0].url", "base_url"),
        ("servers:\n  - url", "servers:\n  - url: https://b.example\n  - url", 5, "$.servers", "names 2 servers"),
        ("  /pets:\n", "  /pets: 1\n  /x:\n", 14, '$.paths["/pets"]', "must be a mapping"),
    ],
)
def test_a_fault_of_the_document_as_a_whole_has_its_line(
    tmp_path: Path, old: str, new: str, line: int | None, path: str, message: str
) -> None:
    assert old in PETSTORE
    text = PETSTORE.replace(old, new, 1)
    problem = refused(tmp_path, text)
    assert (line in (None, problem.line), problem.path.startswith(path), message in problem.message) == (True,) * 3, (
        problem
    )


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("{", 1, "not JSON"), ('{"openapi": "3.1.0",\n "info": }', 2, "not JSON"), ("{}", 0, "not supported"),
        ('{"a": 1, "a": 2}', 0, "twice"), ('{"a": NaN}', 0, "NaN"), ('{"a": 1e999}', 0, "too large"),
        ('{"a": ' * 200 + "1" + "}" * 200, 0, "nested deeper"), ('{"a": ' * 200_000, 0, "nested deeper"),
        ('{"a": "\\ud800"}', 0, "surrogate"), ("[]", 1, "must be a mapping"), ("", 1, "must be a mapping"),
        ("just words", 1, "must be a mapping"), ("a: *b", 1, "aliases"),
    ],
    ids=range(13),
)  # fmt: skip
def test_what_is_no_document_at_all_is_refused(tmp_path: Path, text: str, line: int, message: str) -> None:
    problem = refused(tmp_path, text)
    assert message in problem.message and problem.line == line, problem


def test_a_document_that_is_too_large_is_refused_before_it_is_read_in(tmp_path: Path) -> None:
    assert "larger" in refused(tmp_path, "x: " + "y" * (8 * 1024 * 1024)).message
    assert "values" in refused(tmp_path, "x: [" + "1," * 400_001 + "]").message


@pytest.mark.parametrize(
    ("broken", "place", "message"),
    [
        (operation({"$ref": "other.yaml#/x"}), "parameters[0]", "leaves the document"),
        (operation({"$ref": "https://evil.example/x.json"}), "parameters[0]", "leaves the document"),
        (operation({"$ref": "#/components/parameters/None"}), "parameters[0]", "is not there"),
        (operation({"$ref": "#/paths/~1x/get/parameters/0"}), "parameters[0]", "refers to itself"),
        (operation({**PARAMETER, "in": "body"}), "in", "must be one of"),
        (operation({**PARAMETER, "name": ""}), "name", "is missing"),
        (operation({**PARAMETER, "style": "simple"}), "style", "cannot be used in query"),
        (operation({**PARAMETER, "schema": {"type": "file"}}), "schema.type", "no type"),
        (operation({**PARAMETER, "schema": 1}), "schema", "must be a schema"),
        (operation({**PARAMETER, "schema": {"minLength": "1"}}), "minLength", "JSON Schema"),
        (operation({**PARAMETER, "schema": {"required": [[]]}}), "required", "JSON Schema"),
        (operation({**PARAMETER, "schema": {"enum": "a"}}), "enum", "JSON Schema"),
        (operation({**PARAMETER, "schema": {"$ref": "#foo"}}), "schema", "leaves the document"),
        (operation({**PARAMETER, "schema": {"items": {"$ref": "#/nowhere"}}}), "items", "is not there"),
        (operation({**PARAMETER, "content": {}}), "content", "exactly one"),
        (operation({"name": "X Y", "in": "header"}), "name", "name of a header"),
        (operation({"name": "X\r\nHost: e", "in": "header"}), "name", "name of a header"),
        (operation({"name": "a=b;c", "in": "cookie"}), "name", "name of a cookie"),
        (operation({"name": "Host", "in": "header", "required": True}), "parameters[0]", "no call may set"),
        (operation(IN_PATH), "/x", "do not agree"),
        (operation({"name": "a.b", "in": "query"}, {"name": "a.b", "in": "query"}, {"name": "a b", "in": "query"},
                   {"name": "a_b", "in": "query"}), "parameters", "would both be"),
        (operation(requestBody={"content": {}}), "content", "media type"),
        (operation(requestBody={"content": {"text/x\r\nX: y": {}}}), "content", "no media type"),
        (operation(requestBody={"content": {"multipart/form-data": {"schema": {}}}}), "schema", "object"),
        (operation(requestBody={"$ref": "#/nowhere"}), "requestBody", "is not there"),
        ({"responses": {"200": {"$ref": "#/nowhere"}}}, "200", "is not there"),
        ({"responses": []}, "responses", "must be a mapping"),
    ],
)  # fmt: skip
def test_a_broken_operation_is_named_with_its_place(tmp_path: Path, broken: Any, place: str, message: str) -> None:
    problem = refused(tmp_path, document({"/x": {"get": broken}}))
    assert place in problem.path and message in problem.message and "GET /x is left out" in problem.message, problem
    fine = document({"/x": {"get": broken}, "/y": {"get": operation()}})
    assert list(tools_of(tmp_path, fine)) == ["get_y"]


@pytest.mark.parametrize(
    "path",
    ["/x/../y", "/x/./y", "/x//y", "/x/{id}/..", "x", "/x?y=1", "/x#y", "/x/{id", "/%2e%2e/x", "/x\\y", "/{id}{id}"],
)
def test_a_path_that_could_be_read_in_two_ways_is_left_out(tmp_path: Path, path: str) -> None:
    parameters = [IN_PATH] if "{id}" in path else []
    problem = refused(tmp_path, document({path: {"get": operation(*parameters)}}))
    assert "is left out" in problem.message


ODD_VALUES: list[Any] = [None, 1, "x", [], [1], {"a": 1}, True, {"$ref": "#"}, {"$ref": 1}, {"$ref": "#/paths"}]


def places_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for step, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield (*place, step)
        yield from places_in(inner, (*place, step))


def test_no_odd_value_anywhere_in_a_document_is_a_fault_of_ours(tmp_path: Path) -> None:
    """Every third place takes one odd value each; all places with all values took 50 s and found no more."""
    original = parse(PETSTORE.encode(), file="a.yaml").value
    for number, place in enumerate(list(places_in(original))[::3]):
        changed = copy.deepcopy(original)
        holder: Any = changed
        for step in place[:-1]:
            holder = holder[step]
        holder[place[-1]] = ODD_VALUES[number % len(ODD_VALUES)]
        with contextlib.suppress(ConfigError):
            tools_of(tmp_path, changed)


def test_only_a_file_of_the_operators_own_is_read(tmp_path: Path) -> None:
    file = tmp_path / "api.yaml"
    tools_of(tmp_path, PETSTORE)
    file.chmod(0o666)
    assert "others can write" in refused(tmp_path, PETSTORE).message
    file.chmod(0o600)
    os.rename(file, tmp_path / "real.yaml")
    file.symlink_to(tmp_path / "real.yaml")
    with pytest.raises(ConfigError, match="not a link"):
        tools_of(tmp_path, PETSTORE)


def test_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    text = document({"/x": {"get": operation(PARAMETER)}})
    (tmp_path / "a").mkdir()
    ((name, from_json),) = tools_of(tmp_path, text).items()
    head = "openapi: 3.1.0\ninfo: {title: Odd, version: 1.0.0}\nservers: [url: 'https://odd.example/v1']\n"
    yaml = f"{head}paths:\n  /x:\n    get: "
    from_yaml = tools_of(tmp_path / "a", yaml + json.dumps(text["paths"]["/x"]["get"]))[name]
    assert from_json.digest == from_yaml.digest
