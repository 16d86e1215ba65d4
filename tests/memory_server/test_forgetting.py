"""After a forgetting no byte of the data directory holds the text, and every link of the log still verifies."""

from __future__ import annotations

from pathlib import Path

import pytest

from omni_mcp.contracts.events import ToolCall, ToolResult, draft
from omni_mcp.contracts.ids import new_id
from omni_mcp.engines.runlog.projections import digest_of_projections
from omni_mcp.engines.runlog.store import open_ledger, rebuild_projections
from omni_mcp.testing import ALLOW_ALL, ANN, LocalGateway
from tests.memory_server.world import (
    AGENT,
    BOTH_ERAS,
    HANDSHAKE,
    STRANGER,
    CommandLine,
    done,
    files_with,
    finished_by_the_next_start,
    forget,
    refused,
    remembering,
    resource,
    texts,
    verified,
)  # fmt: skip

WORDS = ("zyxwqumbo", "plofkrast", "gribnalux")
TEXT = f"the {WORDS[0]} stands behind the {WORDS[1]} of {WORDS[2]}"


def _rebuilt_alike(here: LocalGateway) -> None:
    ledger = open_ledger(here.home.log_file, here.home.secrets, events_per_run=1_000_000).ledger
    try:
        ledger.index()
        before = digest_of_projections(ledger.connection)
        rebuild_projections(ledger)
        assert digest_of_projections(ledger.connection) == before
    finally:
        ledger.connection.close()


@pytest.mark.parametrize("era", BOTH_ERAS)
async def test_every_call_that_carried_the_text_is_erased(era: str, tmp_path: Path) -> None:
    """Remembered, found, listed, read, revised, compared, asked a person about, found by somebody else."""
    async with (
        remembering(tmp_path) as here,
        here.client(principal=AGENT, version=era) as client,
        here.client(principal=STRANGER, version=era) as reader,
    ):
        kept = await done(client, "remember", text="an innocent neighbour")
        made = await done(client, "share", text=TEXT, subject=WORDS[2], tags=[WORDS[0]])
        await done(client, "share", revises=made["id"], text=f"{TEXT} still")
        copy = await done(client, "remember", text=f"{TEXT}!", key=WORDS[1], session=WORDS[0])
        await done(client, "revise", id=copy["id"], text=f"{TEXT}?")
        for one in (client, reader):
            assert await texts(one, WORDS[0]) and await resource(one, made["uri"])
            await done(one, "list")
            await done(one, "duplicates")
            await resource(one, "memory://latest")
        await here.gateway.log.flush_index()
        assert files_with(tmp_path, WORDS[1])
        before = verified(here)
        for item in (made["id"], copy["id"]):
            assert (await forget(here, client, item))["calls_pending"] == 0
        assert files_with(tmp_path, *WORDS) == []
        after = verified(here)
        assert len(after.erased) > len(before.erased) == 0
        assert [item["id"] for item in (await done(client, "list"))["items"]] == [kept["id"]]
        assert (await client.call("runs__search", {"query": WORDS[0]}))["structuredContent"]["events"] == []
    assert files_with(tmp_path, *WORDS) == []
    _rebuilt_alike(here)
    assert files_with(tmp_path, *WORDS) == []


async def test_a_large_answer_that_is_kept_apart_goes_too(tmp_path: Path) -> None:
    async with remembering(tmp_path) as here, here.client(version=HANDSHAKE) as client:
        made = [await done(client, "remember", text=f"{TEXT} {number} " + "filler " * 2000) for number in range(6)]
        answer = await client.call("memory__recall", {"query": WORDS[0], "budget_chars": 100_000, "k": 50})
        assert len(answer["structuredContent"]["items"]) == 6
        assert [event for event in await here.events() if (event.payload or {}).get("artifact")]
        for item in made:
            await forget(here, client, item["id"])
        assert files_with(tmp_path, *WORDS) == []
        verified(here)


async def test_a_question_to_a_person_about_it_goes_too(tmp_path: Path) -> None:
    rules = f"""{ALLOW_ALL}
    @id("ask") @approval("required") forbid (principal, action, resource == Omni::Tool::"memory__remember")
    unless {{ context has approval && context.approval.digest == context.args_digest }};"""
    async with remembering(tmp_path, rules) as here, here.client() as client:
        for _ in range(2):
            assert (await refused(client, "remember", text=TEXT))[0] == "approval_pending"
        assert files_with(tmp_path, WORDS[0])
        here.answer(True)
        made = await done(client, "remember", text=TEXT)
        await forget(here, client, made["id"])
        assert files_with(tmp_path, *WORDS) == []
        verified(here)


@pytest.mark.parametrize("stays", [True, False], ids=["caller stays", "caller leaves"])
async def test_an_answer_that_is_still_under_way_is_waited_for_and_erased(stays: bool, tmp_path: Path) -> None:
    """What a call writes at its end would outlive an erasure that comes before it."""
    async with remembering(tmp_path) as here, here.client(principal=AGENT, version=HANDSHAKE) as client:
        made = await done(client, "remember", text=TEXT)
        log, call, run = here.gateway.log, new_id(), str(client.run)
        asked = ToolCall(
            call_kind="tool", name="memory__recall", arguments={"query": WORDS[0]}, arguments_hmac="hmac-sha256:00",
            arguments_bytes=2, principal=AGENT.key, profile="default",
        )  # fmt: skip
        await log.append(run, draft(asked, actor=AGENT.key, call=call)).durable()
        assert await here.gateway.memory.touched([made["id"]], run=run, call=call) == []
        assert (await refused(client, "forget", id=made["id"]))[0] == "approval_pending"
        here.answer(True)
        request, reply = await client.start("tools/call", {"name": "memory__forget", "arguments": {"id": made["id"]}})
        await here.until("memory_written", count=2)
        while await here.gateway.memory.to_erase() != [(run, call)]:  # all others are erased by now
            pass
        if not stays:
            await client.notify("notifications/cancelled", {"requestId": request})
            await here.until("tool_error", count=2)
        answered = ToolResult(is_error=False, result={"text": TEXT}, where="in_process", duration_ms=1.0, bytes_out=4)
        await log.append_outcome(run, draft(answered, actor="gateway", call=call)).durable()
        if stays:
            assert (await reply)["result"]["structuredContent"]["calls_pending"] == 0
        while await here.gateway.memory.to_erase():
            pass
        assert files_with(tmp_path, *WORDS) == []
        verified(here)


async def test_what_a_killed_gateway_did_not_finish_its_next_start_does(tmp_path: Path) -> None:
    async with remembering(tmp_path) as here, here.client() as client:
        made = await done(client, "remember", text=TEXT)
        assert await texts(client, WORDS[0])
        item = await here.gateway.memory.find(made["id"])
        await here.gateway.memory.forget_item(item.id)  # and nothing after it, as if the process had ended here
    assert files_with(tmp_path, WORDS[0])
    await finished_by_the_next_start(tmp_path, WORDS)


async def test_what_must_not_be_stored_is_in_no_byte(tmp_path: Path) -> None:
    rules = f'{ALLOW_ALL} @id("eve") forbid (principal == Omni::User::"bob", action, resource);'
    async with remembering(tmp_path, rules) as here, here.client(principal=ANN) as client:
        made = await done(client, "remember", text="harmless")
        for tool, arguments in (
            ("remember", {}), ("remember", {"do_not_store": "yes"}), ("remember", {"subject": WORDS[2], "nothing": 1}),
            ("revise", {"id": made["id"]}), ("share", {}), ("remember", {WORDS[1]: "a name"}),
        ):  # fmt: skip
            code, words = await refused(client, tool, **{"do_not_store": True, "text": TEXT, **arguments})
            assert code == "invalid_arguments" and "nothing was kept" in words
        asked = [event.payload or {} for event in await here.events() if event.kind == "tool_call"]
        assert [call["arguments"] for call in asked[1:]] == [{"do_not_store": True}] * 6
        sealed = [event for event in await here.events() if event.body_digest.strip("0") and event.kind == "tool_call"]
        assert [event.call for event in sealed] == [made["source"]["call"]]
        assert (await done(client, "remember", text="kept", do_not_store=False))["version"] == 1
        assert (await done(client, "list"))["items"][1]["version"] == 1
    assert files_with(tmp_path, *WORDS) == []


async def test_a_call_of_another_tool_cannot_leave_the_record_by_saying_so(tmp_path: Path) -> None:
    async with remembering(tmp_path) as here, here.client() as client:
        await client.call("tools__text_hash", {"text": TEXT, "do_not_store": True})
        await client.call("memory__nothing", {"text": TEXT, "do_not_store": True})
        asked = [event.payload or {} for event in await here.events() if event.kind == "tool_call"]
        assert [call["arguments"] for call in asked] == [{"text": TEXT, "do_not_store": True}] * 2


async def test_forgetting_a_promoted_item_leaves_the_event_that_it_was_made_of(tmp_path: Path) -> None:
    """Else an agent could take any call of its own out of the record. An operator's forgetting takes it along."""
    async with remembering(tmp_path) as here, here.client(version=HANDSHAKE) as client:
        await client.call("tools__search_tools", {"query": TEXT})
        asked = next(event for event in await here.events() if event.kind == "tool_call")
        made = await done(client, "promote", run=asked.run, seq=asked.seq)
        again = await done(client, "promote", run=asked.run, seq=asked.seq)
        gone = await forget(here, client, made["id"])
        assert gone["stays_on_record"] == {"from_run": asked.run, "from_seq": asked.seq}
        assert files_with(tmp_path, WORDS[0])
    line = CommandLine(tmp_path)
    report = await line.json("memory", "forget", again["id"], "--yes")
    assert report["items"] == [again["id"]] and report["clean"] and report["stays"] == []
    assert files_with(tmp_path, *WORDS) == []
    verified(here)
