"""`omni-mcp memory` and `erase --memory`, beside a running gateway and without one."""

from __future__ import annotations

import json
import time
from pathlib import Path

from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.memory import MemoryItem
from omni_mcp.testing import ANN
from tests.memory_server.world import (
    AGENT,
    HANDSHAKE,
    CommandLine,
    done,
    files_with,
    remembering,
    resource,
    texts,
    verified,
)  # fmt: skip

HOUR_NS = 3_600_000_000_000
TEXT = "the snorvelquint hums at midnight"


async def test_an_operator_lists_shows_and_exports_what_everybody_remembers(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    await line.run("memory", "list", code=1)
    async with (
        remembering(tmp_path) as here,
        here.client(principal=AGENT) as agent,
        here.client(principal=ANN) as ann,
    ):
        mine = await done(agent, "remember", text="agent's\x1b[31m fact", subject="it", at="2026-01-02T03:04:05Z")
        hers = await done(ann, "remember", text="ann's fact", key="fact", scope="user")
        listed = await line.json("memory", "list")
        assert [item["id"] for item in listed] == [hers["id"], mine["id"]]
        assert listed[0]["owner"] == 'User::"ann"@default' and listed[1]["owner"] == AGENT.key
        text = await line.run("memory", "list", "--scope", "agent")
        assert mine["id"] in text and hers["id"] not in text and "\x1b" not in text
        shown = await line.json("memory", "show", mine["id"])
        assert shown["source"]["call"] and shown["text"] == "agent's\x1b[31m fact"
        assert "\x1b" not in await line.run("memory", "show", mine["id"])
        assert "no such item" in await line.run("memory", "show", "nothing", code=1)
        rows = [json.loads(row) for row in (await line.run("memory", "export")).splitlines()]
    assert rows == [
        {"key": mine["id"], "text": "agent's\x1b[31m fact", "subject": "it", "at": "2026-01-02T03:04:05.000000Z"},
        {"key": "fact", "text": "ann's fact", "at": rows[1]["at"]},
    ]
    file = tmp_path / "out.jsonl"
    await line.run("memory", "export", "--full", "-o", str(file))
    assert file.stat().st_mode & 0o777 == 0o600 and len(file.read_text().splitlines()) == 2


async def test_an_operator_forgets_beside_a_running_gateway(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    async with remembering(tmp_path) as here, here.client(principal=AGENT, version=HANDSHAKE) as client:
        one, two = [await done(client, "remember", text=f"{TEXT} {number}") for number in range(2)]
        assert len(await texts(client, "snorvelquint")) == 2
        await line.run("memory", "forget", one["id"], code=2)
        report = await line.json("memory", "forget", one["id"], "--yes")
        assert report["items"] == [one["id"]] and report["pending"] == 0
        assert await texts(client, "snorvelquint") == [f"{TEXT} 1"]
        assert (await resource(client, one["uri"]))["message"] == "Resource not found"
        await line.run("erase", "--memory", two["id"], "--yes")
        assert files_with(tmp_path, "snorvelquint") == []
        assert verified(here).erased
        (made, *_, last) = [event for event in await here.events() if event.code == "memory_written"]
        assert made.run == client.run and last.run != client.run
        assert (last.payload or {})["change"] == "forgotten" and last.actor.startswith("operator:")
        assert (await done(client, "remember", text="life goes on"))["version"] == 1


async def test_an_expired_item_leaves_the_disk_with_a_sweep(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    assert (await line.json("memory", "sweep"))["items"] == []
    async with remembering(tmp_path) as here, here.client(principal=AGENT) as client:
        now_ns = time.time_ns()
        old = MemoryItem(
            id=new_id(), scope="agent", owner=AGENT.key, project="default", text=TEXT, at_ns=now_ns - 2 * HOUR_NS,
            created_at_ns=now_ns - 2 * HOUR_NS, expires_at_ns=now_ns - HOUR_NS,
        )  # fmt: skip
        await here.gateway.memory.put(old)
        fresh = await done(client, "remember", text="still good", expires_in_s=3600)
        assert await texts(client, "snorvelquint") == []
        assert [item["id"] for item in (await done(client, "list"))["items"]] == [fresh["id"]]
        assert (await line.json("memory", "show", old.id))["expired"] is True
        assert files_with(tmp_path, "snorvelquint")
        report = await line.json("memory", "sweep")
        assert report["items"] == [old.id]
        left = {name for name in files_with(tmp_path, "snorvelquint") if not name.startswith("runlog.db")}
        assert left == set()
        last = [event for event in await here.events() if event.code == "memory_written"][-1]
        assert (last.payload or {})["change"] == "expired"
        assert (await line.json("memory", "sweep"))["items"] == []
        assert await texts(client, "good") == ["still good"]


async def test_a_sweep_takes_what_only_a_run_knew_that_is_over(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    async with remembering(tmp_path) as here:
        async with here.client(principal=AGENT, version=HANDSHAKE) as client:
            made = await done(client, "remember", text=TEXT, scope="run")
            kept = await done(client, "remember", text="for later")
            assert (await line.json("memory", "sweep"))["items"] == []
        await here.until("run_closed")
        assert (await line.json("memory", "sweep"))["items"] == [made["id"]]
        assert files_with(tmp_path, "snorvelquint") == []
        assert [item["id"] for item in await line.json("memory", "list")] == [kept["id"]]


async def test_erasing_a_run_takes_along_what_it_remembered(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    async with remembering(tmp_path) as here:
        async with here.client(principal=AGENT, version=HANDSHAKE) as writer:
            made = await done(writer, "remember", text=TEXT)
        async with here.client(principal=AGENT, version=HANDSHAKE) as reader:
            await done(reader, "remember", text="of another run")
            assert TEXT in await texts(reader, "snorvelquint hums")
            await line.run("erase", "--run", made["source"]["run"], "--yes")
            assert files_with(tmp_path, "snorvelquint") == []
            assert await texts(reader, "run") == ["of another run"]
            verified(here)
