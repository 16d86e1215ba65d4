"""What failed for good is listed, and made again as a child run, through everything that any call goes through."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from omni_mcp.cli.root import cli
from omni_mcp.config import ApprovalSettings, LogSettings, Settings
from omni_mcp.contracts.call import Answer, Call, InputRequired, Result
from omni_mcp.contracts.errors import Conflict, NotFound, OutcomeUnknown, TimedOut, UpstreamUnavailable
from omni_mcp.contracts.manifest import Labels
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.replay.failed import FAILURES, failed_runs
from omni_mcp.replay.remake import MAY_HAVE_TAKEN_EFFECT, Order, order_of, remake
from omni_mcp.testing import ALLOW_ALL, BOB, Canary, LocalGateway, error_of, local_gateway

WRITES = Labels(read_only=False, destructive=False, egress=False, reads_private=False, reads_untrusted=False)
TOOL = "canary__it"


class Tool:
    """Fails as it is told to, and answers with its arguments once it is told nothing."""

    def __init__(self) -> None:
        self.failure: Exception | None = UpstreamUnavailable("gone", detail="it hung up", data={"retry_after_s": 1})
        self.seen: list[Any] = []

    async def __call__(self, call: Call) -> Result:
        self.seen.append(call.arguments)
        if self.failure is not None:
            raise self.failure
        return Answer(body={"content": [{"type": "text", "text": "done"}], "isError": False}, where="remote")


def with_tool(canary: Canary, **facts: Any) -> Tool:
    tool = Tool()
    canary.tool("it", tool, schema={"type": "object"}, **facts)
    return tool


def listed(here: LocalGateway) -> list[Any]:
    with LogReader(here.home.log_file) as log:
        return failed_runs(log, limit=100)


async def run_of(here: LocalGateway) -> str:
    return next(event.run for event in await here.events() if event.kind == "tool_call")


async def again(here: LocalGateway, **order: Any) -> Any:
    given = {"run": await run_of(here), **order}
    return await remake(here.gateway, here.home, Order(**given), set())


async def test_a_failed_call_is_listed_with_its_reason_and_leaves_the_list_once_it_was_answered(canary: Canary) -> None:
    tool = with_tool(canary)
    tool.failure = UpstreamUnavailable("gone", detail="it hung up")
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        await client.call(TOOL, {"n": 1})
        [run] = listed(here)
        tool.failure = None
        report = await again(here)
        children = [event.payload for event in await here.events() if event.kind == "run_created"]
        after = listed(here)

    [call] = run["calls"]
    assert (call["name"], call["code"], call["detail"], call["attempts"]) == (
        TOOL,
        "upstream_unavailable",
        "it hung up",
        3,
    )
    assert f"omni-mcp runs rerun {run['run']} --call {call['call']}" in call["next"]
    assert [one["ending"] for one in report["calls"]] == ["answered"]
    assert tool.seen == [{"n": 1}] * 4, "three attempts, and once more"
    assert run["run"] in [child["parent_run"] for child in children if child]
    assert after == []


async def test_what_was_made_again_is_an_ordinary_call_of_the_same_principal_on_record(canary: Canary) -> None:
    tool = with_tool(canary)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client(principal=BOB) as client:
        await client.call(TOOL, {"n": 1})
        tool.failure = None
        report = await again(here, by="operator:me")
        events = [event for event in await here.events() if event.run == report["rerun"]]

    words = [event.code or event.kind for event in events]
    assert words == ["run_created", "call_made_again", "tool_call", "policy_decided", "tool_result", "run_closed"]
    made = events[1].payload
    assert made is not None and made["by"] == "operator:me" and made["call"] == report["calls"][0]["made_as"]
    assert events[2].payload is not None and events[2].payload["principal"] == BOB.key


async def test_one_that_fails_again_is_listed_in_its_childs_place(canary: Canary) -> None:
    with_tool(canary)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        await client.call(TOOL)
        report = await again(here)
        [run] = listed(here)
        with pytest.raises(NotFound):
            await again(here)

    assert report["calls"][0]["ending"] == "upstream_unavailable"
    assert run["run"] == report["rerun"] and len(run["calls"]) == 1


async def test_the_policy_of_now_decides_and_a_refused_one_stays_on_the_list(canary: Canary) -> None:
    tool = with_tool(canary)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        await client.call(TOOL)
        here.write_policy('@id("no") forbid (principal, action, resource);', "no.cedar")
        await here.gateway.reload()
        report = await again(here)
        [run] = listed(here)

    assert report["calls"][0]["ending"] == "policy_denied" and len(tool.seen) == 1
    assert run["run"] == report["run"]


async def test_a_person_is_asked_where_one_would_be_and_may_answer_between_two_commands(canary: Canary) -> None:
    tool = with_tool(canary, labels=Labels(read_only=False, destructive=True))
    settings = Settings(approvals=ApprovalSettings(wait_s=0))
    async with local_gateway(ALLOW_ALL, settings=settings, canary=canary, cells=False) as here:
        async with here.client() as client:
            assert error_of(await client.call(TOOL))["code"] == "approval_pending"
            here.answer(True)
            await client.call(TOOL)
            effects = tuple(call["call"] for run in listed(here) for call in run["calls"])
            tool.failure = None
            asked = await again(here, confirmed=effects)
            seen = len(tool.seen)
            here.answer(True)
            done = await again(here, confirmed=effects)
            after = listed(here)

    assert asked["calls"][0]["ending"] == "approval_pending" and seen == 1
    assert done["calls"][0]["ending"] == "answered" and len(tool.seen) == 2 and after == []


@pytest.mark.parametrize("failure", [OutcomeUnknown("who knows"), TimedOut("late"), UpstreamUnavailable("gone")])
async def test_a_write_that_may_have_taken_effect_is_not_made_again_without_a_yes(
    failure: Exception, canary: Canary
) -> None:
    tool = with_tool(canary, labels=WRITES)
    tool.failure = failure
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        await client.call(TOOL)
        [call] = listed(here)[0]["calls"]
        plan = await again(here, plan=True)
        without = await again(here)
        other = await again(here, confirmed=("another call",))
        tool.failure = None
        seen = len(tool.seen)
        with_yes = await again(here, confirmed=(call["call"],))

    assert plan["calls"][0]["may_have_taken_effect"] is True and plan["rerun"] is None
    assert without["calls"][0]["why_not"] == MAY_HAVE_TAKEN_EFFECT and without["rerun"] is None
    assert other["rerun"] is None and seen == 1
    assert with_yes["calls"][0]["ending"] == "answered"


async def test_masked_arguments_without_a_sealed_body_are_not_guessed(canary: Canary) -> None:
    tool = with_tool(canary)
    settings = Settings(log=LogSettings(keep_bodies=False))
    async with local_gateway(ALLOW_ALL, settings=settings, canary=canary, cells=False) as here:
        async with here.client() as client:
            await client.call(TOOL, {"password": "hunter2-hunter2"})
            report = await again(here)

    assert "real arguments are not known" in report["calls"][0]["why_not"]
    assert report["rerun"] is None and len(tool.seen) == 1


async def test_masked_arguments_are_made_again_as_they_were(canary: Canary) -> None:
    tool = with_tool(canary)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        await client.call(TOOL, {"password": "hunter2-hunter2"})
        tool.failure = None
        await again(here)
        shown = [event.payload for event in await here.events() if event.kind == "tool_call"]

    assert tool.seen == [{"password": "hunter2-hunter2"}] * 2
    assert "hunter2" not in str(shown)


async def test_only_failed_calls_are_made_again_and_each_once(canary: Canary) -> None:
    tool = with_tool(canary)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        await client.call(TOOL)
        tool.failure = None
        await client.call(TOOL)
        await client.call("canary__nothing")
        failed, good, refused = list(await here.outcomes())
        for call in (good, refused):
            with pytest.raises(Conflict):
                await again(here, call=call)
        with pytest.raises(NotFound):
            await again(here, call="no-such-call")
        with pytest.raises(Conflict):
            run = await run_of(here)
            await remake(here.gateway, here.home, Order(run=run, call=failed), {run})
        await again(here, call=failed)
        with pytest.raises(Conflict, match="already"):
            await again(here, call=failed)

    assert len(tool.seen) == 3


async def test_a_question_to_the_caller_has_nobody_to_answer_it(canary: Canary) -> None:
    question = {"method": "elicitation/create", "params": {"mode": "form", "message": "?", "requestedSchema": {
        "type": "object", "properties": {}}}}  # fmt: skip
    failing = True

    async def asks(call: Call) -> Result:
        if failing:
            raise TimedOut("late")
        return InputRequired(requests={"sure": question}, state=1)

    canary.tool("it", asks, schema={"type": "object"})
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        await client.call(TOOL)
        failing = False
        report = await again(here)
        open_calls = here.gateway.open_calls

    assert report["calls"][0]["ending"] == "outcome_unknown" and open_calls == 0


async def test_refusals_are_no_failures_and_neither_is_an_answer_of_the_tools_own(canary: Canary) -> None:
    async def unhappy(call: Call) -> Result:
        return Answer(body={"content": [], "isError": True}, is_error=True, where="remote")

    canary.tool("it", unhappy, schema={"type": "object"})
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        await client.call(TOOL)
        await client.call("canary__nothing")
        found = listed(here)

    assert found == []
    assert not FAILURES & {"policy_denied", "approval_denied", "cancelled", "rate_limited", "paused", "frozen"}


async def test_an_erased_run_is_not_listed_any_more(canary: Canary) -> None:
    with_tool(canary)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here:
        async with here.client() as client:
            await client.call(TOOL)
        run = await run_of(here)
        await command(here, "erase", "--run", run, "--yes")
        found = listed(here)

    assert found == []


async def test_who_erases_a_call_hears_what_it_was_made_again_as(canary: Canary) -> None:
    with_tool(canary)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here:
        async with here.client() as client:
            await client.call(TOOL, {"n": "privateword"})
            await client.call(TOOL, {"n": "other"})
        run = await run_of(here)
        first, _ = await here.outcomes()
        second = await again(here, call=first)
        third = await remake(here.gateway, here.home, Order(run=second["rerun"]), set())
        made = [{"run": one["rerun"], "call": one["calls"][0]["made_as"]} for one in (second, third)]
        told = orjson.loads(await command(here, "erase", "--run", run, "--call", first, "--yes", "--json"))
        text = await command(here, "erase", "--run", run, "--yes")
        for copy in made:
            await command(here, "erase", "--run", copy["run"], "--call", copy["call"], "--yes")
        nothing = orjson.loads(await command(here, "erase", "--run", run, "--yes", "--json"))
        with LogReader(here.home.log_file) as log:
            found = log.search("privateword")

    assert told["made_again"] == made and nothing["made_again"] == []
    assert all(f"omni-mcp erase --run {copy['run']} --call {copy['call']}" in text for copy in made)
    assert found == []


async def command(here: LocalGateway, *words: str) -> str:
    result = await asyncio.to_thread(CliRunner().invoke, cli, list(words), env={"OMNI_HOME": str(here.home.config)})
    assert result.exit_code == 0, result.output
    return result.stdout


async def test_the_list_is_there_as_text_and_as_json_and_ends_at_its_limit(canary: Canary) -> None:
    with_tool(canary)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here:
        for _ in range(3):
            async with here.client(version="2025-11-25") as client:
                await client.call(TOOL)
        text = await command(here, "runs", "failed")
        two = orjson.loads(await command(here, "runs", "failed", "--json", "--limit", "2"))
        runs = [run["id"] for run in await here.gateway.log.runs() if run["calls"]]

    assert text.count(f"{TOOL}  upstream_unavailable, tried once") == 3
    assert [run["run"] for run in two] == runs[:2]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"run": 1}, {"run": "x", "confirmed": "all"}, {"run": "x", "confirmed": [1]}, {"run": "x", "to": 1}],
)
def test_a_running_gateway_takes_no_other_order(arguments: Any) -> None:
    with pytest.raises(Exception, match="a rerun takes"):
        order_of(arguments)


def test_an_order_names_each_call_whose_effect_is_accepted() -> None:
    assert order_of({"run": "r", "confirmed": ["a"]}).confirmed == ("a",)
