from __future__ import annotations
import asyncio, time, random
from pathlib import Path
import pytest
from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.serving import memory_erasing
from omni_mcp.testing import ALLOW_ALL
from omni_mcp.contracts.events import RunCreated, ToolCall, ToolResult, draft
from tests.memory_server.world import *
WORDS = ("zyxwqumbo", "plofkrast", "gribnalux")
TEXT = f"the {WORDS[0]} stands behind the {WORDS[1]} of {WORDS[2]}"
ASKS = f"""{ALLOW_ALL}
@id("ask") @approval("required") forbid (principal, action, resource == Omni::Tool::"memory__remember")
unless {{ context has approval && context.approval.digest == context.args_digest }};"""

async def test_kill_between_log_and_artifacts(tmp_path, monkeypatch):
    class Killed(BaseException): pass
    async with remembering(tmp_path) as here, here.client(version=HANDSHAKE) as client:
        made = [await done(client, "remember", text=f"{TEXT} {number} " + "filler " * 2000) for number in range(6)]
        await client.call("memory__recall", {"query": WORDS[0], "budget_chars": 100_000, "k": 50})
        items = [await here.gateway.memory.find(m["id"]) for m in made]
        pairs = set()
        for item in items:
            await here.gateway.memory.forget_item(item.id)
        calls = await here.gateway.memory.to_erase()
    def die(*a, **k): raise Killed
    with monkeypatch.context() as m:
        m.setattr(BlobStore, "release", die)
        from omni_mcp.testing import home_in
        with pytest.raises(Killed):
            memory_erasing.erase_calls(home_in(tmp_path), calls, by="x")
    async with remembering(tmp_path) as here:
        while await here.gateway.memory.to_erase():
            await asyncio.sleep(0.01)
    print(files_with(tmp_path, *WORDS))
    assert files_with(tmp_path, *WORDS) == []

async def test_orphan_artifact(tmp_path):
    """killed between put of large result and its outcome"""
    async with remembering(tmp_path) as here, here.client(version=HANDSHAKE, principal=AGENT) as client:
        made = await done(client, "remember", text=TEXT)
        from omni_mcp.contracts.ids import new_id
        log, call, run = here.gateway.log, new_id(), str(client.run)
        asked = ToolCall(call_kind="tool", name="memory__recall", arguments={"query": "x"}, arguments_hmac="hmac-sha256:00", arguments_bytes=2, principal=AGENT.key, profile="default")
        await log.append(run, draft(asked, actor=AGENT.key, call=call)).durable()
        await here.gateway.memory.touched([made["id"]], run=run, call=call)
        await here.gateway._engines.artifacts.put((TEXT*3000).encode(), media_type="application/json", owner=AGENT.key, run=run, name=f"result of {call}")
    async with remembering(tmp_path) as here, here.client(version=HANDSHAKE, principal=AGENT) as client:
        await forget(here, client, made["id"])
        assert files_with(tmp_path, *WORDS) == []

async def test_erase_run_of_revised(tmp_path):
    async with remembering(tmp_path) as here:
        async with here.client(version=HANDSHAKE, principal=AGENT) as one:
            made = await done(one, "remember", text=TEXT)
            run = str(one.run)
        async with here.client(version=HANDSHAKE, principal=AGENT) as two:
            await done(two, "revise", id=made["id"], importance=0.9)
    line = CommandLine(tmp_path)
    print(await line.json("erase", "--run", run, "--yes"))
    print(files_with(tmp_path, *WORDS))
    assert files_with(tmp_path, *WORDS) == []

async def test_retention_then_forget_share(tmp_path):
    async with remembering(tmp_path) as here:
        async with here.client(version=HANDSHAKE, principal=AGENT) as one:
            made = await done(one, "share", text=TEXT)
    line = CommandLine(tmp_path)
    print(await line.run("retention", "run", "--older-than", "0s"))
    async with remembering(tmp_path) as here:
        async with here.client(version=HANDSHAKE, principal=AGENT) as one:
            assert (await refused(one, "forget", id=made["id"]))[0] == "approval_pending"
            here.answer(True)
            print(await one.call("memory__forget", {"id": made["id"]}))
            print(await one.call("memory__share", {"revises": made["id"], "text": "gone"}))

async def test_artifact_read(tmp_path):
    async with remembering(tmp_path) as here, here.client(version=HANDSHAKE) as client:
        made = [await done(client, "remember", text=f"{TEXT} {number} " + "filler " * 2000) for number in range(6)]
        await client.call("memory__recall", {"query": WORDS[0], "budget_chars": 100_000, "k": 50})
        kept = [(event.payload or {}).get("artifact") for event in await here.events()]
        [artifact] = [one["sha256"] for one in kept if one]
        r = await client.call("tools__artifact_read", {"artifact": artifact})
        print(str(r)[:300])
        for item in made:
            await forget(here, client, item["id"])
        print(files_with(tmp_path, *WORDS))
        assert files_with(tmp_path, *WORDS) == []

@pytest.mark.parametrize("seed", range(6))
async def test_questions_soak(tmp_path, seed):
    dice = random.Random(seed)
    async with remembering(tmp_path, ASKS) as here, here.client(principal=AGENT) as client:
        made = []
        for number in range(20):
            text = f"{TEXT} mark{number}qq {'filler ' * dice.choice([1, 20, 100, 400, 1500])} {number}"
            assert (await refused(client, "remember", text=text))[0] == "approval_pending"
            if dice.random() < .2:
                here.answer(False); continue
            here.answer(True)
            made.append((await done(client, "remember", text=text), number))
        dice.shuffle(made)
        for item, n in made:
            await forget(here, client, item["id"])
            assert files_with(tmp_path, f"mark{n}qq") == []
