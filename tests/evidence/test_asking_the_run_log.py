"""X09, R05: a caller asks what happened to its calls, what is left to it and where things came from; its own only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from omni_mcp.config import ApprovalSettings, LimitSettings, Settings
from omni_mcp.contracts.call import Answer, Call
from omni_mcp.contracts.json import JsonObject
from omni_mcp.testing import ALLOW_ALL, ANN, BOB, Canary, LocalGateway, MemoryClient, error_of, local_gateway

BOTH = pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
SOME = """
@id("log") permit (principal, action, resource in Omni::Server::"runs");
@id("echo") permit (principal, action, resource == Omni::Tool::"canary__echo");
@id("large") permit (principal, action, resource == Omni::Tool::"canary__large");
@id("never") forbid (principal, action, resource == Omni::Tool::"canary__hidden");
"""


def _canary(canary: Canary) -> Canary:
    async def large(call: Call) -> Answer:
        text = f"{call.arguments.get('word')} " * 20_000
        return Answer(body={"content": [{"type": "text", "text": text}], "isError": False}, where="remote")

    canary.tool("echo", schema={"type": "object", "properties": {"word": {"type": "string"}, "of": {"type": "string"}}})
    canary.tool("large", large)
    canary.tool("hidden")
    return canary


async def _ask(client: MemoryClient, tool: str, **arguments: Any) -> JsonObject:
    result = await client.call(f"runs__{tool}", arguments)
    assert not result["isError"], result
    found: JsonObject = result["structuredContent"]
    return found


async def _read(client: MemoryClient, uri: str) -> Any:
    reply = await client.request("resources/read", {"uri": uri})
    return orjson.loads(reply["result"]["contents"][0]["text"])


@BOTH
async def test_the_newest_refusal_is_explained_with_its_next_step(canary: Canary, version: str) -> None:
    async with local_gateway(SOME, canary=_canary(canary), cells=False) as here, here.client(version=version) as client:
        nothing = await client.call("runs__why_refused")
        assert nothing["isError"] and "no call of yours was refused" in nothing["content"][0]["text"]
        first = error_of(await client.call("canary__echo", {"word": 7}))
        told = await _ask(client, "why_refused")
        assert (told["code"], told["call"]) == ("invalid_arguments", first["call"])
        second = error_of(await client.call("canary__hidden"))
        await client.call("canary__echo", {"word": "fine"})
        told = await _ask(client, "why_refused")
        assert (told["code"], told["call"], told["dispatched"]) == ("policy_denied", second["call"], False)
        assert told["meaning"] and told["next_step"] and told["retry"] == "after_change"
        assert (await _ask(client, "why_refused", call=first["call"]))["code"] == "invalid_arguments"


@BOTH
async def test_a_forbidden_tool_and_a_missing_one_are_explained_alike(canary: Canary, version: str) -> None:
    async with local_gateway(SOME, canary=_canary(canary), cells=False) as here, here.client(version=version) as client:
        stories = []
        for name in ("canary__hidden", "canary__nobody"):
            await client.call(name, {"x": 1})
            story = await _ask(client, "why_refused")
            text = orjson.dumps(story).decode()
            for word in ("never", "rule", "forbid", "no accepted definition", "sha256"):
                assert word not in text.replace(story["next_step"], "").replace(story["meaning"], "")
            stories.append({k: v for k, v in story.items() if k not in ("call", "at", "name", "message")})
            assert story["message"] == f"'{name}' is not available to you"
        assert stories[0] == stories[1]


@BOTH
async def test_what_is_left_what_was_tried_and_what_is_allowed(canary: Canary, version: str) -> None:
    limits = LimitSettings(calls_per_minute=50, events_per_run=1000, artifact_bytes_per_principal=2_000_000)
    settings = Settings(limits=limits, approvals=ApprovalSettings(wait_s=0))
    async with local_gateway(SOME, canary=_canary(canary), settings=settings, cells=False) as here:
        async with here.client(version=version) as client:
            await client.call("canary__echo", {"word": "one"})
            await client.call("canary__hidden")
            await client.call("canary__large", {"word": "pear"})
            told = await _ask(client, "runtime_query")
            outcomes = [(call["name"], call["outcome"]) for call in told["tried"]]
            listed = {tool["name"] for tool in await client.listed("tools")}
            run = await _ask(client, "read", run=told["run"])
    assert outcomes == [
        ("canary__large", "answered"),
        ("canary__hidden", "policy_denied"),
        ("canary__echo", "answered"),
    ]
    assert set(told["allowed"]) == listed and told["more_allowed"] == 0
    budget = told["budget"]
    assert budget["calls_per_minute"] == {"used": 4, "limit": 50, "left": 46}, "asking is a call too"
    assert budget["pending"]["used"] == 1
    assert budget["events"] == {"used": run["run"]["last_seq"], "limit": 1000, "left": 1000 - run["run"]["last_seq"]}
    assert 60_000 < budget["artifact_bytes"]["used"] == 2_000_000 - budget["artifact_bytes"]["left"]


async def test_what_was_tried_is_bounded_and_says_that_there_is_more(canary: Canary) -> None:
    async with (
        local_gateway(SOME, canary=_canary(canary), cells=False) as here,
        here.client(version="2025-11-25") as client,
    ):
        for _ in range(5):
            await client.call("canary__echo")
        told = await _ask(client, "runtime_query", calls=2)
        assert len(told["tried"]) == 2 and told["more_tried"]
        assert (await _ask(client, "runtime_query", calls=0))["tried"] == []
        assert not (await _ask(client, "runtime_query", calls=5))["more_tried"]
        assert (await client.call("runs__runtime_query", {"calls": 1000}))["isError"]


@BOTH
async def test_provenance_is_asked_for_by_tool_and_by_resource_alike(canary: Canary, version: str) -> None:
    async with local_gateway(SOME, canary=_canary(canary), cells=False) as here, here.client(version=version) as client:
        sha256, place = await _pear(here, client)
        asked = await client.call("canary__echo", {"of": sha256})
        assert not asked["isError"]
        why = await _ask(client, "why", artifact=sha256)
        assert why["paths"][0]["certainty"] == "exact" and why["paths"][0]["steps"][0]["kind"] == "call"
        assert await _ask(client, "why", artifact=f"artifact://{sha256}") == why
        assert await _read(client, f"artifact://{sha256}/why") == why
        went = await _ask(client, "influence", run=place["run"], seq=place["seq"])
        kinds = [[step["kind"] for step in path["steps"]] for path in went["paths"] if path["certainty"] == "exact"]
        assert ["artifact", "call"] in kinds
        assert await _read(client, f"run://{place['run']}/{place['seq']}/influence") == went
        event = await _read(client, f"run://{place['run']}/{place['seq']}")
        assert (event["kind"], event["seq"]) == ("tool_result", place["seq"]) and "detail" not in event["payload"]


async def _pear(here: LocalGateway, client: MemoryClient) -> tuple[str, JsonObject]:
    await client.call("canary__large", {"word": "pear"})
    ended = [
        event for event in await here.events() if event.kind == "tool_result" and (event.payload or {})["artifact"]
    ]
    assert ended[-1].payload is not None
    return ended[-1].payload["artifact"]["sha256"], {"run": ended[-1].run, "seq": ended[-1].seq}


@BOTH
async def test_another_principal_gets_the_answer_of_something_missing_by_every_tool_and_resource(
    canary: Canary, version: str
) -> None:
    """S07, X09: each thing of ann's beside one that is nowhere; bob's answers must be the same but for the name."""
    nowhere = {
        "sha": "0" * 64,
        "run": "01a1fee4-e0ca-7126-8998-000000000000",
        "call": "01a1fee4-0000-7126-8998-000000000000",
    }
    async with local_gateway(SOME, canary=_canary(canary), cells=False) as here:
        async with here.client(version=version) as ann:
            sha256, place = await _pear(here, ann)
            call = error_of(await ann.call("canary__hidden"))["call"]
        hers = {"sha": sha256, "run": place["run"], "call": call}
        async with here.client(version=version, principal=BOB) as bob:
            answers = []
            for thing in (hers, nowhere):
                told: list[Any] = []
                for tool, arguments in (
                    ("why", {"artifact": thing["sha"]}),
                    ("influence", {"run": thing["run"], "seq": place["seq"]}),
                    ("why_refused", {"call": thing["call"]}),
                    ("explain", {"call": thing["call"]}),
                    ("runtime_query", {"run": thing["run"]}),
                    ("read", {"run": thing["run"]}),
                    ("list", {"before": thing["run"]}),
                    ("search", {"query": "pear", "run": thing["run"]}),
                ):
                    told.append(await bob.call(f"runs__{tool}", arguments))
                for uri in (
                    f"artifact://{thing['sha']}", f"artifact://{thing['sha']}/why", f"run://{thing['run']}",
                    f"run://{thing['run']}/{place['seq']}", f"run://{thing['run']}/{place['seq']}/influence",
                ):  # fmt: skip
                    told.append((await bob.request("resources/read", {"uri": uri}))["error"])
                text = orjson.dumps([_bare(one) for one in told]).decode()
                for name, value in thing.items():
                    text = text.replace(str(value), name)
                answers.append(text)
            assert answers[0] == answers[1]
            nothing = await bob.call("runs__why_refused")
            assert "no call of yours was refused" in nothing["content"][0]["text"], "her refusal is not his"
            his = error_of(await bob.call("canary__hidden"))["call"]
            async with here.client(version=version) as again:
                await again.call("canary__hidden")
            assert (await _ask(bob, "why_refused"))["call"] == his, "hers came later"
            assert (await _ask(bob, "search", query="pear"))["events"] == []


def _bare(answer: JsonObject) -> JsonObject:
    """An answer without the id of the call that asked, which differs each time."""
    return {key: value for key, value in answer.items() if key not in ("_meta", "data")}


async def test_asking_is_recorded_in_the_gateways_run_with_the_reader_as_actor_and_tells_nobody(
    canary: Canary, tmp_path: Path
) -> None:
    async with (
        local_gateway(ALLOW_ALL, canary=_canary(canary), cells=False) as here,
        here.client(version="2025-11-25") as client,
    ):
        sha256, place = await _pear(here, client)
        before = len([event for event in await here.events() if event.run == client.run])
        heard = here.gateway.log.subscribe()
        for tool, arguments in (
            ("why", {"artifact": sha256}), ("influence", place), ("runtime_query", {}), ("list", {}),
            ("search", {"query": "pear"}),
        ):  # fmt: skip
            await _ask(client, tool, **arguments)
        await _read(client, f"run://{place['run']}/1")
        await client.call("canary__echo")
        first = await anext(heard)
        while first[2]:
            first = await anext(heard)
        assert first[0] == client.run, "the first that is told to anybody is the call that was no read"
        events = await here.events()
        reads = [event for event in events if event.kind == "tool_call" and event.run != client.run]
        names = [(event.payload or {})["name"] for event in reads]
        assert names == [
            "runs__why",
            "runs__influence",
            "runs__runtime_query",
            "runs__list",
            "runs__search",
            f"run://{place['run']}/1",
        ]
        assert {event.actor for event in reads} == {ANN.key}
        kinds = {run["id"]: run["kind"] for run in await here.gateway.log.runs()}
        assert {kinds[event.run] for event in reads} == {"gateway"}
        assert len([event for event in events if event.run == client.run]) == before + 3
        kept = [
            (event.payload or {})["result"]
            for event in events
            if event.kind == "tool_result" and event.run != client.run
        ]
        assert kept == [None] * len(reads), "what was read is not kept a second time"
