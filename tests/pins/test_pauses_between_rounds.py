"""A pause lets a call finish that waits for its caller's input, and takes no new one."""

from __future__ import annotations

from pathlib import Path

from omni_mcp.contracts.call import Answer, Call, InputRequired, Result
from omni_mcp.contracts.lock import Pause
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.testing import ALLOW_ALL, Canary, error_of, local_gateway

QUESTION = {"who": {"method": "elicitation/create", "params": {"message": "Who?", "requestedSchema": {}}}}


async def asks_once(call: Call) -> Result:
    if call.round is None:
        return InputRequired(requests=QUESTION, state={}, where="remote")
    return Answer(body={"content": [{"type": "text", "text": "done"}], "isError": False}, where="remote")


async def test_a_call_that_waits_for_input_finishes_though_its_tool_was_paused_meanwhile(
    canary: Canary, tmp_path: Path
) -> None:
    canary.tool("asks", asks_once)
    async with local_gateway(ALLOW_ALL, canary=canary, directory=tmp_path, cells=False) as here:
        entry = next(one for one in here.gateway.catalog.all_entries() if one.name == "asks")
        async with here.client(capabilities={"elicitation": {}}) as client:
            name = f"{entry.server}__asks"
            asked = await client.call(name)
            paused = {entry.server: Pause(by="ann", at="2026-11-21T12:00:00Z")}
            LockFile(here.home.lock_file).edit(lambda now: now.model_copy(update={"paused": paused}))
            await here.gateway.reload_lock()
            refused = await client.call(name)
            finished = await client.call(
                name, inputResponses={"who": {"action": "accept", "content": {}}}, requestState=asked["requestState"]
            )
        outcomes = sorted(word for words in (await here.outcomes()).values() for word in words)

    assert asked["resultType"] == "input_required"
    assert error_of(refused)["code"] == "paused"
    assert finished["content"][0]["text"] == "done"
    assert outcomes == ["tool_error:paused", "tool_result"]


async def test_a_paused_server_is_not_asked_what_an_argument_could_be(canary: Canary, tmp_path: Path) -> None:
    canary.prompt("greet")
    wanted = {
        "ref": {"type": "ref/prompt", "name": "canary__greet"}, "argument": {"name": "word", "value": "a"},
    }  # fmt: skip
    async with (
        local_gateway(ALLOW_ALL, canary=canary, directory=tmp_path, cells=False) as here,
        here.client() as client,
    ):
        before = await client.request("completion/complete", wanted)
        asked = len(canary.touched)
        paused = {"canary": Pause(by="ann", at="2026-11-21T12:00:00Z", note="being looked at")}
        LockFile(here.home.lock_file).edit(lambda now: now.model_copy(update={"paused": paused}))
        await here.gateway.reload_lock()
        refused = await client.request("completion/complete", wanted)
        asked_then = len(canary.touched)
        LockFile(here.home.lock_file).edit(lambda now: now.model_copy(update={"paused": {}}))
        await here.gateway.reload_lock()
        after = await client.request("completion/complete", wanted)

    assert "result" in before and "result" in after
    assert error_of(refused)["code"] == "paused" and "being looked at" not in str(refused)
    assert (asked, asked_then, len(canary.touched)) == (1, 1, 2)
