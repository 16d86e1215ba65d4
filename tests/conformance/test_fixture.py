"""The conformance server offers what the suite asks for, and answers as its scenarios describe."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from omni_mcp.contracts.call import (
    Answer,
    AskRefused,
    Call,
    ClientFacts,
    Era,
    InputRequired,
    NoLink,
    Principal,
    Round,
)
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.contracts.tool import CallKind, Entry
from tests.conformance.definitions import STATIC_BINARY, STATIC_TEXT, TEMPLATE, WATCHED
from tests.conformance.fixture import ConformanceServer
from tests.node.presence import needed_node

ABLE: JsonObject = {"elicitation": {}, "sampling": {}, "roots": {}}
# How the suite's own descriptions demand something of a server under test.
DEMANDED = re.compile(r"Implement (?:a )?(?:tool|prompt)(?: named)? \\?`([a-z0-9_]+)\\?`")
ANSWERS: dict[str, JsonObject] = {
    "elicitation/create": {
        "action": "accept",
        "content": {"name": "Ada", "color": "red", "ok": True, "context": "tea"},
    },
    "sampling/createMessage": {"role": "assistant", "model": "m", "content": {"type": "text", "text": "Paris"}},
    "roots/list": {"roots": [{"uri": "file:///here"}]},
}


class Caller(NoLink):
    """A caller that keeps what it hears and answers what it is asked."""

    def __init__(self, *, can: bool = True) -> None:
        self.heard: list[tuple[str, Any]] = []
        self._can = can

    async def progress(self, progress: float, total: float | None, message: str | None) -> None:
        self.heard.append(("progress", progress))

    async def log(self, level: str, data: JsonValue, logger: str | None) -> None:
        self.heard.append((level, data))

    async def ask(self, method: str, params: JsonObject) -> JsonObject:
        if not self._can:
            raise AskRefused(method)
        self.heard.append((method, params))
        return ANSWERS[method]


class World:
    """The server, and what it told its owner."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.server = ConformanceServer(
            list_changed=self.told.append, resource_updated=self.told.append, pause=self._no_pause
        )
        self.entries = {(entry.kind, entry.name): entry for entry in self.server.load()}

    async def _no_pause(self, seconds: float) -> None:
        await asyncio.sleep(0)

    async def run(
        self,
        kind: CallKind,
        name: str,
        arguments: JsonObject | None = None,
        *,
        caller: Caller | None = None,
        era: Era = "handshake",
        capabilities: JsonObject = ABLE,
        round: Round | None = None,
    ) -> Answer | InputRequired:
        return await self.server.execute(
            Call(
                id="c",
                run="r",
                principal=Principal(kind="User", id="1"),
                client=ClientFacts(era=era, capabilities=capabilities),
                kind=kind,
                name=name,
                arguments=arguments or {},
                profile="conformance",
                link=caller or Caller(),
                round=round,
                tool=self.find(kind, name),
            )
        )

    def find(self, kind: CallKind, name: str) -> Entry:
        return self.entries.get((kind, name)) or self.entries["resource_template", TEMPLATE]

    async def to_the_end(self, kind: CallKind, name: str) -> tuple[Answer, int]:
        """Answer every question of a modern call; return the answer and how many rounds it took."""
        number, given = 1, None
        while True:
            result = await self.run(kind, name, {"prompt": "?", "message": "?"}, era="modern", round=given)
            if isinstance(result, Answer):
                return result, number
            number += 1
            assert number < 10
            responses = {key: ANSWERS[request["method"]] for key, request in result.requests.items()}
            state = json.loads(json.dumps(result.state))  # as it comes out of a seal
            given = Round(number=number, intent_seq=1, state=state, responses=responses)


@pytest.fixture
def world() -> World:
    return World()


def words(result: Answer | InputRequired) -> str:
    assert isinstance(result, Answer)
    text: str = result.body["content"][0]["text"]
    return text


def asks_by_rounds(name: str) -> bool:
    return "input_required" in name or name in ("test_streaming_elicitation", "test_missing_capability")


async def test_every_tool_and_prompt_that_does_not_ask_by_rounds_answers_at_once(world: World) -> None:
    arguments = {"prompt": "?", "message": "?", "region": "eu", "arg1": "a", "arg2": "b", "resourceUri": "test://x"}
    for kind, name in world.entries:
        if kind == "tool" and not asks_by_rounds(name):
            assert isinstance(await world.run("tool", name, arguments), Answer), name
        if kind == "prompt" and not asks_by_rounds(name):
            assert isinstance(await world.run("prompt", name, arguments), Answer), name


async def test_resources_hold_what_the_suite_reads(world: World) -> None:
    static = await world.run("resource", STATIC_TEXT)
    binary = await world.run("resource", STATIC_BINARY)
    filled = await world.run("resource", "test://template/123/data")
    assert isinstance(static, Answer) and isinstance(binary, Answer) and isinstance(filled, Answer)
    assert static.body["contents"][0]["text"] == "This is the content of the static text resource."
    assert binary.body["contents"][0]["blob"]
    assert json.loads(filled.body["contents"][0]["text"])["data"] == "Data for ID: 123"


async def test_progress_and_logs_come_in_order(world: World) -> None:
    caller = Caller()
    await world.run("tool", "test_tool_with_progress", caller=caller)
    await world.run("tool", "test_tool_with_logging", caller=caller)
    assert caller.heard[:3] == [("progress", 0), ("progress", 50), ("progress", 100)]
    assert [heard for heard, _ in caller.heard[3:]] == ["info"] * 3


async def test_a_handshake_client_is_asked_by_push_and_one_that_cannot_gets_a_tool_error(world: World) -> None:
    asked = Caller()
    assert "Paris" in words(await world.run("tool", "test_sampling", {"prompt": "capital?"}, caller=asked))
    assert asked.heard[0][0] == "sampling/createMessage"

    refused = await world.run("tool", "test_elicitation", {"message": "?"}, caller=Caller(can=False))
    assert isinstance(refused, Answer) and refused.is_error


@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        ("test_elicitation", 2),
        ("test_streaming_elicitation", 2),
        ("test_input_required_result_elicitation", 2),
        ("test_input_required_result_sampling", 2),
        ("test_input_required_result_list_roots", 2),
        ("test_input_required_result_request_state", 2),
        ("test_input_required_result_tampered_state", 2),
        ("test_input_required_result_multiple_inputs", 2),
        ("test_input_required_result_multi_round", 3),
        ("test_input_required_result_capabilities", 2),
    ],
)
async def test_a_modern_client_is_asked_by_rounds(world: World, name: str, rounds: int) -> None:
    result, took = await world.to_the_end("tool", name)
    assert (took, result.is_error) == (rounds, False)


async def test_a_prompt_can_ask_too(world: World) -> None:
    result, took = await world.to_the_end("prompt", "test_input_required_result_prompt")
    assert took == 2 and "tea" in json.dumps(result.body)


@pytest.mark.parametrize("responses", [{}, {"other": ANSWERS["elicitation/create"]}, {"user_name": 12345}])
async def test_missing_and_malformed_answers_are_asked_for_again(world: World, responses: JsonObject) -> None:
    again = Round(number=2, intent_seq=1, responses=responses)
    result = await world.run("tool", "test_input_required_result_elicitation", era="modern", round=again)
    assert isinstance(result, InputRequired) and list(result.requests) == ["user_name"]


async def test_a_state_that_is_not_its_own_is_not_taken(world: World) -> None:
    forged = Round(number=2, intent_seq=1, state="x", responses={"confirm": ANSWERS["elicitation/create"]})
    for name in ("test_input_required_result_request_state", "test_input_required_result_tampered_state"):
        assert isinstance(await world.run("tool", name, era="modern", round=forged), InputRequired)


async def test_only_what_the_caller_declared_is_asked_except_by_the_tool_that_needs_it(world: World) -> None:
    able: JsonObject = {"sampling": {}}
    result = await world.run("tool", "test_input_required_result_capabilities", era="modern", capabilities=able)
    assert isinstance(result, InputRequired)
    assert [request["method"] for request in result.requests.values()] == ["sampling/createMessage"]

    # What the client did not declare is asked for all the same: refusing that (-32021) is the gateway's part.
    asked = await world.run("tool", "test_missing_capability", era="modern", capabilities={})
    assert isinstance(asked, InputRequired)


async def test_triggers_tell_the_owner_what_changed(world: World) -> None:
    for name in ("test_trigger_tool_change", "test_trigger_prompt_change", "test_trigger_resource_update"):
        await world.run("tool", name)
    assert world.told == ["tools", "prompts", WATCHED]


async def test_completion_suggests_what_fits(world: World) -> None:
    entry = world.entries["prompt", "test_prompt_with_arguments"]
    argument: JsonObject = {"name": "arg1", "value": "par"}
    suggested = await world.server.complete(Principal(kind="User", id="1"), entry, argument, {})
    assert suggested["values"] == ["paris", "park", "party"]


@pytest.mark.node
def test_everything_that_the_installed_suite_demands_is_offered(world: World) -> None:
    """The suite's own sources are the source of truth; its descriptions name what a server has to have."""
    node = needed_node()
    offered = {name for _, name in world.entries}
    for package in ("conformance-stable", "conformance-next"):
        source = node.script(package).read_text()
        demanded = set(DEMANDED.findall(source))
        assert len(demanded) > 5, package
        assert demanded <= offered, package
