"""What is another's is not there: generated over every route, for names in paths, parameters, bodies and cursors."""

from __future__ import annotations

import re
from typing import Any

import httpx2
import pytest

from omni_mcp.contracts.ids import new_id
from omni_mcp.serving.api.routes import ROUTES, ApiRoute
from tests.api.world import Api, path_of, request_of, routes

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMED = [route for route in ROUTES if route.names]
MISSING = {"sha256": "0" * 64, "project": "elsewhere"}
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{64}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")


def missing() -> dict[str, str]:
    """Names of things that were never there."""
    return {name: new_id() for name in ("thread", "run", "call", "approval", "item")} | MISSING


def seen(answer: httpx2.Response) -> tuple[int, str, list[str]]:
    """What an answer tells apart from the ids that any two answers differ in."""
    headers = sorted(name for name in answer.headers if name not in ("content-length", "date"))
    return answer.status_code, TIME.sub("<time>", ID.sub("<id>", answer.text)), headers


@pytest.mark.parametrize("route", NAMED, ids=lambda route: route.operation)
async def test_anothers_and_a_missing_name_in_a_path_get_the_same_answer(route: ApiRoute, shared: Api) -> None:
    if route.tag == "memory" and not shared.has_memory:
        pytest.skip("no memory")
    for _ in range(2):
        sent = request_of(route, shared.things)
        of_ann = await shared.bob.request(route.method, path_of(route, shared.things), **sent)
        of_nobody = await shared.bob.request(route.method, path_of(route, missing()), **sent)
        if route.names == ["project"]:
            assert of_ann.status_code == 200, "both are in the project"
            assert of_nobody.status_code == 404
            continue
        assert seen(of_ann) == seen(of_nobody)
        assert of_ann.status_code == (202 if route.operation == "forget" else 404)


@pytest.mark.parametrize(
    ("method", "path", "where", "field", "rest"),
    [
        ("POST", "/api/runs", "json", "thread", {}),
        ("POST", "/api/calls", "json", "thread", {"name": "canary__echo"}),
        ("POST", "/api/calls", "json", "run", {"name": "canary__echo"}),
        ("POST", "/api/artifacts", "params", "run", {}),
        ("GET", "/api/events", "params", "run", {"query": "quince"}),
        ("GET", "/api/runs", "params", "cursor", {}),
        ("GET", "/api/threads", "params", "cursor", {}),
    ],
)
async def test_anothers_and_a_missing_name_in_a_request_get_the_same_answer(
    method: str, path: str, where: str, field: str, rest: dict[str, Any], shared: Api
) -> None:
    names = [shared.things["run" if field == "cursor" else field], new_id()]
    if path == "/api/threads":
        names[0] = shared.things["thread"]
    answers = []
    for name in names:
        sent: dict[str, Any] = {where: {field: name, **rest}}
        if path == "/api/artifacts":
            sent |= request_of(next(one for one in ROUTES if one.operation == "upload_artifact"), {})
        answers.append(seen(await shared.bob.request(method, path, **sent)))
    assert answers[0] == answers[1]
    assert shared.canary.touched.count("tool canary__echo") == 1, "ann's own"


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("path", ["/api/runs", "/api/threads/{thread}/runs"])
async def test_anothers_run_is_no_cursor(path: str, world: Api) -> None:
    """It would say by what comes before it that it is there, and when it was begun."""
    thread = (await world.bob.post("/api/threads", json={"title": "bob's"})).json()["id"]
    await world.bob.post("/api/runs", json={"thread": thread})
    anns = (await world.ann.post("/api/runs", json={})).json()["id"]
    await world.bob.post("/api/runs", json={"thread": thread})
    answers = [
        seen(await world.bob.get(path.format(thread=thread), params={"cursor": name})) for name in (anns, new_id())
    ]
    assert answers[0] == answers[1] and answers[0][0] == 400


@pytest.mark.asyncio(loop_scope="function")
async def test_no_list_and_no_search_shows_what_is_anothers(world: Api) -> None:
    await world.bob.post("/api/calls", json={"name": "canary__echo"})
    private = [value for name, value in world.things.items() if name != "project"]
    for route in routes(memory=world.has_memory):
        if route.names or route.method != "GET":
            continue
        answer = await world.bob.get(route.path, **request_of(route, {}))
        assert answer.status_code == 200, route.operation
        for value in (*private, "quince"):
            assert value not in answer.text, (route.operation, value)


async def test_no_tool_that_reads_the_record_shows_what_is_anothers(shared: Api) -> None:
    for name, arguments in (
        ("runs__list", {}), ("runs__search", {"query": "quince"}), ("runs__read", {"run": shared.things["run"]}),
        ("runs__explain", {"call": shared.things["call"]}),
    ):  # fmt: skip
        answer = await shared.bob.post("/api/calls", json={"name": name, "arguments": arguments})
        text = answer.text.replace(str(arguments.get("run")), "").replace(str(arguments.get("call")), "")
        assert "pantry" not in text and "where is the" not in text
        assert not [one for name, one in shared.things.items() if name != "project" and one in text]


@pytest.mark.parametrize("cursor", ["x", "0", "-1", "01a1fef5", "' OR 1=1 --", "\x00", "é", "9" * 30])
async def test_a_cursor_that_was_made_up_is_refused_or_finds_nothing_of_others(cursor: str, shared: Api) -> None:
    for route in routes(memory=False):
        if "cursor" not in route.query.model_fields:
            continue
        answer = await shared.ann.get(path_of(route, shared.things), params={"cursor": cursor})
        assert answer.status_code in (200, 400), (route.operation, answer.text)
