"""What decisions of a run rest on is recorded once; everybody who reads one has all of it. Source: docs/run-log.md."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import orjson
import pytest

from omni_mcp.contracts.errors import QuotaExceeded
from omni_mcp.contracts.events import CODES, Draft, PolicyDecided, RunEvent, draft, stated
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.premises import OWN, SHARED, Premises, own_context
from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.engines.runlog.difference import comparable
from omni_mcp.engines.runlog.erase import Eraser
from omni_mcp.engines.runlog.keys import find_keys
from omni_mcp.engines.runlog.premises import PREMISES_OF_A_RUN
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.engines.runlog.store import SqliteRunLog, open_ledger
from omni_mcp.engines.runlog.verify import verify_database
from omni_mcp.testing import ALLOW_ALL, Canary, LocalGateway, local_gateway
from tests.databases import locked
from tests.runlog.conftest import SECRET, Place, new_run, said

FACTS = {
    "policy_version": "p1", "gateway_version": "test", "server": "tools", "tool": "files_read", "tool_version": "1",
    "definition_digest": "sha256:d", "executor": "mcp_remote", "sandbox_profile": "default",
    "sandbox_profile_digest": None, "isolation_demanded": "full",
}  # fmt: skip
PROJECT = {"__entity": {"type": "Omni::Project", "id": "default"}}
REQUEST: JsonObject = {
    "principal": {"type": "Omni::User", "id": "anna"}, "action": {"type": "Omni::Action", "id": "call_tool"},
    "resource": {"type": "Omni::Tool", "id": "tools__files_read"}, "entities": [{"uid": "here"}],
}  # fmt: skip


def premises(word: str = "here") -> Premises:
    """Make premises that say *word*."""
    request = {**REQUEST, "entities": [{"uid": word}], "context": {"project": PROJECT}}
    return Premises({"code": "decision_premises", **FACTS, "request": request})


def context(run: str, number: int) -> JsonObject:
    return {
        "project": PROJECT, "run": run, "name": "tools__files_read", "args_digest": f"hmac-sha256:{number}",
        "args_bytes": number, "egress_hosts": ['a",b', ',"request":'], "history": {},
    }  # fmt: skip


def decision(run: str, number: int, rests_on: Premises) -> Draft:
    own = {"context": own_context(context(run, number))}
    payload = stated(PolicyDecided, verdict="allow", rules=('"request":', "r"), errors=('e,"request":1',), request=own)
    return draft(payload, actor="gateway", call=f"c{number}", premises=rests_on)


def whole(run: str, number: int) -> JsonObject:
    """What a decision says that holds everything itself, without the seq of its premises."""
    request = {**REQUEST, "context": context(run, number)}
    payload = PolicyDecided(
        verdict="allow", rules=('"request":', "r"), errors=('e,"request":1',), request=request, **FACTS
    )  # fmt: skip
    told: JsonObject = orjson.loads(canonical(payload.model_dump(exclude={"premises"})))
    return told


def stored(place: Place) -> list[tuple[str, bytes]]:
    """Return code and text of each event as they lie in the file."""
    with closing(sqlite3.connect(place.file)) as connection:
        rows = connection.execute("SELECT coalesce(e.code, e.kind), t.body FROM events e JOIN texts t USING (gid)")
        return [(code, body[16:]) for code, body in rows]


def decisions(events: list[RunEvent]) -> list[JsonObject]:
    return [event.payload or {} for event in events if event.code == "policy_decided"]


async def decide(log: SqliteRunLog, run: str, count: int, rests_on: Premises) -> None:
    for number in range(count):
        await log.append(run, decision(run, number, rests_on)).durable()


async def test_each_decision_says_everything_to_whoever_reads_it_and_the_second_is_stored_short(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log)
        await decide(log, run, 4, premises())
        events = [event async for event in log.read(run)]
        found = await log.search("files_read", run=run)
    codes = ["run_created", "policy_decided", "decision_premises", *["policy_decided"] * 3]
    assert [event.code or event.kind for event in events] == codes
    assert [told.pop("premises") for told in decisions(events)] == [None, 3, 3, 3]
    assert decisions(events) == [whole(run, number) for number in range(4)]
    assert decisions([event for event in found if event.seq == 2])[0]["request"] == events[1].payload["request"]  # type: ignore[index]
    sizes = [len(text) for code, text in stored(place) if code == "policy_decided"]
    assert max(sizes[1:]) < sizes[0] / 2
    assert verify_database(place.file, find_keys(place.keys)).ok
    assert all(text == canonical(orjson.loads(text)) for _, text in stored(place))
    with LogReader(place.file) as reader:
        assert decisions(reader.find_call("c3"))[0]["definition_digest"] == "sha256:d"
        assert decisions(reader.events(run, after=5))[0]["tool"] == "files_read"
        assert decisions(reader.events_since(5))[0]["tool"] == "files_read"


async def test_another_premise_another_run_and_another_life_of_the_gateway_begin_again(place: Place) -> None:
    async with place.open() as log:
        run, other = await new_run(log), await new_run(log)
        for number, said_by in enumerate([premises("a"), premises("b"), premises("a"), premises("b")]):
            await log.append(run, decision(run, number, said_by)).durable()
        await decide(log, other, 1, premises("a"))
    async with place.open() as log:
        await decide(log, run, 3, premises("a"))
        found = decisions([event async for event in log.read(run)])
        elsewhere = decisions([event async for event in log.read(other)])
    assert [told["premises"] for told in found] == [None, None, 4, 6, None, 9, 9]
    assert [told["request"]["entities"][0]["uid"] for told in found] == [*"abab", *"aaa"]
    assert [told["premises"] for told in elsewhere] == [None]


async def test_a_run_that_rests_on_ever_new_premises_forgets_the_oldest_and_says_them_again(log: SqliteRunLog) -> None:
    run = await new_run(log)
    many = [premises(f"p{number}") for number in range(PREMISES_OF_A_RUN + 1)]
    for number, rests_on in enumerate([*many, many[0], many[-1]]):
        await log.append(run, decision(run, number, rests_on)).durable()
    found = decisions([event async for event in log.read(run)])
    assert [told["premises"] is None for told in found] == [True] * (len(many) + 1) + [False]
    assert [told["request"]["entities"][0]["uid"] for told in found[-2:]] == ["p0", f"p{PREMISES_OF_A_RUN}"]


async def test_premises_of_a_group_that_could_not_be_written_are_not_taken_for_written(place: Place) -> None:
    rests_on = premises()
    async with place.open() as log:
        run = await new_run(log)
        await decide(log, run, 1, rests_on)
        with locked(place.file):
            lost = log.append(run, decision(run, 1, rests_on))
            with pytest.raises(Exception, match="cannot be written"):
                await lost.durable()
        for number in (2, 3, 4):
            await log.append(run, decision(run, number, rests_on)).durable()
        events = [event async for event in log.read(run)]
    seqs = {event.seq for event in events if event.code == "decision_premises"}
    assert seqs and {told["premises"] for told in decisions(events)} - {None} == seqs
    assert [told["definition_digest"] for told in decisions(events)] == ["sha256:d"] * 4
    assert verify_database(place.file, find_keys(place.keys)).ok


@pytest.mark.parametrize("limit", [2, 3, 4])
async def test_premises_count_as_an_event_of_their_run_and_never_pass_its_limit(place: Place, limit: int) -> None:
    async with place.open(events_per_run=limit) as log:
        run = await new_run(log)
        refused = 0
        for number in range(4):
            try:
                await log.append(run, decision(run, number, premises())).durable()
            except QuotaExceeded:
                refused += 1
        events = [event async for event in log.read(run)]
    assert len(events) == limit + 1 and events[-1].code == "quota_exceeded" and refused
    assert all(told["definition_digest"] == "sha256:d" for told in decisions(events))


async def test_a_secret_in_premises_is_masked_in_both_forms(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log)
        await decide(log, run, 3, premises(f"with {SECRET} inside"))
        events = [event async for event in log.read(run)]
    assert SECRET.encode() not in b"".join(text for _, text in stored(place))
    assert [told["request"]["entities"] for told in decisions(events)] == [[{"uid": "with [masked:staple] inside"}]] * 3
    assert [event.privacy for event in events if event.code][:2] == [("$.request.entities[0].uid",)] * 2


async def test_a_page_and_a_stream_show_callers_no_premises(log: SqliteRunLog) -> None:
    run = await new_run(log)
    await decide(log, run, 3, premises())
    page = orjson.loads(b"[%b]" % (await log.page_of_run(run, after=0, limit=100)).text)
    assert [line["payload"] for line in page if line["code"] == "decision_premises"] == [{"code": "decision_premises"}]
    assert {"verdict": "allow", "code": "policy_decided"} in [line["payload"] for line in page]
    assert not [line for line in page if "files_read" in str(line)]


async def test_runs_that_recorded_their_premises_at_other_times_compare_equal(place: Place) -> None:
    async with place.open() as log:
        straight, interrupted = await new_run(log), await new_run(log)
        await decide(log, straight, 4, premises())
        await decide(log, interrupted, 2, premises())
    async with place.open() as log:
        for number in (2, 3):
            await log.append(interrupted, decision(interrupted, number, premises())).durable()
        last = log.append(straight, said("end"), parent=6)
        await log.append(interrupted, said("end"), parent=6).durable()
        await last.durable()
        one, other = [[event async for event in log.read(run)] for run in (straight, interrupted)]
    assert [event.code for event in one] != [event.code for event in other]
    assert [event["seq"] for event in comparable(one)] == [1, 2, 3, 4, 5, 6]
    assert [event["payload"] for event in comparable(one)] == [event["payload"] for event in comparable(other)]


def test_every_field_of_a_decision_is_its_own_or_shared() -> None:
    assert {*OWN, *SHARED, "premises"} == PolicyDecided.model_fields.keys()
    assert not {*OWN} & {*SHARED}
    assert CODES["decision_premises"].model_fields.keys() == {*SHARED, "code", "request"}


@pytest.fixture
async def here(tmp_path: Any) -> AsyncIterator[LocalGateway]:
    canary = Canary(tmp_path / "touched")
    canary.tool("echo")
    canary.tool("forbidden")
    rules = ALLOW_ALL + '@id("no") forbid (principal, action, resource == Omni::Tool::"canary__forbidden");'
    async with local_gateway(rules, canary=canary, cells=False) as here:
        yield here


async def test_calls_of_a_gateway_have_whole_decisions_whichever_is_looked_at(here: LocalGateway) -> None:
    async with here.client() as client:
        for number in range(3):
            await client.call("canary__echo", {"n": number})
    found = decisions(await here.events())[-3:]
    facts = ("server", "tool", "tool_version", "definition_digest", "executor", "policy_version", "isolation_demanded")
    assert [told["premises"] is None for told in found] == [True, False, False]
    assert [{name: told[name] for name in facts} for told in found] == [{name: found[0][name] for name in facts}] * 3
    assert all(found[0][name] for name in facts)
    assert [told["request"]["entities"] for told in found] == [found[0]["request"]["entities"]] * 3
    assert len({told["request"]["context"]["args_digest"] for told in found}) == 3
    assert found[0]["request"].keys() == found[2]["request"].keys()
    assert found[0]["request"]["context"].keys() == found[2]["request"]["context"].keys()


async def test_a_caller_cannot_tell_a_forbidden_tool_from_a_missing_one_by_the_events_of_its_run(
    here: LocalGateway,
) -> None:
    kinds: list[list[str | None]] = []
    for name in ("canary__forbidden", "canary__missing"):
        async with here.client(version="2025-11-25") as client:
            assert client.run is not None
            for _ in range(3):
                await client.call(name)
            kinds.append([event.code or event.kind async for event in here.gateway.log.read(client.run)])
    assert kinds[0] == kinds[1]


async def test_premises_go_with_the_last_call_whose_decision_names_them(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log)
        await decide(log, run, 3, premises("xwolframitz"))
        ledger = open_ledger(place.file, place.keys, events_per_run=100_000).ledger
        with closing(ledger.connection), closing(BlobStore(place.directory / "artifacts")) as blobs:
            eraser = Eraser(ledger, place.file, blobs, by="operator:test")
            eraser.erase(run, call="c1", reason="asked for")
            named = decisions([event async for event in log.read(run)])[-1]
            eraser.erase(run, call="c0", reason="asked for")
            eraser.erase(run, call="c2", reason="asked for")
        left = [event.code for event in await log.search("xwolframitz")]
        bytes_left = [file.name for file in place.file.parent.glob("runlog.db*") if b"xwolframitz" in file.read_bytes()]
        await decide(log, run, 3, premises("xwolframitz"))
        again = decisions([event async for event in log.read(run)])

    assert named["request"]["entities"] == [{"uid": "xwolframitz"}], "others still rest on them"
    assert left == [] and bytes_left == []
    assert [told["request"]["entities"][0]["uid"] for told in again if told] == ["xwolframitz"] * 3
    assert verify_database(place.file, find_keys(place.keys)).ok
