"""`omni-mcp drain`: from its first moment no new call, those under way end by themselves, and what is left is said."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.call import Answer, Call, InputRequired, Result
from omni_mcp.testing import ALLOW_ALL, ANN, Canary, error_of, local_gateway
from tests.daemon.gateway_world import OMNI, WAIT_S, Client, World, a_world, connect, serving, until
from tests.upstream.servers.web import web_server
from tests.upstream.town import Shop


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as made:
        made.allow_tools()
        yield made


COMMAND_S = 180.0  # a command takes two seconds of a processor, and on a loaded machine it gets little of one
QUESTION = {"who": {"method": "elicitation/create", "params": {"message": "Who?", "requestedSchema": {}}}}


async def asks_once(call: Call) -> Result:
    """A tool that asks its caller, and answers in the second round."""
    if call.round is None:
        return InputRequired(requests=QUESTION, state={}, where="remote")
    return Answer(body={"content": [{"type": "text", "text": "done"}], "isError": False}, where="remote")


@asynccontextmanager
async def a_command(world: World, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command beside the test; it must have ended when the context is left."""
    process = await asyncio.create_subprocess_exec(
        *OMNI, *words, env=world.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    """Return the exit code of a command and what it said."""
    out, err = await asyncio.wait_for(process.communicate(), COMMAND_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def asks_a_person(world: World, client: Client) -> tuple[int, str]:
    """Have a call under way that waits for a person; returns its request and the question."""
    request = await client.send("tools/call", name="tools__files_write", arguments={"path": "a", "text": "b"})
    await until(lambda: world.status()["pending_approvals"] == 1)
    return request, json.loads(world.omni("approvals", "list", "--json").stdout)[0]["id"]


def readiness(world: World) -> tuple[int, dict[str, Any]]:
    """Return what a load balancer is told."""
    facts = world.status()
    token = world.home.token_file.read_text().strip()
    asked = urllib.request.Request(
        f"http://{facts['host']}:{facts['port']}/readyz", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=WAIT_S) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


async def test_a_drained_gateway_refuses_new_calls_waits_for_the_one_under_way_and_ends(world: World) -> None:
    async with serving(world) as gateway:
        client = await connect(world)
        under_way, question = await asks_a_person(world, client)
        async with a_command(world, "drain", "--deadline", "600", "--json") as draining:
            await until(lambda: world.status()["draining"], COMMAND_S)
            refused = (await client.call("tools__text_hash", text="x"))["result"]
            listed = await client.ask("tools/list")
            ready, still_runs = readiness(world), gateway.returncode is None
            world.omni("approvals", "deny", question, "--yes")
            answer = await client.answer(under_way)
            code, out, said = await ended(draining)
            assert await asyncio.wait_for(gateway.wait(), WAIT_S) == 0
        await client.leave()

    assert (error_of(refused)["code"], error_of(refused)["retry"]) == ("draining", "later")
    assert error_of(refused)["data"]["retry_after_s"] > 0
    assert "omni-mcp status" in refused["content"][0]["text"]
    assert listed["result"]["tools"] and still_runs
    assert ready[0] == 503 and ready[1]["draining"] is True
    assert "approval_denied" in json.dumps(answer)
    assert (code, json.loads(out)) == (0, {"drained": True, "ended": True, "left": []})
    assert "tools__files_write" in said and "approvals" in said
    codes = [(event["code"], event["payload"]) for event in world.events("gateway") if event["code"]]
    assert [code for code, _ in codes[-3:]] == ["gateway_draining", "gateway_stopped", "run_closed"]
    assert codes[-3][1]["deadline_s"] == 600 and codes[-2][1]["cancelled_calls"] == 0


async def test_calls_that_do_not_end_before_the_deadline_are_cancelled_on_record_and_the_exit_code_says_so(
    world: World,
) -> None:
    async with serving(world) as gateway:
        client = await connect(world)
        under_way, _ = await asks_a_person(world, client)
        async with a_command(world, "drain", "--deadline", "0.5", "--json") as draining:
            code, out, _ = await ended(draining)
        answer = await client.answer(under_way)
        assert await asyncio.wait_for(gateway.wait(), WAIT_S) == 0
        await client.leave()

    assert code == 1 and json.loads(out)["left"] == ["tools__files_write"]
    assert "error" in answer or answer["result"]["isError"]
    outcomes = [event for event in world.events("session") if event["kind"] in ("tool_result", "tool_error")]
    assert [event["payload"]["code"] for event in outcomes] == ["cancelled"]
    assert world.events("gateway")[-2]["payload"]["cancelled_calls"] == 1


async def test_a_gateway_that_stays_is_not_ready_until_calls_are_taken_again(world: World) -> None:
    async with serving(world) as gateway:
        client = await connect(world)
        _, question = await asks_a_person(world, client)
        late = world.omni("drain", "--stay", "--deadline", "0", "--json", check=False)
        world.omni("approvals", "deny", question, "--yes")
        done = world.omni("drain", "--stay", "--json")
        closed = readiness(world)[0], (await client.call("tools__text_hash", text="x"))["result"]
        world.omni("undrain")
        opened = readiness(world)[0], (await client.call("tools__text_hash", text="x"))["result"]
        assert gateway.returncode is None
        await client.leave()

    assert late.returncode == 1 and json.loads(late.stdout)["left"] == ["tools__files_write"]
    assert json.loads(done.stdout) == {"drained": True, "ended": False, "left": []}
    assert (closed[0], error_of(closed[1])["code"]) == (503, "draining")
    assert (opened[0], opened[1]["isError"]) == (200, False)


async def test_a_drained_server_gets_no_new_call_and_the_command_waits_for_the_one_under_way(world: World) -> None:
    shop = Shop(tools=[{"name": name, "inputSchema": {"type": "object"}} for name in ("slow", "it")])
    async with web_server(shop.script()) as server:
        await asyncio.to_thread(
            world.omni, "add", "up", "--url", server.url, "--accept", "read-only", "--let", "read-only"
        )
        async with serving(world):
            client = await connect(world)
            under_way = await client.send("tools/call", name="up__slow", arguments={})
            await asyncio.wait_for(shop.begun.wait(), WAIT_S)
            async with a_command(world, "servers", "drain", "up", "--deadline", "600", "--json") as draining:
                await until(lambda: "up" in world.status()["paused"], COMMAND_S)
                refused = (await client.call("up__it"))["result"]
                others = (await client.call("tools__text_hash", text="x"))["result"]
                waits = draining.returncode is None
                shop.open.set()
                answer = (await client.answer(under_way))["result"]
                code, out, said = await ended(draining)
            late = world.omni("servers", "drain", "up", "--deadline", "0", check=False)
            await client.leave()

    assert (error_of(refused)["code"], others["isError"], waits) == ("paused", False, True)
    assert not answer.get("isError") and len(shop.calls) == 1
    assert (code, json.loads(out)["drained"], json.loads(out)["left"]) == (0, True, 0)
    assert "up__slow" in said
    assert late.returncode == 0


def test_without_a_gateway_there_is_nothing_to_drain(tmp_path: Path) -> None:
    world = World(tmp_path)
    done = [world.omni(*words, check=False) for words in (["drain"], ["undrain"])]
    assert [one.returncode for one in done] == [1, 1]
    assert all("omni-mcp status" in one.stderr for one in done)


async def test_a_flood_of_refused_calls_is_on_record_once_a_second_and_told_what_it_is() -> None:
    async with local_gateway(ALLOW_ALL) as here, here.client() as client:
        here.gateway.doors.close(by=ANN.key, deadline_s=None)
        codes = {error_of(await client.call("tools__text_hash", {"text": "x"}))["code"] for _ in range(50)}
        here.gateway.doors.open(by=ANN.key)
        taken = await client.call("tools__text_hash", {"text": "x"})
        recorded = [words for words in (await here.outcomes()).values() if words == ["tool_error:draining"]]

    assert codes == {"draining"} and not taken["isError"]
    assert 1 <= len(recorded) < 50


async def test_a_call_is_at_its_server_to_its_end_though_its_tool_is_listed_no_more(canary: Canary) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(call: Call) -> Answer:
        begun.set()
        await go_on.wait()
        return Answer(body={"content": [], "isError": False})

    canary.tool("slow", slow)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        under_way = asyncio.create_task(client.call("canary__slow"))
        await asyncio.wait_for(begun.wait(), WAIT_S)
        canary.tool("slow")  # of two that claim one name neither stays
        here.gateway.reload_catalog()
        facts = here.gateway.doors.facts()
        go_on.set()
        await under_way

    assert facts["running"] == {"canary": 1}
    assert [call["server"] for call in facts["calls"]] == ["canary"]


async def test_a_call_that_waits_for_its_callers_input_is_let_in_again_and_waited_for(canary: Canary) -> None:
    canary.tool("asks", asks_once)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here:
        async with here.client(capabilities={"elicitation": {}}) as client:
            asked = await client.call("canary__asks")
            here.gateway.doors.close(by=ANN.key, deadline_s=None)
            waits = here.gateway.doors.facts()
            finished = await client.call(
                "canary__asks", inputResponses={"who": {"action": "accept", "content": {}}},
                requestState=asked["requestState"],
            )  # fmt: skip
            is_empty = await here.gateway.doors.empty()

    assert (waits["inside"], waits["waiting_for_input"], waits["calls"]) == (1, 1, [])
    assert waits["running"] == {"canary": 1}, "its server is not drained"
    assert finished["content"][0]["text"] == "done" and is_empty
