"""E10: where an artifact came from and what an event went into, with the events that say so, and nothing blurred."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.call import Answer, Call
from omni_mcp.contracts.events import EgressConnection, Message, draft
from omni_mcp.contracts.json import JsonObject
from omni_mcp.testing import ALLOW_ALL, ANN, BOB, Canary, LocalGateway, MemoryClient, home_in, local_gateway
from tests.evidence.conftest import Evidence

LARGE = "pears and quinces " * 5000


class World:
    """Tools that fetch, make and look: `make` leaves an artifact, whatever it is given."""

    def __init__(self, directory: Path) -> None:
        self.canary = Canary(directory / "touched")
        self.log: Any = None

        async def make(call: Call) -> Answer:
            text = f"{call.arguments.get('word', '')} {LARGE}"
            return Answer(body={"content": [{"type": "text", "text": text}], "isError": False}, where="remote")

        async def fetch(call: Call) -> Answer:
            reached = EgressConnection(host="fruit.example", port=443, method="CONNECT", verdict="open")
            self.log.append(call.run, draft(reached, actor="gateway", call=call.id), parent=call.parent)
            return Answer(body={"content": [{"type": "text", "text": "news"}], "isError": False}, where="remote")

        self.canary.tool("make", make)
        self.canary.tool("fetch", fetch)
        self.canary.tool("look")


async def _made(client: MemoryClient, here: LocalGateway, **arguments: str) -> tuple[str, str]:
    """Make an artifact; returns its sha256 and the call that left it."""
    await client.call("canary__make", arguments)
    ended = [
        event for event in await here.events() if event.kind == "tool_result" and (event.payload or {})["artifact"]
    ]
    assert ended[-1].payload is not None and ended[-1].call is not None
    return ended[-1].payload["artifact"]["sha256"], ended[-1].call


@dataclass
class Told:
    """A session: first fetched, then made a pear, then looked at it, then made a pie of it; bob made the same pie."""

    evidence: Evidence
    run: str
    pear: str
    pie: str
    calls: list[str]


async def _session(directory: Path) -> Told:
    world = World(directory)
    async with local_gateway(ALLOW_ALL, canary=world.canary, directory=directory, cells=False) as here:
        world.log = here.gateway.log
        async with here.client(version="2025-11-25") as client:
            run = client.run or ""
            said = draft(Message(text="make me a pie"), actor=ANN.key, kind="user_message")
            await here.gateway.log.append(run, said).durable()
            await client.call("canary__fetch")
            pear, _ = await _made(client, here, word="pear")
            await client.call("canary__look", {"at": f"artifact://{pear}"})
            pie, _ = await _made(client, here, word="pie", of=pear)
            calls = [
                event.call or "" for event in await here.events() if event.kind == "tool_call" and event.run == run
            ]
        async with here.client(version="2025-11-25", principal=BOB) as client:
            await client.call("canary__look", {"at": pear})
    return Told(Evidence(home_in(directory), run, run), run, pear, pie, calls)


def _ways(found: JsonObject) -> list[list[tuple[str, str]]]:
    return [[(step["kind"], step["id"]) for step in path["steps"]] for path in found["paths"]]


async def test_why_lists_each_path_from_the_artifact_by_its_call_to_its_sources(tmp_path: Path) -> None:
    told = await _session(tmp_path)
    _, make_pear, _, make_pie = told.calls
    found = told.evidence.json("why", told.pie)
    exact = [path for path in found["paths"] if path["certainty"] == "exact"]
    ways = [[(step["kind"], step["id"]) for step in path["steps"]] for path in exact]
    asked = {call: f"run://{told.run}/{seq}" for call, seq in _asked(told).items()}
    assert ways == [
        [("call", make_pie), ("request", asked[make_pie])],
        [("call", make_pie), ("artifact", told.pear), ("call", make_pear), ("request", asked[make_pear])],
    ]
    assert [step["how"] for step in exact[1]["steps"]] == ["left by", "its arguments name", "left by", "asked by"]
    for path in found["paths"]:
        assert all(step["events"] for step in path["steps"]), "each step names its events"
    [first] = [step for step in exact[0]["steps"] if step["kind"] == "call"]
    assert [event["seq"] for event in first["events"]] == _seqs(told, make_pie)


async def test_what_was_only_seen_before_is_possible_and_never_exact(tmp_path: Path) -> None:
    told = await _session(tmp_path)
    fetch, _, look, make_pie = told.calls
    found = told.evidence.json("why", told.pie)
    possible = [path["steps"] for path in found["paths"] if path["certainty"] == "possible"]
    hosts = [[step["id"] for step in steps] for steps in possible if steps[-1]["kind"] == "host"]
    assert hosts, "what was fetched before may have got into it"
    for steps in possible:
        assert "possible" in {step["certainty"] for step in steps}
    assert {steps[-1]["kind"] for steps in possible} >= {"message", "host", "request"}
    seen = {step["id"] for steps in possible for step in steps if step["certainty"] == "possible"}
    assert {fetch, look} <= seen and make_pie not in seen


async def test_influence_lists_what_came_of_an_event(tmp_path: Path) -> None:
    told = await _session(tmp_path)
    fetch, make_pear, look, make_pie = told.calls
    seq = _asked(told)[make_pear]
    found = told.evidence.json("influence", f"{told.run}/{seq}")
    ends = {(step["kind"], step["id"], path["certainty"]) for path in found["paths"] for step in path["steps"]}
    assert ("artifact", told.pear, "exact") in ends and ("artifact", told.pie, "exact") in ends
    assert ("call", look, "exact") in ends and ("call", make_pie, "exact") in ends
    assert ("call", fetch, "exact") not in ends and not [one for one in ends if one[1] == fetch], "it came before"
    of_fetch = told.evidence.json("influence", f"run://{told.run}/{_seqs(told, fetch)[-1]}")
    assert {path["certainty"] for path in of_fetch["paths"]} == {"possible"}
    assert {make_pear, look, make_pie} <= {step["id"] for path in of_fetch["paths"] for step in path["steps"]}


def _asked(told: Told) -> dict[str, int]:
    return {event.call or "": event.seq for event in told.evidence.events(told.run) if event.kind == "tool_call"}


def _seqs(told: Told, call: str) -> list[int]:
    kinds = ("tool_call", "tool_result")
    return [e.seq for e in told.evidence.events(told.run) if e.call == call and e.kind in kinds]


async def test_people_get_a_tree_that_says_what_is_only_possible(tmp_path: Path) -> None:
    told = await _session(tmp_path)
    text = told.evidence.omni("why", f"artifact://{told.pie}").stdout
    assert "├─ (exact) its arguments name artifact" in text and "(possible) asked after" in text
    assert "fruit.example:443" in text
    text = told.evidence.omni("influence", f"{told.run[:14]}/2").stdout
    assert "(possible) seen before the call" in text


async def test_erased_steps_are_shown_as_tombstones(tmp_path: Path) -> None:
    told = await _session(tmp_path)
    _, make_pear, _, _ = told.calls
    assert told.evidence.omni("erase", "--run", told.run, "--call", make_pear, "--yes").exit_code == 0
    found = told.evidence.json("why", told.pear)
    assert [[step["how"] for step in path["steps"]] for path in found["paths"]] == [["erased by"]]
    found = told.evidence.json("why", told.pie)
    gone = [step for path in found["paths"] for step in path["steps"] if step.get("note") == "its text was erased"]
    assert make_pear in {step["id"] for step in gone}, "that there was such a call stays"
    event = told.evidence.json("influence", f"{told.run}/{_asked(told)[make_pear]}")
    assert event["of"]["note"] == "its text was erased"
    assert told.evidence.omni("erase", "--run", told.run, "--yes").exit_code == 0
    found = told.evidence.json("why", told.pie)
    assert [[(step["how"], step["note"]) for step in path["steps"]] for path in found["paths"]] == [
        [("erased by", "its text was erased")]
    ]


async def test_what_is_not_on_record_or_no_event_is_refused_with_the_next_step(tmp_path: Path) -> None:
    told = await _session(tmp_path)
    missing = told.evidence.json("why", "0" * 64, code=1)
    assert "no such artifact" in missing["error"]["message"]
    assert "no such event" in told.evidence.json("influence", f"{told.run}/999", code=1)["error"]["message"]
    assert told.evidence.omni("influence", "x").exit_code == 2


async def test_artifacts_that_name_each_other_end_the_search(tmp_path: Path) -> None:
    """A cycle: each call names the artifact that the other left, because both leave the same two."""
    world = World(tmp_path)
    async with local_gateway(ALLOW_ALL, canary=world.canary, directory=tmp_path, cells=False) as here:
        async with here.client(version="2025-11-25") as client:
            one, _ = await _made(client, here, word="one")
            two, _ = await _made(client, here, word="two", of=one)
            again, _ = await _made(client, here, word="one", of=two)
            assert again == one
    evidence = Evidence(home_in(tmp_path), "", "")
    found = evidence.json("why", one)
    assert len(found["paths"]) < 50
    assert "told above" in {step.get("note") for path in found["paths"] for step in path["steps"]}
    text = evidence.omni("influence", f"{found['paths'][0]['steps'][0]['events'][0]['run']}/1")
    assert text.exit_code == 0


@pytest.mark.parametrize("count", [40])
async def test_a_long_chain_is_followed_to_a_limit_and_says_so(tmp_path: Path, count: int) -> None:
    world = World(tmp_path)
    async with local_gateway(ALLOW_ALL, canary=world.canary, directory=tmp_path, cells=False) as here:
        async with here.client(version="2025-11-25") as client:
            last, _ = await _made(client, here, word="0")
            first = last
            for number in range(1, count):
                last, _ = await _made(client, here, word=str(number), of=last)
    evidence = Evidence(home_in(tmp_path), "", "")
    found = evidence.json("why", last)
    assert found["more"] and len(found["paths"]) <= 200
    assert "not followed further" in {step.get("note") for path in found["paths"] for step in path["steps"]}
    assert evidence.json("why", first)["paths"]


async def test_what_went_through_the_memory_is_followed_both_ways(tmp_path: Path) -> None:
    """A pear's answer is promoted to an item, recalled, and named by the call that makes a pie of it."""
    world = World(tmp_path)
    async with local_gateway(ALLOW_ALL, canary=world.canary, directory=tmp_path, cells=False) as here:
        world.log = here.gateway.log
        async with here.client(version="2025-11-25") as client:
            run = client.run or ""
            await client.call("canary__fetch")
            fetched = [event for event in await here.events() if event.kind == "tool_result" and event.run == run][-1]
            kept = await client.call("memory__promote", {"run": run, "seq": fetched.seq})
            item = kept["structuredContent"]["id"]
            recalled = await client.call("memory__recall", {"query": "news"})
            assert item in str(recalled["structuredContent"])
            pie, _ = await _made(client, here, word="pie", of=item)
    evidence = Evidence(home_in(tmp_path), run, run)
    exact = [path["steps"] for path in evidence.json("why", pie)["paths"] if path["certainty"] == "exact"]
    hows = [[(step["kind"], step["how"]) for step in steps] for steps in exact]
    through = [("call", "left by"), ("memory", "its arguments name"), ("call", "made of the answer of")]
    assert [*through, ("host", "fetched from")] in hows
    found = evidence.json("influence", f"{run}/{fetched.seq}")
    sure = [path["steps"] for path in found["paths"] if path["certainty"] == "exact"]
    ends = {(step["kind"], step["id"]) for steps in sure for step in steps}
    assert ("memory", item) in ends and ("artifact", pie) in ends


async def test_a_run_that_another_began_is_its_descendant(tmp_path: Path) -> None:
    async with local_gateway(ALLOW_ALL, directory=tmp_path, cells=False) as here:
        log = here.gateway.log
        parent = await log.create_run(kind="session", principal=ANN, actor=ANN.key, client={})
        child = await log.create_run(kind="session", principal=ANN, actor=ANN.key, client={}, parent_run=parent)
        hidden = await log.create_run(kind="session", principal=BOB, actor=BOB.key, client={}, parent_run=parent)
        mine = await log.influence(parent, 1, principal=ANN.key)
        everybodys = await log.influence(parent, 1)
    assert [step["id"] for path in mine["paths"] for step in path["steps"]] == [child]
    assert [step["id"] for path in everybodys["paths"] for step in path["steps"]] == [child, hidden]
