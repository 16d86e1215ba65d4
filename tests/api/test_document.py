"""The OpenAPI document and the routes are the same table: generated over every route, in both directions."""

from __future__ import annotations

import copy
import uuid
from typing import Any

import jsonschema
import pytest

from omni_mcp.contracts.api import NoQuery
from omni_mcp.serving.api.routes import ROUTES
from tests.api.world import Api, path_of, request_of, routes

pytestmark = pytest.mark.asyncio(loop_scope="module")

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
JSON = {"Content-Type": "application/json"}


def closed(document: dict[str, Any]) -> dict[str, Any]:
    """The document, but answers may hold nothing that it does not name."""
    strict = copy.deepcopy(document)
    for schema in strict["components"]["schemas"].values():
        if schema.get("properties"):
            schema["additionalProperties"] = False
    return strict


def check(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


async def test_the_document_names_what_is_served_and_nothing_else(shared: Api) -> None:
    document = (await shared.ann.get("/api/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    named = {one["operationId"] for path in document["paths"].values() for one in path.values()}
    assert named == {route.operation for route in ROUTES}
    assert named == shared.here.gateway.http_app.api.operations, "every operation has what serves it"
    assert len(named) == len(ROUTES)


async def test_every_schema_of_the_document_is_one(shared: Api) -> None:
    document = (await shared.ann.get("/api/openapi.json")).json()
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            names = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
            assert names == {part[1:-1] for part in path.split("/") if part.startswith("{")}


@pytest.mark.asyncio(loop_scope="function")
async def test_every_route_answers_by_its_schema(world: Api) -> None:
    document = closed((await world.ann.get("/api/openapi.json")).json())
    for route in sorted(routes(memory=world.has_memory), key=lambda one: one.operation in ("end_run", "forget_thread")):
        sent = request_of(route, world.things)
        answer = await world.ann.request(route.method, path_of(route, world.things), **sent)
        operation = document["paths"][route.path][route.method.lower()]
        if route.operation == "forget":  # cannot be undone, so a person is asked
            assert answer.status_code == 202
            check(document, operation["responses"]["default"]["content"]["application/json"]["schema"], answer.json())
            continue
        assert answer.status_code == route.status, (route.operation, answer.text)
        assert str(answer.status_code) in operation["responses"]
        uuid.UUID(answer.headers["x-request-id"])
        assert answer.headers["cache-control"] == "no-store"
        content = operation["responses"][str(route.status)].get("content", {})
        if route.status == 204:
            assert not content and answer.content == b""
        elif "application/json" in content:
            check(document, content["application/json"]["schema"], answer.json())
        if "json" in sent:
            check(document, operation["requestBody"]["content"]["application/json"]["schema"], sent["json"])


async def test_what_the_document_does_not_name_is_not_done(shared: Api) -> None:
    offered = {(route.path, route.method) for route in ROUTES}
    for path in {route.path for route in ROUTES}:
        route = next(one for one in ROUTES if one.path == path)
        for method in METHODS:
            if (path, method) in offered:
                continue
            answer = await shared.ann.request(method, path_of(route, shared.things), json={})
            assert answer.status_code == (405 if method == "GET" else 403), (method, path)
            assert answer.headers["x-request-id"] and answer.json()["detail"]


async def test_no_route_answers_without_a_token(shared: Api) -> None:
    for route in ROUTES:
        answer = await shared.nobody.request(route.method, path_of(route, shared.things), **request_of(route, {}))
        assert answer.status_code == 401, route.operation
        assert answer.json()["code"] == "unauthenticated" and answer.headers["www-authenticate"]


async def test_a_key_may_come_as_x_api_key(shared: Api) -> None:
    token = shared.ann.headers["authorization"].partition(" ")[2]
    answer = await shared.nobody.get("/api/projects", headers={"X-API-Key": token})
    assert answer.json()["items"][0]["principal"] == 'User::"ann"@default'


async def test_a_page_of_another_origin_and_another_host_get_nothing_from_any_route(shared: Api) -> None:
    for route in ROUTES:
        for headers, status in (({"Origin": "http://evil.example"}, 403), ({"Host": "evil.example"}, 421)):
            answer = await shared.ann.request(route.method, path_of(route, shared.things), headers=headers)
            assert answer.status_code == status, route.operation
            assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_unknown_and_repeated_parameters_are_refused(shared: Api) -> None:
    for route in ROUTES:
        sent = request_of(route, shared.things)
        params = {**sent.pop("params", {}), "surprise": "1"}
        answer = await shared.ann.request(route.method, path_of(route, shared.things), params=params, **sent)
        assert answer.status_code == 400 and "surprise" in answer.json()["detail"], route.operation
        if route.query is not NoQuery:
            name = next(iter(route.query.model_fields))
            twice = f"{path_of(route, shared.things)}?{name}=a&{name}=b"
            assert (await shared.ann.request(route.method, twice, **sent)).status_code == 400, route.operation


@pytest.mark.parametrize("value", ["0", "201", "-1", "x", "1.5", "", "1e2", "١", "9" * 5000])
async def test_a_limit_that_is_none_is_refused(value: str, shared: Api) -> None:
    answer = await shared.ann.get("/api/runs", params={"limit": value})
    assert answer.status_code == 400 and answer.json()["code"] == "invalid_request"


async def test_unknown_fields_of_a_body_are_refused(shared: Api) -> None:
    for route in routes(memory=shared.has_memory):
        if route.shape is None:
            continue
        body = {**request_of(route, shared.things)["json"], "surprise": 1}
        answer = await shared.ann.request(route.method, path_of(route, shared.things), json=body)
        expected = (422, "invalid_arguments") if route.tag == "memory" else (400, "invalid_request")
        assert (answer.status_code, answer.json()["code"]) == expected, route.operation
        assert "surprise" in answer.text


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"1", b'{"title": NaN}', b'{"title":"a","title":"b"}', b'{"title":Infinity}',
     b'{"title": "\xff"}', b'{"a":' * 80 + b"1" + b"}" * 80, b'{"title":"a"} {}', b'\xef\xbb\xbf{"title":"a"}',
     b'{"title":"\\ud800"}', b'{"title":1' + b"0" * 40 + b"}"],
)  # fmt: skip
async def test_a_body_that_is_no_strict_json_is_refused_by_every_route_that_takes_one(body: bytes, shared: Api) -> None:
    kept = (await shared.ann.get("/api/threads")).json()
    for route in ROUTES:
        if route.shape is None:
            continue
        answer = await shared.ann.request(route.method, path_of(route, shared.things), content=body, headers=JSON)
        assert answer.status_code == 400, (route.operation, body, answer.text)
    assert (await shared.ann.get("/api/threads")).json() == kept


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded", "application/json; charset=x"])
async def test_what_a_web_page_can_send_without_asking_is_not_taken(kind: str, shared: Api) -> None:
    for route in ROUTES:
        if route.method != "POST" or route.body is None:
            continue
        answer = await shared.ann.post(
            path_of(route, shared.things), content=b'{"title":"x"}', headers={"Content-Type": kind}
        )
        assert answer.status_code == 400, route.operation


async def test_a_body_over_the_limit_is_refused(shared: Api) -> None:
    body = b'{"title": "' + b"x" * (5 * 1024 * 1024) + b'"}'
    answer = await shared.ann.post("/api/threads", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
