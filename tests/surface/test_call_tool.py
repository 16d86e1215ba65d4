"""A call through `call_tool` is the call itself: policy, approval, record and answer cannot tell them apart."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
import pytest_asyncio

from omni_mcp.contracts.call import Answer, Call, InputRequired, Result
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Labels, Limits
from omni_mcp.testing import ALLOW_ALL, BOB, WAIT_S, Canary, LocalGateway, error_of, local_gateway
from tests.serving.edge_world import modern, modern_headers
from tests.surface.shelf import CALL, SEARCH, schema_of, settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

DANGEROUS = Labels(read_only=False, destructive=True)
QUESTION = {
    "method": "elicitation/create",
    "params": {"mode": "form", "message": "Sure?", "requestedSchema": {"type": "object", "properties": {}}},
}
RULES = ALLOW_ALL + '@id("no") forbid (principal, action, resource == Omni::Tool::"canary__forbidden");'
VERSIONS = ["2025-06-18", "2026-07-28"]


async def fails(call: Call) -> Result:
    return Answer(body={"content": [{"type": "text", "text": "no"}], "isError": True}, is_error=True, where="remote")


async def asks(call: Call) -> Result:
    if call.round is None:
        return InputRequired(requests={"sure": QUESTION}, state={"step": 1})
    return Answer(body={"content": [{"type": "text", "text": "thank you"}], "isError": False}, where="remote")


async def large(call: Call) -> Result:
    lines = "\n".join(f"line {number}" for number in range(500)) + "\na needle"
    return Answer(body={"content": [{"type": "text", "text": lines}], "isError": False}, where="remote")


async def counts(call: Call) -> Result:
    await call.link.progress(1, 2, "half")
    return Answer(body={"content": [], "isError": False}, where="remote")


@pytest.fixture(scope="module")
def begun() -> asyncio.Event:
    """Set when the tool that never ends was called."""
    return asyncio.Event()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, begun: asyncio.Event) -> Canary:
    """Tools that end in every way that matters here."""

    async def forever(call: Call) -> Result:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    canary = Canary(tmp_path_factory.mktemp("world") / "touched")
    for name in ("answers", "forbidden"):
        canary.tool(name, schema=schema_of("n"))
    canary.tool("fails", fails)
    canary.tool("asks", asks)
    canary.tool("counts", counts)
    canary.tool("large", large, limits=Limits(output_limit_bytes=1024))
    canary.tool("forever", forever)
    canary.tool("held_back", state="quarantined", schema=schema_of("n"))
    canary.tool("dangerous", labels=DANGEROUS, schema=schema_of("n"))
    canary.tool("mirrored", schema={"type": "object", "properties": {"n": {"type": "string", "x-mcp-header": "N"}}})
    canary.prompt("greet")
    return canary


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(world: Canary) -> AsyncIterator[LocalGateway]:
    async with local_gateway(RULES, canary=world, settings=settings(mode="search")) as here:
        yield here
        ended = await here.outcomes()
        assert ended and {call: ends for call, ends in ended.items() if len(ends) != 1} == {}


async def story(here: LocalGateway, call: str | None = None) -> str:
    """What is on record of one call, or of the newest, without what differs between any two calls."""
    events = await here.events()
    newest = call or [event.call for event in events if event.kind == "tool_call"][-1]
    told = [(e.kind, e.code, e.actor, {**(e.payload or {}), "premises": None}) for e in events if e.call == newest]
    return neutral(orjson.dumps(told, option=orjson.OPT_SORT_KEYS).decode())


def neutral(text: str) -> str:
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f-]{21}", "<id>", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z?", "<time>", text)
    return re.sub(r'\\?"(duration_ms|requestState|omni_ms)\\?":("[^"]*"|[^,}]+)', r"<\1>", text)


def through(name: str, arguments: JsonObject | None = None) -> JsonObject:
    return {"name": CALL, "arguments": {"name": name, "arguments": arguments or {}}}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("tool", "arguments", "code"),
    [
        ("answers", {"n": "1"}, None),
        ("answers", {"n": 1}, "invalid_arguments"),
        ("fails", {}, None),
        ("forbidden", {"n": "1"}, "policy_denied"),
        ("missing", {"n": "1"}, "policy_denied"),
        ("held_back", {"n": "1"}, "policy_denied"),
        ("dangerous", {"n": 1}, "invalid_arguments"),
        ("dangerous", {"n": "9"}, "approval_pending"),
        ("mirrored", {"n": "1"}, None),
    ],
)
async def test_it_gives_the_same_bytes_and_leaves_the_same_record(
    version: str, tool: str, arguments: dict[str, Any], code: str | None, here: LocalGateway
) -> None:
    name = f"canary__{tool}"
    async with here.client(version=version) as client:
        if code == "approval_pending":  # the first call opens the question that the others wait for
            await client.call(name, arguments)
        direct = await client.request("tools/call", {"name": name, "arguments": arguments})
        told_direct = await story(here)
        turned = await client.request("tools/call", through(name, arguments))
        told_turned = await story(here)
    assert error_of(direct).get("code") == code
    same = [neutral(orjson.dumps({**reply, "id": 0}).decode()) for reply in (direct, turned)]
    assert same[0] == same[1]
    assert told_direct == told_turned
    assert CALL not in told_turned and name in told_turned


@pytest.mark.parametrize("version", VERSIONS)
async def test_unknown_forbidden_and_quarantined_names_get_one_answer(version: str, here: LocalGateway) -> None:
    answers = set()
    async with here.client(version=version) as client:
        for name in ("canary__forbidden", "canary__held_back", "canary__missing", "nobody__missing", "no name at all"):
            reply = await client.request("tools/call", through(name, {"n": "1"}))
            answers.add(neutral(orjson.dumps({**reply, "id": 0}).decode().replace(name, "<name>")))
    assert len(answers) == 1


MALFORMED: list[Any] = [
    {},
    {"name": "canary__answers", "arguments": '{"n": "1"}'},
    {"name": "canary__answers", "arguments": None},
    {"name": "canary__answers", "arguments": ["n"]},
    {"name": "canary__answers", "arguments": {}, "more": 1},
    {"name": ["canary__answers"]},
    {"name": ""},
    {"name": "x" * 513},
    {"tool": "canary__answers"},
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("arguments", MALFORMED, ids=lambda value: str(value)[:40])
async def test_a_malformed_one_is_refused_on_record_and_reaches_nothing(
    version: str, arguments: Any, here: LocalGateway, world: Canary
) -> None:
    before = len(world.touched)
    async with here.client(version=version) as client:
        result = await client.call(CALL, arguments)
    facts = error_of(result)
    assert facts["code"] == "invalid_arguments" and facts["data"]["problems"]
    assert await here.words(facts["call"]) == ["tool_call", "policy_decided:allow", "tool_error:invalid_arguments"]
    assert len(world.touched) == before


async def test_it_cannot_be_made_to_call_itself(here: LocalGateway, world: Canary) -> None:
    before = len(world.touched)
    inner = {"name": "canary__answers", "arguments": {"n": "1"}}
    async with here.client() as client:
        result = await client.request("tools/call", through(CALL, inner))
    assert result["result"]["isError"] and "cannot call itself" in result["result"]["content"][0]["text"]
    assert len(world.touched) == before


async def test_it_can_name_search(here: LocalGateway) -> None:
    async with here.client() as client:
        reply = await client.request("tools/call", through(SEARCH, {"query": "answers"}))
    assert reply["result"]["structuredContent"]["tools"][0]["name"] == "canary__answers"


async def test_it_names_tools_and_nothing_else(here: LocalGateway, world: Canary) -> None:
    before = len(world.touched)
    async with here.client() as client:
        for name in ("canary__greet", "run://latest"):
            result = await client.request("tools/call", through(name))
            assert error_of(result)["code"] == "policy_denied"
        prompt = await client.request("prompts/get", through("canary__answers"))
        assert "error" in prompt
    assert len(world.touched) == before


async def test_a_rule_against_it_is_a_rule_against_every_call_of_it(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "touched")
    canary.tool("answers")
    rules = ALLOW_ALL + f'@id("none") forbid (principal, action, resource == Omni::Tool::"{CALL}");'
    async with (
        local_gateway(rules, canary=canary, settings=settings(mode="search"), cells=False) as here,
        here.client() as client,
    ):
        assert {tool["name"] for tool in await client.listed("tools")} == {SEARCH}
        refused = error_of(await client.request("tools/call", through("canary__answers")))
        assert refused["code"] == "policy_denied"
        asked = [event.payload or {} for event in await here.events() if event.kind == "tool_call"]
        assert asked[-1]["name"] == CALL
        assert not (await client.call("canary__answers"))["isError"]
    assert canary.touched == ["tool canary__answers"]


async def test_a_person_is_shown_the_tool_itself_and_a_yes_is_good_for_that_one_call(
    here: LocalGateway, world: Canary
) -> None:
    before = world.touched.count("tool canary__dangerous")
    async with here.client() as client, here.client(principal=BOB) as other:
        asked = error_of(await client.request("tools/call", through("canary__dangerous", {"n": "1"})))
        assert asked["code"] == "approval_pending"
        question = here.answer(True)
        assert (question.name, question.tool, question.arguments) == ("canary__dangerous", "dangerous", {"n": "1"})

        for caller, arguments in ((client, {"n": "2"}), (other, {"n": "1"})):
            swapped = error_of(await caller.request("tools/call", through("canary__dangerous", arguments)))
            assert swapped["code"] == "approval_pending"
        assert world.touched.count("tool canary__dangerous") == before

        first = await client.request("tools/call", through("canary__dangerous", {"n": "1"}))
        again = await client.request("tools/call", through("canary__dangerous", {"n": "1"}))
    assert not first["result"]["isError"]
    assert error_of(again)["code"] == "approval_pending"
    assert world.touched.count("tool canary__dangerous") == before + 1


def following(asked: JsonObject, **more: Any) -> JsonObject:
    answers = {"sure": {"action": "accept", "content": {}}}
    return {"requestState": asked["requestState"], "inputResponses": answers, **more}


CAN_ELICIT: dict[str, Any] = {"elicitation": {}}


async def test_a_multi_round_call_goes_on_through_it_and_its_state_fits_no_other(here: LocalGateway) -> None:
    async with here.client(capabilities=CAN_ELICIT) as client:
        asked = (await client.request("tools/call", through("canary__asks", {"n": "1"})))["result"]
        for other in (through("canary__fails", {"n": "1"}), through("canary__asks", {"n": "2"})):
            assert (await client.request("tools/call", {**other, **following(asked)}))["error"]["code"] == -32602
        done = await client.request("tools/call", {**through("canary__asks", {"n": "1"}), **following(asked)})
    assert done["result"]["content"][0]["text"] == "thank you"


async def test_a_handshake_client_is_asked_as_in_a_direct_call(here: LocalGateway) -> None:
    def answer(method: str, params: JsonObject) -> JsonObject:
        return {"action": "accept", "content": {}}

    async with here.client(version="2025-11-25", capabilities=CAN_ELICIT, answer=answer) as client:
        done = await client.request("tools/call", through("canary__asks"))
    assert done["result"]["content"][0]["text"] == "thank you"


@pytest.mark.parametrize("version", VERSIONS)
async def test_progress_reaches_the_caller_under_its_own_token(version: str, here: LocalGateway) -> None:
    async with here.client(version=version) as client:
        await client.request("tools/call", {**through("canary__counts"), "_meta": {"progressToken": "t"}})
        told = [one["params"] for one in client.notifications if one["method"] == "notifications/progress"]
    assert [(one["progressToken"], one["progress"]) for one in told] == [("t", 1)]


async def test_cancelling_the_request_cancels_the_call(here: LocalGateway, begun: asyncio.Event) -> None:
    async with here.client() as client:
        number, reply = await client.start("tools/call", through("canary__forever"))
        async with asyncio.timeout(WAIT_S):
            await begun.wait()
        await client.notify("notifications/cancelled", {"requestId": number})
        [call] = [e.call or "" for e in await here.events() if (e.payload or {}).get("name") == "canary__forever"]
        end = await here.end_of(call)
        reply.cancel()
    assert (end.payload or {})["code"] == "cancelled"


async def test_over_http_the_headers_say_call_tool_and_the_record_says_the_tool(here: LocalGateway) -> None:
    """`Mcp-Param-*` headers belong to tools that a client was listed; the one it names here declares none."""
    body = modern("tools/call", through("canary__mirrored", {"n": "1"}))
    async with here.http(BOB) as (base, [token]), httpx2.AsyncClient(base_url=base) as http:
        headers = {**modern_headers(body), "Authorization": f"Bearer {token}"}
        answer = (await http.post("/mcp", json=body, headers=headers)).json()
        assert not answer["result"]["isError"]
        assert "canary__mirrored" in await story(here)
        lying = await http.post("/mcp", json=body, headers={**headers, "Mcp-Name": "canary__mirrored"})
    assert lying.status_code == 400 and lying.json()["error"]["code"] == -32020


@pytest.mark.usefixtures("cells")
async def test_a_large_result_is_kept_and_its_reader_is_found_and_called_the_same_way(here: LocalGateway) -> None:
    async with here.client() as client, here.client(principal=BOB) as other:
        kept = (await client.request("tools/call", through("canary__large")))["result"]
        sha256 = kept["_meta"]["io.omni-mcp/artifact"]["sha256"]
        found = await client.call(SEARCH, {"query": "artifact_search"})
        name = found["structuredContent"]["tools"][0]["name"]
        assert name == "tools__artifact_search"

        wanted = through(name, {"artifact": sha256, "text": "needle"})
        hits = (await client.request("tools/call", wanted))["result"]
        assert not hits["isError"] and "needle" in orjson.dumps(hits).decode()
        assert (await other.request("tools/call", wanted))["result"]["isError"]
