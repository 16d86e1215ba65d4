"""A run is made again through the one chain: what differs is named, writes are left out, the policy decides anew."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.call import Answer, AskRefused, Call, InputRequired
from omni_mcp.contracts.manifest import Labels
from omni_mcp.replay.recorded import read_run
from omni_mcp.replay.rerun import Options, Report, rerun
from omni_mcp.testing import ALLOW_ALL, Canary, LocalGateway
from tests.replay.conftest import FORGETFUL, home_of, newest, recording

READS = Labels(read_only=True, destructive=False, egress=False, reads_private=False, reads_untrusted=False)
WRITES = Labels(read_only=False, destructive=False, egress=False, reads_private=False, reads_untrusted=False)
PASSWORD = "correct-horse-battery"


def said(text: str) -> Answer:
    return Answer(body={"content": [{"type": "text", "text": text}], "isError": False}, where="remote")


async def again(here: LocalGateway, **options: Any) -> Report:
    """Make the newest run of the gateway's home again."""
    run = (await here.gateway.log.runs(limit=50))[0]["id"]
    return await rerun(here.gateway, read_run(here.home, run), Options(by="operator:test", **options))


async def test_parity_is_found_and_the_new_run_says_whose_it_is_and_who_asked(canary: Canary, tmp_path: Path) -> None:
    canary.tool("look", labels=READS)
    canary.resource("note://{n}")
    canary.prompt("greet")
    async with recording(canary, tmp_path) as here:
        async with here.client() as client:
            await client.call("canary__look", {"n": 1})
            await client.request("resources/read", {"uri": "note://7"})
            await client.request("prompts/get", {"name": "canary__greet", "arguments": {"word": "x"}})
            await client.call("nowhere__at_all", {"n": 1})
        report = await again(here)
        events = [event async for event in here.gateway.log.read(report.replay or "")]

    assert report.parity and [one.ending for one in report.calls] == ["same"] * 4
    assert canary.touched == ["tool canary__look", "resource note://7", "prompt canary__greet"] * 2
    first = events[0]
    assert first.actor == "operator:test" and first.payload is not None
    assert first.payload["parent_run"] == report.run and first.payload["principal"] == 'User::"ann"@default'
    assert [event.kind for event in events].count("tool_call") == 4 and events[-1].code == "run_closed"


async def test_the_first_step_and_field_that_differ_are_named_and_nothing_follows(
    canary: Canary, tmp_path: Path
) -> None:
    async def count(call: Call) -> Answer:
        return said("same" if call.arguments.get("n") == 1 else str(len(canary.calls)))

    canary.tool("count", count, labels=READS)
    async with recording(canary, tmp_path) as here:
        async with here.client() as client:
            for number in (1, 2, 3):
                await client.call("canary__count", {"n": number})
        report = await again(here)

    assert not report.parity
    assert [one.ending for one in report.calls] == ["same", "differs"]
    difference = report.calls[1].difference
    assert difference is not None
    assert difference.path == "$.payload.result.content[0].text" and (difference.left, difference.right) == ("2", "5")


async def test_what_may_change_something_is_not_made_again_unless_told(canary: Canary, tmp_path: Path) -> None:
    canary.tool("write", labels=WRITES)
    canary.tool("look", labels=READS)
    async with recording(canary, tmp_path) as here:
        async with here.client() as client:
            await client.call("canary__write")
            await client.call("canary__look")
        report = await again(here)
        assert canary.touched.count("tool canary__write") == 1
        run = read_run(here.home, report.run)
        told = await rerun(here.gateway, run, Options(allow_writes=True))

    assert report.parity and [one.ending for one in report.calls] == ["skipped", "same"]
    assert report.calls[0].why == "it may change something"
    assert told.parity and canary.touched.count("tool canary__write") == 2


async def test_a_policy_that_says_no_now_is_named_before_and_obeyed_after(canary: Canary, tmp_path: Path) -> None:
    canary.tool("look", labels=READS)
    async with recording(canary, tmp_path) as here:
        async with here.client() as client:
            await client.call("canary__look")
        here.write_policy('@id("no") forbid (principal, action, resource);', "no.cedar")
        await here.gateway.reload()
        refused = await again(here)
        touched = canary.touched
        report = await again(here, accept_changes=True)

    assert refused.refused and not refused.parity and refused.replay is None
    assert [one.what for one in refused.changed] == ["policy_version"]
    assert canary.touched == touched == ["tool canary__look"]
    assert report.calls[0].difference is not None and report.calls[0].difference.path == "$.payload.rules[0]"


async def test_a_definition_that_changed_is_named(canary: Canary, tmp_path: Path) -> None:
    canary.tool("look", labels=READS)
    async with recording(canary, tmp_path) as here, here.client() as client:
        await client.call("canary__look")
    other = Canary(tmp_path / "other")
    other.tool("look", labels=READS, definition={"description": "Something else."})
    async with recording(other, tmp_path) as here:
        run = newest(tmp_path)
        refused = await rerun(here.gateway, run, Options())
        anyway = await rerun(here.gateway, run, Options(accept_changes=True))

    assert [(one.what, one.name) for one in refused.changed] == [("definition_digest", "canary__look")]
    assert other.touched == ["tool canary__look"] and anyway.parity


async def test_an_approval_is_not_used_again(canary: Canary, tmp_path: Path) -> None:
    rules = ALLOW_ALL + '@id("ask") @approval("required") forbid (principal, action, resource) unless '
    rules += "{ context has approval };"
    canary.tool("look", labels=READS)
    async with recording(canary, tmp_path, rules=rules) as here:
        async with here.client() as client:
            _, waiting = await client.start("tools/call", {"name": "canary__look", "arguments": {}})
            await here.until("approval_requested")
            here.answer(True)
            await waiting
        making = asyncio.create_task(again(here))
        await here.until("approval_requested", count=2)
        here.answer(False)
        report = await making

    assert canary.touched == ["tool canary__look"]
    assert report.calls[0].difference is not None and not report.parity


async def test_questions_are_answered_as_they_were_and_no_others(canary: Canary, tmp_path: Path) -> None:
    asked: list[str] = []

    async def ask(call: Call) -> Answer:
        first = await call.link.ask("roots/list", {})
        asked.append(str(first))
        if len(asked) > 1:
            with pytest.raises(AskRefused):
                await call.link.ask("roots/list", {})
        assert not call.link.can_ask("sampling/createMessage")
        return said("done")

    canary.tool("ask", ask, labels=READS)
    facts: dict[str, Any] = {"version": "2025-11-25", "capabilities": {"roots": {}}}
    async with recording(canary, tmp_path) as here:
        async with here.client(**facts, answer=lambda method, params: {"roots": [{"uri": "file:///r"}]}) as client:
            await client.call("canary__ask")
        report = await again(here)

    assert report.parity and len(asked) == 2 and asked[0] == asked[1]


async def test_rounds_are_gone_through_again_under_whatever_names_they_have(canary: Canary, tmp_path: Path) -> None:
    async def rounds(call: Call) -> Answer | InputRequired:
        if call.round is None:
            key = f"q{len(canary.calls)}"
            return InputRequired(requests={key: {"method": "roots/list", "params": {}}}, where="remote")
        return said(str(list(call.round.responses.values())))

    canary.tool("rounds", rounds, labels=READS)
    async with recording(canary, tmp_path) as here:
        async with here.client(capabilities={"roots": {}}) as client:
            first = await client.call("canary__rounds")
            key, state = next(iter(first["inputRequests"])), first["requestState"]
            await client.call("canary__rounds", requestState=state, inputResponses={key: {"roots": []}})
        report = await again(here)
        outcomes = await here.outcomes()

    assert report.parity and len(canary.calls) == 4
    assert set(map(tuple, outcomes.values())) == {("tool_result",)}


async def test_arguments_that_nobody_kept_are_not_guessed(canary: Canary, tmp_path: Path) -> None:
    canary.tool("look", labels=READS)
    async with recording(canary, tmp_path, settings=FORGETFUL) as here:
        async with here.client() as client:
            await client.call("canary__look", {"password": PASSWORD})
            await client.call("canary__look", {"n": 1})
        report = await again(here)

    assert [one.ending for one in report.calls] == ["skipped", "same"]
    assert "not known" in report.calls[0].why
    assert home_of(tmp_path).data.exists() and len(canary.calls) == 3
