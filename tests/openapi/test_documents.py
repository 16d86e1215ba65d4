"""A document becomes tools: their names, labels, hosts and schemas, and what the operator says about them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.openapi import OperationSettings
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.schemas import JsonSchemas
from omni_mcp.testing import write_private
from tests.openapi.world import PETSTORE, document, operation, source_of, tools_of


def fits(schema: JsonObject, value: Any) -> bool:
    assert JsonSchemas().refusals(schema) == []
    return JsonSchemas().problems(schema, value) == []


def input_of(entry: Entry) -> JsonObject:
    schema: JsonObject = entry.definition["inputSchema"]
    return schema


def test_the_operations_of_a_document_are_tools_with_the_labels_of_their_methods(tmp_path: Path) -> None:
    left_out: list[Problem] = []
    tools = tools_of(tmp_path, PETSTORE, left_out=left_out)
    facts = {n: (t.labels.read_only, t.labels.destructive, t.side_effects) for n, t in tools.items()}
    assert facts == {
        "listPets": (True, False, "none"), "createPet": (False, True, "non_idempotent"),
        "getPet": (True, False, "none"),
        "replacePet": (False, True, "idempotent"), "deletePet": (False, True, "idempotent"),
        "get_pets_petId_photo": (True, False, "none"), "addPhoto": (False, True, "non_idempotent"),
        "log-in": (False, True, "non_idempotent"),
    }  # fmt: skip
    for tool in tools.values():
        assert tool.labels.egress and tool.labels.reads_untrusted and tool.labels.reads_private
        assert (tool.binding, tool.state, tool.hosts_for({})) == (
            "openapi_proxy",
            "accepted",
            ("eu.petshop.example:443",),
        )
        assert tool.manifest is not None and tool.manifest.secrets == ()
    (problem,) = left_out
    assert (problem.line, problem.path) == (115, '$.paths["/status"].servers') and "served elsewhere" in problem.message


def test_long_texts_are_cut(tmp_path: Path) -> None:
    long = operation(summary="s" * 10_000, description="d" * 10_000, **{"x-other": 1})
    (tool,) = tools_of(tmp_path, document({"/" + "x" * 1000: {"get": long}})).values()
    assert len(tool.definition["description"]) < 4096 and len(tool.definition["title"]) <= 120


def test_a_model_reads_what_a_tool_does_where_and_how_long_it_may_take(tmp_path: Path) -> None:
    tools = tools_of(tmp_path, PETSTORE, operations={"getPet": OperationSettings(timeout_s=2.5)})
    assert (
        tools["listPets"].definition["description"].startswith("List pets\n\nNewest first.\n\nGET https://eu.petshop")
    )
    assert tools["log-in"].definition["description"].startswith("Begin a session. Ask a person first.\n\nPOST ")
    assert "answers within 2.5 s" in tools["getPet"].definition["description"]
    assert "Deprecated" in tools["deletePet"].definition["description"]
    assert tools["listPets"].definition["title"] == "List pets"


def test_arguments_are_the_parameters_and_the_body_and_nothing_that_carries_a_credential(tmp_path: Path) -> None:
    tools = tools_of(tmp_path, PETSTORE)
    schema = input_of(tools["listPets"])
    assert list(schema["properties"]) == ["X-Tenant", "limit", "tags"]
    assert fits(schema, {}) and fits(schema, {"limit": 100, "tags": ["a"], "X-Tenant": "t"})
    for wrong in (
        {"limit": 101},
        {"limit": "1"},
        {"Authorization": "Bearer x"},
        {"X-Forwarded-Host": "x"},
        {"body": 1},
    ):
        assert not fits(schema, wrong), wrong


def test_a_body_is_checked_without_what_only_answers_hold_and_answers_without_what_is_only_sent(tmp_path: Path) -> None:
    tools = tools_of(tmp_path, PETSTORE)
    schema = input_of(tools["createPet"])
    rex: JsonObject = {"name": "Rex", "nickname": None, "age": 1, "secret_note": "s", "parents": [{"name": "Rexina"}]}
    assert fits(schema, {"body": rex})
    for wrong in ({}, {**rex, "age": 0}, {**rex, "parents": [{"name": ""}]}):
        assert not fits(schema, {"body": wrong}), wrong
    assert not fits(schema, {})
    assert "id" not in schema["$defs"]["Pet"]["properties"]
    answer = tools["createPet"].definition["outputSchema"]
    told = {"status": 201, "headers": {}, "size": 9}
    assert fits(answer, {**told, "body": {"id": 1, "name": "Rex"}}) and not fits(
        answer, {**told, "body": {"name": "Rex"}}
    )


def test_what_only_looks_like_a_keyword_or_a_reference_is_none(tmp_path: Path) -> None:
    data = {"$ref": "#/nowhere", "enum": 1}
    odd = {
        "type": "object", "default": data,
        "enum": [{"default": 1, "$ref": 2}, data], "const": {"$ref": 2, "default": 1},
        "properties": {"default": to("B"), "enum": to("B"), "$ref": to("B"), "const": {"const": data}},
    }  # fmt: skip
    paths = {"/x": {"get": operation({"name": "q", "in": "query", "schema": to("A")})}}
    tools = tools_of(tmp_path, document(paths, components={"schemas": {"A": odd, "B": {"type": "integer"}}}))
    schema = input_of(tools["get_x"])
    assert schema["$defs"]["B"] == {"type": "integer"}
    assert fits(schema, {"q": {"default": 1, "$ref": 2}}) and not fits(schema, {"q": {"default": 1, "$ref": "2"}})


def test_a_schema_brings_only_what_it_refers_to(tmp_path: Path) -> None:
    tools = tools_of(tmp_path, PETSTORE)
    assert "$defs" not in input_of(tools["getPet"])
    assert list(tools["getPet"].definition["outputSchema"]["$defs"]) == ["Pet"]
    assert "x-" not in json.dumps(input_of(tools["createPet"])) and "xml" not in json.dumps(
        input_of(tools["createPet"])
    )


def test_types_of_3_1_and_odd_schemas_are_kept(tmp_path: Path) -> None:
    odd = {
        "type": ["string", "integer", "null"],
        "oneOf": [{"const": "a"}, {"type": "integer", "exclusiveMinimum": 3}, True],
        "x-other": 1, "discriminator": {"propertyName": "x"}, "$comment": "c",
    }  # fmt: skip
    paths = {"/x": {"get": operation({"name": "q", "in": "query", "schema": {"$ref": "#/components/schemas/Odd"}})}}
    tools = tools_of(tmp_path, document(paths, components={"schemas": {"Odd": odd}}))
    schema = input_of(tools["get_x"])
    assert schema["$defs"]["Odd"] == {key: odd[key] for key in ("type", "oneOf")}


def test_the_second_reading_of_nullable_and_of_siblings_is_that_of_version_3_0(tmp_path: Path) -> None:
    schemas = {
        "E": {"type": "string", "enum": ["a"], "nullable": True},
        "A": {"nullable": True, "allOf": [{"$ref": "#/components/schemas/E"}]},
        "S": {"$ref": "#/components/schemas/E", "maxLength": 0},
    }
    paths = {
        "/x": {
            "get": operation(
                *({"name": n, "in": "query", "schema": {"$ref": f"#/components/schemas/{n}"}} for n in schemas)
            )
        }
    }
    text = {**document(paths, components={"schemas": schemas}), "openapi": "3.0.2"}
    schema = input_of(tools_of(tmp_path, text)["get_x"])
    assert all(fits(schema, {name: value}) for name in schemas for value in ("a", None))
    assert not any(fits(schema, {name: "b"}) for name in schemas)


def to(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def of(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


LOOPS: dict[str, dict[str, Any]] = {
    "itself": {"A": of({"next": to("A")})},
    "two": {"A": {"type": "array", "items": to("B")}, "B": {"anyOf": [to("A"), {"type": "integer"}]}},
    "only references": {"A": to("B"), "B": to("A")},
    "a reference to itself": {"A": to("A")},
    "without going deeper": {"A": {"allOf": [to("A")]}},
    "without going deeper, by way of another": {
        "A": {"allOf": [to("B")]},
        "B": {"anyOf": [to("A"), {"type": "string"}]},
    },
    "forty ways": {"A": of({str(n): to("A") for n in range(40)})},
    "a pattern": {"A": {"type": "object", "patternProperties": {"(?<=x)y": to("A")}}},
    "sixty by sixty": {f"S{n}": of({f"p{m}": to(f"S{(n + m) % 60}") for m in range(60)}) for n in range(60)}
    | {"A": to("S0")},
    "a long chain": {f"S{n}": {"type": "array", "items": to(f"S{n + 1}")} for n in range(1500)}
    | {"S1500": {"type": "string"}, "A": to("S0")},
    "many branches": {"A": {"anyOf": [{"allOf": [to("B")] * 50}] * 50}, "B": {"oneOf": [of({"a": to("A")})] * 50}},
}


@pytest.mark.parametrize("schemas", LOOPS.values(), ids=LOOPS)
def test_schemas_that_go_round_or_grow_become_ones_that_can_be_checked(tmp_path: Path, schemas: dict[str, Any]) -> None:
    body = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/A"}}}}
    one = {"post": {"requestBody": body, "responses": {"200": {"description": "", **body}}}}
    began_s = time.process_time()
    (tool,) = tools_of(tmp_path, document({"/x": one}, components={"schemas": schemas})).values()
    assert time.process_time() - began_s < 20
    for schema in (input_of(tool), tool.definition["outputSchema"]):
        assert JsonSchemas().refusals(schema) == [] and len(json.dumps(schema)) < 300_000
    assert "body" in input_of(tool)["properties"]


def test_three_hundred_operations_are_three_hundred_tools_and_one_that_is_broken_hides_no_other(tmp_path: Path) -> None:
    item = {
        "type": "object",
        "properties": {"id": {"type": "integer"}, "parent": {"$ref": "#/components/schemas/Item"}},
    }
    place = {"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Item"}}}
    paths: dict[str, Any] = {
        f"/things{n}/{{id}}": {
            "parameters": [place], "get": operation(operationId=f"getThing{n}"),
            "put": operation(operationId=f"putThing{n}", requestBody={"content": content}),
        }
        for n in range(150)
    }  # fmt: skip
    paths["/broken"] = {"get": operation({"$ref": "#/components/parameters/None"})}
    left_out: list[Problem] = []
    tools = tools_of(tmp_path, document(paths, components={"schemas": {"Item": item}}), left_out=left_out)
    assert len(tools) == 300 and len({tool.digest for tool in tools.values()}) == 300
    assert [one.path for one in left_out] == ['$.paths["/broken"].get.parameters[0].$ref']


def test_names_are_made_fit_and_two_equal_ones_are_told_apart_by_method_and_path(tmp_path: Path) -> None:
    paths: dict[str, Any] = {
        "/a": {"get": operation(operationId="pets.list")}, "/b": {"get": operation(operationId="pets_list")},
        "/c": {"get": operation(operationId="日本")}, "/d": {"get": operation(operationId="x" * 60)},
        "/e/{id}/f": {"parameters": [{"name": "id", "in": "path", "required": True}], "delete": operation()},
        "/g": {"get": operation(operationId="__a--b__c-")}, "/h": {"get": operation(operationId="kept-as_is")},
    }  # fmt: skip
    names = list(tools_of(tmp_path, document(paths)))
    assert [name.rpartition("_")[0] for name in names[:4]] == ["pets_list", "pets_list", "operation", "x" * 37]
    assert names[4:] == ["delete_e_id_f", "a_b_c", "kept-as_is"]
    assert len(set(names)) == 7 and all(len(name) <= 48 for name in names)
    swapped = dict(reversed(paths.items()))
    assert set(tools_of(tmp_path, document(swapped))) == set(names), "a name follows from the operation alone"


def test_the_operators_word_counts_for_labels_and_names(tmp_path: Path) -> None:
    words = {
        "createPet": OperationSettings(name="adopt", destructive=False, side_effects="idempotent"),
        "GET /pets/{petId}": OperationSettings(read_only=False),
        "listPets": OperationSettings(reads_private=False, reads_untrusted=False),
    }
    tools = tools_of(tmp_path, PETSTORE, operations=words)
    adopt, one, many = tools["adopt"], tools["getPet"], tools["listPets"]
    assert "createPet" not in tools
    assert (adopt.labels.destructive, adopt.labels.read_only, adopt.side_effects) == (False, False, "idempotent")
    assert (one.labels.read_only, one.labels.destructive, one.side_effects) == (False, True, "non_idempotent")
    assert (many.labels.reads_private, many.labels.reads_untrusted, many.labels.egress) == (False, False, True)


@pytest.mark.parametrize("word", [{"destructive": True}, {"side_effects": "non_idempotent"}, {"read_only": False}])
def test_a_reading_operation_that_the_operator_calls_dangerous_is_not_read_only(tmp_path: Path, word: Any) -> None:
    tools = tools_of(tmp_path, PETSTORE, operations={"getPet": OperationSettings(**word)})
    assert not tools["getPet"].labels.read_only


def test_nothing_in_a_document_takes_a_label_away(tmp_path: Path) -> None:
    wish = {
        "labels": {"read_only": True, "destructive": False},
        "x-omni-labels": {"read_only": True},
        "x-omni-read-only": True,
    }
    (tool,) = tools_of(tmp_path, document({"/x": {"delete": operation(**wish)}})).values()
    assert tool.labels.destructive and not tool.labels.read_only


def test_only_what_is_included_and_not_excluded_becomes_a_tool(tmp_path: Path) -> None:
    assert list(tools_of(tmp_path, PETSTORE, include=("GET /pets*",), exclude=("*/photo",))) == ["listPets", "getPet"]
    assert list(tools_of(tmp_path, PETSTORE, include=("*Pet",), exclude=("DELETE *",))) == [
        "createPet",
        "getPet",
        "replacePet",
    ]


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"exclude": ("deletePets",)}, "$.openapi.shop.exclude"),
        ({"include": ("GET /pet",)}, "$.openapi.shop.include"),
        ({"operations": {"dropPet": OperationSettings(read_only=True)}}, "$.openapi.shop.operations.dropPet"),
        ({"operations": {"getPet": OperationSettings(name="x"), "listPets": OperationSettings(name="x")}},
         "$.openapi.shop.operations"),
    ],
)  # fmt: skip
def test_a_setting_that_names_no_operation_is_refused(tmp_path: Path, settings: Any, path: str) -> None:
    with pytest.raises(ConfigError) as refused:
        tools_of(tmp_path, PETSTORE, **settings)
    assert [problem.path for problem in refused.value.problems] == [path]


def test_text_that_nobody_sees_does_not_reach_a_model(tmp_path: Path) -> None:
    hidden = "a\u200bb\u202ec\r\nd\u00ad"
    fine = operation(
        {"name": "q", "in": "query", "description": hidden, "schema": {"description": hidden}}, summary=hidden
    )
    bad = operation({"name": "q", "in": "query", "schema": {"enum": [hidden]}})
    left_out: list[Problem] = []
    tools = tools_of(tmp_path, document({"/x": {"get": fine}, "/y": {"get": bad}}), left_out=left_out)
    assert tools["get_x"].definition["description"].startswith("abc\nd\n\n")
    assert input_of(tools["get_x"])["properties"]["q"]["description"] == "abc\nd"
    assert len(left_out) == 1 and "U+200B" in left_out[0].message


def test_a_changed_document_is_read_again_and_a_change_of_the_request_is_a_change_of_the_definition(
    tmp_path: Path,
) -> None:
    def text(style: str, explode: bool) -> str:
        one = {"name": "q", "in": "query", "style": style, "explode": explode, "schema": {"type": "array"}}
        return json.dumps(document({"/x": {"get": operation(one)}}))

    source = source_of(tmp_path, text("form", True))
    (first,) = source.load()
    (again,) = source.load()
    write_private(tmp_path / "api.yaml", text("form", False))
    (changed,) = source.load()
    assert again is first and changed.definition == first.definition and changed.digest != first.digest
    assert (source.plan_of(first) or {})["parameters"][0]["explode"] is True, "a call under way keeps its request"
    assert (source.plan_of(changed) or {})["parameters"][0]["explode"] is False

    write_private(tmp_path / "api.yaml", "no document")
    with pytest.raises(ConfigError):
        source.load()
    assert source.plan_of(changed) is not None
