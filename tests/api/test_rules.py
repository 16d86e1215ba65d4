"""The API is another way in and not a way round: the policy decides, the chain runs, the record shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.config import LimitSettings, Settings
from omni_mcp.contracts.call import Answer, Call, InputRequired
from omni_mcp.serving.api.routes import ROUTES
from omni_mcp.testing import ANN, LocalGateway
from tests.api.world import FILE_TYPE, Api, a_file, api_world, furnish, path_of, request_of

ONLY_TOOLS = '@id("canary") permit (principal, action, resource in Omni::Server::"canary");'


async def kinds_of(here: LocalGateway, run: str) -> list[str]:
    return [event.code or event.kind async for event in here.gateway.log.read(run)]


async def test_without_a_rule_nothing_is_read_and_nothing_is_done(tmp_path: Path) -> None:
    """Every route that the policy decides is refused, whoever the names in it belong to, and that is on record."""
    async with api_world(tmp_path, "// no rule") as world:
        before = len(await world.here.events())
        decided = [route for route in ROUTES if route.like is not None]
        for route in decided:
            answer = await world.ann.request(route.method, path_of(route, {}), **request_of(route, {}))
            assert (answer.status_code, answer.json()["code"]) == (403, "access_refused"), route.operation
        called = await world.ann.post("/api/calls", json={"name": "canary__echo"})
        assert (called.status_code, called.json()["code"]) == (403, "policy_denied")
        for path in ("/api/calls/x", "/api/events?query=x"):
            assert (await world.ann.get(path)).json()["code"] == "policy_denied"
        assert (await world.ann.get("/api/catalog")).json()["items"] == []
        new = (await world.here.events())[before:]
    assert world.canary.touched == []
    assert sum(event.code == "access_refused" for event in new) >= 1
    assert not [event for event in new if event.kind in ("user_message", "artifact_ref") or event.code == "log_read"]


async def test_a_run_is_begun_and_ended_by_those_who_may_say_something_in_it(tmp_path: Path) -> None:
    says = '@id("says") permit (principal, action, resource == Omni::Tool::"messages__say");'
    async with api_world(tmp_path, says) as world:
        begun = await world.ann.post("/api/runs", json={"title": "one"})
        assert begun.status_code == 201
        world.here.write_policy("// no rule any more")
        await world.here.gateway.reload()
        before = len(await world.here.gateway.log.runs(limit=100))
        refused = [
            await world.ann.post("/api/runs", json={"title": "two"}),
            await world.ann.post(f"/api/runs/{begun.json()['id']}/end"),
        ]
        events = await world.here.events()
        after = len(await world.here.gateway.log.runs(limit=100))
    assert [answer.json()["code"] for answer in refused] == ["access_refused"] * 2
    targets = [(event.payload or {})["method"] for event in events if event.code == "access_refused"]
    assert targets == ["POST /api/runs", "POST /api/runs/{run}/end"]
    assert after == before, "no run was made for the one that was refused"


async def test_the_refusals_of_one_caller_do_not_hide_those_of_another(tmp_path: Path) -> None:
    """They are written down in one run, the gateway's own, where a flood is counted instead of written."""
    async with api_world(tmp_path, "// no rule") as world:
        paths = ["/api/runs", "/api/threads", "/api/artifacts", "/api/approvals", "/api/stream", "/api/runs/x"]
        for path in (*paths, "/api/runs/x/events", "/api/runs/x/stream", "/api/threads/x", "/api/approvals/x"):
            await world.bob.get(path)
        await world.ann.get("/api/runs")
        refused = [event.payload or {} for event in await world.here.events() if event.code == "access_refused"]
    assert [one["method"] for one in refused if one["principal"] == ANN.key] == ["GET /api/runs"]


async def test_a_rule_for_one_server_opens_the_routes_of_no_other(tmp_path: Path) -> None:
    async with api_world(tmp_path, ONLY_TOOLS) as world:
        assert (await world.ann.post("/api/calls", json={"name": "canary__echo"})).status_code == 200
        assert (await world.ann.get("/api/runs")).status_code == 403
        assert (await world.ann.post("/api/threads", json={"title": "x"})).status_code == 403
        listed = (await world.ann.get("/api/catalog")).json()["items"]
        assert {item["name"] for item in listed} == {"canary__echo", "canary__break"}


async def test_the_catalog_is_what_an_mcp_client_is_listed(world: Api) -> None:
    async with world.here.client() as client:
        for kind, listed, key in (("tool", "tools", "name"), ("prompt", "prompts", "name"),
                                  ("resource", "resources", "uri")):  # fmt: skip
            shown = (await world.ann.get("/api/catalog", params={"kind": kind})).json()["items"]
            assert [one["definition"] for one in shown] == await client.listed(listed)
            assert [one["name"] for one in shown] == [one["definition"][key] for one in shown]
    assert (await world.ann.get("/api/catalog", params={"profile": "nothing"})).status_code == 404
    assert (await world.ann.get("/api/catalog", params={"cursor": "x"})).status_code == 400


async def test_a_call_leaves_the_same_record_as_one_by_mcp(world: Api) -> None:
    done = (await world.ann.post("/api/calls", json={"name": "canary__echo", "arguments": {"x": 1}})).json()
    async with world.here.client() as client:
        await client.call("canary__echo", {"x": 1})
    calls = [event for event in await world.here.events() if event.kind == "tool_call"]
    by_api = next(event for event in calls if event.call == done["call"])
    by_mcp = next(event for event in calls if (event.payload or {})["client"]["transport"] == "memory")
    assert by_mcp.call is not None
    assert await world.here.words(done["call"]) == await world.here.words(by_mcp.call)
    assert (by_api.payload or {})["arguments"] == {"x": 1} and by_api.run == done["run"]
    assert (by_api.payload or {})["client"]["name"] == "api"


async def test_resources_and_prompts_are_called_alike(world: Api) -> None:
    read = (await world.ann.post("/api/calls", json={"kind": "resource", "name": "note://one"})).json()
    assert read["result"]["contents"][0]["text"] == "here"
    got = await world.ann.post(
        "/api/calls", json={"kind": "prompt", "name": "canary__greet", "arguments": {"word": "a"}}
    )
    assert got.json()["result"]["messages"][0]["role"] == "user"
    for kind, name, arguments in (("prompt", "canary__greet", {"word": 1}), ("resource", "note://one", {"x": 1})):
        wrong = {"kind": kind, "name": name, "arguments": arguments}
        assert (await world.ann.post("/api/calls", json=wrong)).status_code == 400


async def test_a_call_that_a_person_must_answer_says_so_and_runs_once_it_is_answered(world: Api) -> None:
    asked = await world.ann.post("/api/calls", json={"name": "canary__break", "arguments": {"n": 2}})
    question = asked.json()["data"]["approval"]
    assert (asked.status_code, asked.json()["code"]) == (202, "approval_pending")
    shown = (await world.ann.get(f"/api/approvals/{question}")).json()
    assert shown["arguments"] == {"n": 2} and shown["call"] == asked.json()["call"]
    assert not {"rules", "approvers", "policy_version", "labels"} & shown.keys(), "who may answer is for operators"
    world.here.answer(True)
    async with world.here.client() as client:  # the desk has seen the answer once a like call passes
        assert not (await client.call("canary__break", {"n": 2}))["isError"]
    assert (await world.ann.get(f"/api/approvals/{question}")).status_code == 404


async def test_nobody_decides_a_question_here(world: Api) -> None:
    question = world.things["approval"]
    before = len(await world.here.events())
    for path in (f"/api/approvals/{question}", f"/api/approvals/{question}/approve", "/api/approvals"):
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            answer = await world.ann.request(method, path, json={"approve": True, "decision": "approved"})
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    new = (await world.here.events())[before:]
    assert {event.code for event in new} <= {"request_rejected"}
    assert (await world.ann.get(f"/api/approvals/{question}")).json()["state"] == "pending"


async def test_a_tool_that_asks_its_caller_ends_with_one_outcome(tmp_path: Path) -> None:
    async def ask(call: Call) -> Answer | InputRequired:
        return InputRequired(requests={"name": {"method": "elicitation/create", "params": {}}})

    async with api_world(tmp_path) as world:
        world.canary.tool("ask", ask)
        world.here.gateway.reload_catalog()
        done = await world.ann.post("/api/calls", json={"name": "canary__ask"})
        assert (done.status_code, done.json()["code"]) == (502, "outcome_unknown")
        call = done.json()["call"]
        await world.here.end_of(call)
        assert (await world.here.outcomes())[call] == ["tool_error:outcome_unknown"]
        assert world.here.gateway.open_calls == 0


async def test_reading_the_log_is_on_record_in_the_gateways_own_run_and_leaves_the_readers_runs_alone(
    world: Api,
) -> None:
    run, thread = world.things["run"], world.things["thread"]
    before = await kinds_of(world.here, run)
    for path in ("/api/runs", f"/api/runs/{run}", f"/api/runs/{run}/events", f"/api/threads/{thread}/runs"):
        assert (await world.ann.get(path)).status_code == 200
    reads = [event for event in await world.here.events() if event.code == "log_read"]
    whats = [(event.payload or {})["what"] for event in reads]
    assert whats == ["list_runs", f"get_run {run}", f"list_events {run}", f"list_thread_runs {thread}"]
    assert {event.run for event in reads} == {(await world.here.gateway.log.runs(limit=1000))[-1]["id"]}
    assert {(event.payload or {})["reader"] for event in reads} == {ANN.key}
    assert await kinds_of(world.here, run) == before


async def test_requests_have_a_rate(tmp_path: Path) -> None:
    async with api_world(tmp_path, settings=Settings(limits=LimitSettings(calls_per_minute=5))) as world:
        answers = [(await world.ann.get("/api/runs")).status_code for _ in range(7)]
        refused = await world.ann.get("/api/runs")
        assert answers == [200] * 5 + [429] * 2
        assert refused.json()["code"] == "rate_limited" and int(refused.headers["retry-after"]) >= 1
        assert (await world.bob.get("/api/runs")).status_code == 200, "another's is another's"


async def test_a_gateway_that_stops_takes_no_request(world: Api) -> None:
    await world.here.gateway.drain(0.0)
    answer = await world.ann.get("/api/runs")
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")


async def test_a_call_whose_body_is_still_coming_when_the_gateway_stops_does_not_run(world: Api) -> None:
    begun, drained = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        begun.set()
        yield b'{"name": "canary__echo", '
        await drained.wait()
        yield b'"arguments": {}}'

    before = len(world.canary.touched)
    headers = {"Content-Type": "application/json"}
    asked = asyncio.create_task(world.ann.post("/api/calls", content=body(), headers=headers))
    await begun.wait()
    await world.here.gateway.drain(0.0)
    drained.set()
    answer = await asked
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert len(world.canary.touched) == before


@pytest.mark.parametrize("what", ["run", "thread"])
async def test_names_that_are_not_strings_are_refused(what: str, world: Api) -> None:
    values: list[Any] = [1, None, [], {}, "", "x" * 65]
    for value in values:
        body = {"name": "canary__echo", what: value}
        expected = 200 if value is None else 400
        assert (await world.ann.post("/api/calls", json=body)).status_code == expected


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    async with api_world(tmp_path, keep=tmp_path) as world:
        things = await furnish(world)
    async with api_world(tmp_path, keep=tmp_path) as world:
        for path in (f"/api/threads/{things['thread']}", f"/api/runs/{things['run']}",
                     f"/api/artifacts/{things['sha256']}", f"/api/calls/{things['call']}"):  # fmt: skip
            assert (await world.ann.get(path)).status_code == 200, path
        assert [
            one["id"] for one in (await world.ann.get(f"/api/threads/{things['thread']}/runs")).json()["items"]
        ] == [things["run"]]
        late = {"events": [{"kind": "user_message", "text": "late"}]}
        assert (await world.ann.post(f"/api/runs/{things['run']}/events", json=late)).status_code == 409
        path = f"/api/artifacts?run={things['run']}"
        assert (await world.ann.post(path, content=a_file(), headers=FILE_TYPE)).status_code == 409


async def test_a_call_of_call_tool_is_the_call_that_it_means(world: Api) -> None:
    inner = {"name": "canary__echo", "arguments": {"x": 1}}
    done = (await world.ann.post("/api/calls", json={"name": "tools__call_tool", "arguments": inner})).json()
    story = (await world.ann.get(f"/api/calls/{done['call']}")).json()
    itself = {"name": "tools__call_tool", "arguments": {"name": "tools__call_tool", "arguments": {}}}
    own = (await world.ann.post("/api/calls", json=itself)).json()

    assert not done["is_error"] and world.canary.calls[-1].arguments == {"x": 1}
    assert "canary__echo" in str(story) and "call_tool" not in str(story)
    assert own["code"] == "invalid_arguments"
