"""A failure that may pass is tried again, on record before it is; what may have had an effect is not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.chain.retry import ATTEMPTS, FIRST_DELAY_S, Retries
from omni_mcp.contracts.call import Answer, Call, ClientFacts, InputRequired, Result
from omni_mcp.contracts.errors import (
    CATALOGUE,
    Failed,
    Internal,
    InvalidResult,
    OutcomeUnknown,
    RateLimited,
    SandboxKilled,
    TimedOut,
    UpstreamProtocol,
    UpstreamUnavailable,
)
from omni_mcp.contracts.events import RunEvent
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.manifest import Labels, Limits
from omni_mcp.testing import ALLOW_ALL, ANN, WAIT_S, Canary, LocalGateway, error_of, local_gateway
from tests.waiting import until

WRITES = Labels(read_only=False, destructive=False, egress=False, reads_private=False, reads_untrusted=False)
DONE = Answer(body={"content": [{"type": "text", "text": "done"}], "isError": False}, where="remote")
LOST = "canary__it"
Step = Callable[[Call], Awaitable[object]]


def lost() -> UpstreamUnavailable:
    return UpstreamUnavailable("the server behind it cannot be reached", detail="it hung up")


class Script:
    """A tool that does one step after the other: raises an error, or waits for a function; then it answers."""

    def __init__(self, *steps: Exception | Step) -> None:
        self._steps = list(steps)

    async def __call__(self, call: Call) -> Result:
        if self._steps:
            step = self._steps.pop(0)
            if isinstance(step, Exception):
                raise step
            await step(call)
        return DONE


def offered(canary: Canary, *steps: Exception | Step, **facts: Any) -> Canary:
    canary.tool("it", Script(*steps), schema={"type": "object"}, **facts)
    return canary


def attempts(events: list[RunEvent]) -> list[Any]:
    return [event.payload for event in events if event.code == "attempt_failed"]


async def only_call(here: LocalGateway) -> list[RunEvent]:
    [call] = await here.outcomes()
    return await here.events(call=call)


async def test_a_tool_that_fails_twice_and_then_passes_shows_three_attempts_with_growing_delays(canary: Canary) -> None:
    offered(canary, lost(), lost())
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        result = await client.call(LOST)
        events = await only_call(here)

    assert result["content"][0]["text"] == "done"
    assert [event.code or event.kind for event in events] == [
        "tool_call", "policy_decided", "attempt_failed", "attempt_failed", "tool_result"
    ]  # fmt: skip
    first, second = attempts(events)
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert first["error"] == "upstream_unavailable" and first["dispatched"] is True
    assert 0 <= first["delay_s"] <= FIRST_DELAY_S
    assert first["delay_s"] <= second["delay_s"] <= 2 * FIRST_DELAY_S
    assert len(canary.touched) == ATTEMPTS


async def test_each_failed_attempt_is_on_disk_before_the_next_one_runs(canary: Canary) -> None:
    seen: list[int] = []

    async def look(call: Call) -> None:
        seen.append(len(attempts(await here.events(call=call.id))))
        raise lost()

    offered(canary, look, look, look)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        reply = await client.call(LOST)

    assert seen == [0, 1, 2]
    assert error_of(reply)["code"] == "upstream_unavailable"


async def test_a_read_that_never_gets_through_ends_after_three_attempts_as_dispatched(canary: Canary) -> None:
    async def not_even_sent(call: Call) -> None:
        call.trail.dispatched = False
        raise lost()

    offered(canary, lost(), not_even_sent, not_even_sent, lost())
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        reply = await client.call(LOST)
        outcome = (await only_call(here))[-1].payload

    assert error_of(reply)["code"] == "upstream_unavailable"
    assert len(canary.touched) == ATTEMPTS
    assert outcome is not None and outcome["dispatched"] is True, "the first attempt was"


def marked(error: Failed, passing: bool) -> Failed:
    error.passing = passing
    return error


@pytest.mark.parametrize(
    "error",
    [
        UpstreamProtocol("junk"), OutcomeUnknown("who knows"), InvalidResult("no object"), Internal("ours"),
        TimedOut("late"), SandboxKilled("out of memory"), RateLimited("full", data={"retry_after_s": 10}),
        UpstreamUnavailable("busy", data={"retry_after_s": 0.01}), marked(lost(), passing=False),
    ],
    ids=lambda error: f"{error.code} {error.data or ''} {error.passing}",
)  # fmt: skip
async def test_a_failure_that_does_not_pass_shows_one_attempt(error: Exception, canary: Canary) -> None:
    offered(canary, error)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        reply = await client.call(LOST)
        events = await only_call(here)

    assert error_of(reply)["code"] == getattr(error, "code")  # noqa: B009
    assert attempts(events) == [] and len(canary.touched) == 1


async def test_what_the_executor_says_of_a_failure_goes_before_the_catalogue(canary: Canary) -> None:
    assert CATALOGUE["sandbox_killed"].retry == "after_change"
    offered(canary, marked(SandboxKilled("the cell was killed from outside"), passing=True))
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        result = await client.call(LOST)

    assert result["content"][0]["text"] == "done" and len(canary.touched) == 2


async def test_a_write_that_may_have_arrived_is_never_sent_again(canary: Canary) -> None:
    offered(canary, marked(lost(), passing=True), labels=WRITES)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        reply = await client.call(LOST)
        events = await only_call(here)

    assert error_of(reply)["code"] == "upstream_unavailable"
    assert attempts(events) == [] and len(canary.touched) == 1


@pytest.mark.parametrize("facts", [{"side_effects": "idempotent"}, {"side_effects": "none"}])
async def test_a_tool_that_is_declared_idempotent_is_tried_again(facts: dict[str, Any], canary: Canary) -> None:
    offered(canary, lost(), labels=WRITES, **facts)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        result = await client.call(LOST)

    assert result["content"][0]["text"] == "done" and len(canary.touched) == 2


async def test_a_write_of_which_nothing_was_sent_is_tried_again_until_something_was(canary: Canary) -> None:
    async def not_sent(call: Call) -> None:
        call.trail.dispatched = False
        raise lost()

    offered(canary, not_sent, lost(), labels=WRITES)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        reply = await client.call(LOST)
        events = await only_call(here)

    assert error_of(reply)["code"] == "upstream_unavailable"
    assert [one["dispatched"] for one in attempts(events)] == [False]
    assert len(canary.touched) == 2, "the second may have arrived, so there is no third"


async def test_what_must_hold_when_a_call_runs_is_looked_at_before_each_attempt(canary: Canary) -> None:
    async def freeze(call: Call) -> None:
        here.gateway.freeze.set(frozenset({call.principal.project}))
        raise lost()

    offered(canary, freeze)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        reply = await client.call(LOST)
        events = await only_call(here)

    assert error_of(reply)["code"] == "upstream_unavailable" and len(canary.touched) == 1
    assert events[-1].payload is not None and "not tried again: frozen" in events[-1].payload["detail"]


async def test_a_rule_that_is_withdrawn_between_two_attempts_stops_the_next(canary: Canary) -> None:
    async def withdraw(call: Call) -> None:
        here.write_policy('@id("no") forbid (principal, action, resource);')
        await here.gateway.reload()
        raise lost()

    offered(canary, withdraw)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        reply = await client.call(LOST)
        words = [word.partition(":")[2] for word in await here.words(next(iter(await here.outcomes())))]

    assert error_of(reply)["code"] == "upstream_unavailable" and len(canary.touched) == 1
    assert words == ["", "allow", "", "deny", "upstream_unavailable"]


async def test_a_gateway_that_drains_makes_no_further_attempt(canary: Canary) -> None:
    async def drain(call: Call) -> None:
        here.gateway.doors.close(by="test", deadline_s=None)
        raise lost()

    offered(canary, drain)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        reply = await client.call(LOST)

    assert error_of(reply)["code"] == "upstream_unavailable" and len(canary.touched) == 1


async def test_a_tool_that_swallows_its_cancellation_is_not_tried_again(canary: Canary) -> None:
    begun, let_go = asyncio.Event(), asyncio.Event()

    async def fail_when_told(call: Call) -> None:
        begun.set()
        try:
            await let_go.wait()
        finally:
            raise lost()

    offered(canary, fail_when_told)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        number, _ = await client.start("tools/call", {"name": LOST, "arguments": {}})
        await begun.wait()
        let_go.set()
        await client.notify("notifications/cancelled", {"requestId": number})
        ended = await here.end_of(next(iter(await here.outcomes())))

    assert ended.kind == "tool_error"
    assert len(canary.touched) == 1


def a_call(run: str) -> Call:
    return Call(
        id=new_id(), run=run, principal=ANN, client=ClientFacts(), kind="tool", name=LOST, arguments={},
        profile="default",
    )  # fmt: skip


async def test_the_next_attempt_has_to_wait_for_the_record_of_the_one_before(canary: Canary) -> None:
    canary.tool("it")
    [tool] = canary.load()
    recorded: list[str | None] = []
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        await client.call(LOST)
        run = (await only_call(here))[0].run

        async def attempt(call: Call) -> Result:
            seq = await call.intents[-1].durable()
            recorded.extend([event.code for event in await here.events(call=call.id) if event.seq == seq])
            return DONE

        await Retries(here.gateway.log).go_on(lost(), a_call(run), tool, attempt)

    assert recorded == ["attempt_failed"]


async def test_a_call_that_is_cancelled_between_two_attempts_is_not_tried_again(canary: Canary) -> None:
    canary.tool("it")
    [tool] = canary.load()
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        await client.call(LOST)
        call = a_call((await only_call(here))[0].run)
        retries = Retries(here.gateway.log, chance=lambda: 1.0, first_delay_s=1000.0)
        error = lost()
        error.ends_s = asyncio.get_running_loop().time() + 10_000.0
        waiting = asyncio.create_task(retries.go_on(error, call, tool, Script()))
        noted = await here.until("attempt_failed")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    assert noted.payload is not None and noted.payload["delay_s"] == 1000.0


async def test_all_attempts_together_have_the_time_of_one_call(canary: Canary) -> None:
    async def hang(call: Call) -> None:
        await asyncio.Event().wait()

    offered(canary, lost(), hang, limits=Limits(timeout_s=2.0))
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        reply = await client.call(LOST)
        events = await only_call(here)

    assert error_of(reply)["code"] == "timeout" and len(canary.touched) == 2
    assert events[-1].payload is not None and events[-1].payload["dispatched"] is True
    assert len(attempts(events)) == 1


async def test_the_time_of_a_call_ends_an_attempt_that_does_not_end_by_itself(canary: Canary) -> None:
    canary.tool("it")
    [tool] = canary.load()

    async def hang(call: Call) -> Result:
        await asyncio.Event().wait()
        return DONE

    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        await client.call(LOST)
        call = a_call((await only_call(here))[0].run)
        error = lost()
        error.ends_s = asyncio.get_running_loop().time() + 1.0
        with pytest.raises(TimedOut):
            await asyncio.wait_for(Retries(here.gateway.log, chance=lambda: 0.0).go_on(error, call, tool, hang), WAIT_S)


async def test_a_failure_at_the_end_of_the_time_is_the_last(canary: Canary) -> None:
    async def use_it_up(call: Call) -> None:
        ends_s = asyncio.get_running_loop().time() + 0.02
        await until(lambda: asyncio.get_running_loop().time() > ends_s)
        raise lost()

    offered(canary, use_it_up, limits=Limits(timeout_s=0.02))
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        reply = await client.call(LOST)

    assert error_of(reply)["code"] in ("upstream_unavailable", "timeout") and len(canary.touched) == 1


async def test_a_later_round_of_a_call_is_not_tried_again(canary: Canary) -> None:
    question = {"method": "elicitation/create", "params": {"mode": "form", "message": "?", "requestedSchema": {
        "type": "object", "properties": {}}}}  # fmt: skip

    async def ask_once(call: Call) -> Result:
        if call.round is None:
            return InputRequired(requests={"sure": question}, state={"step": 1})
        raise lost()

    canary.tool("asks", ask_once, schema={"type": "object"})
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here:
        async with here.client(capabilities={"elicitation": {}}) as client:
            asked = await client.call("canary__asks")
            yes = {"sure": {"action": "accept", "content": {}}}
            reply = await client.call("canary__asks", requestState=asked["requestState"], inputResponses=yes)

    assert error_of(reply)["code"] == "upstream_unavailable" and len(canary.touched) == 2


async def test_a_caller_sees_the_attempts_of_its_call_and_not_their_details(canary: Canary, tmp_path: Path) -> None:
    offered(canary, lost())
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        await client.call(LOST)
        run = (await only_call(here))[0].run
        read = await client.call("runs__read", {"run": run})

    [shown] = [event["payload"] for event in read["structuredContent"]["events"] if event["code"] == "attempt_failed"]
    assert shown["error"] == "upstream_unavailable" and "detail" not in shown
