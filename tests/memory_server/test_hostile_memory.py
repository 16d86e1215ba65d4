"""What an attacker tries on the memory: to keep a forgotten text, or to have its own calls forgotten."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from omni_mcp.contracts.artifact import answer_name
from omni_mcp.contracts.events import ToolCall, draft
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.memory import MemoryItem, Readers, Recall
from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.engines.memory.store import open_memory
from omni_mcp.engines.memory.words import counted
from omni_mcp.engines.runlog.erase import Eraser
from omni_mcp.engines.runlog.store import open_ledger
from omni_mcp.serving.memory.erasing import open_eraser
from omni_mcp.testing import ALLOW_ALL
from tests.memory_server.world import (
    AGENT,
    HANDSHAKE,
    STRANGER,
    CommandLine,
    done,
    files_with,
    finished_by_the_next_start,
    forget,
    refused,
    remembering,
    verified,
)  # fmt: skip

WORDS = ("zyxwqumbo", "plofkrast", "gribnalux")
TEXT = f"the {WORDS[0]} stands behind the {WORDS[1]} of {WORDS[2]}"
ASKS = f"""{ALLOW_ALL}
@id("ask") @approval("required") forbid (principal, action, resource == Omni::Tool::"memory__remember")
unless {{ context has approval && context.approval.digest == context.args_digest }};"""


async def test_a_call_that_quotes_a_question_is_not_forgotten_with_its_item(tmp_path: Path) -> None:
    """Else an agent could take any call of its own out of the record."""
    async with remembering(tmp_path, ASKS) as here, here.client(principal=AGENT) as client:
        assert (await refused(client, "remember", text=TEXT))[0] == "approval_pending"
        asked = next(event for event in await here.events() if event.code == "approval_requested")
        question = (asked.payload or {})["approval"]
        await client.call("tools__text_hash", {"text": f"an evil deed {question}"})
        here.answer(True)
        made = await done(client, "remember", text=TEXT)
        await forget(here, client, made["id"])
        calls = [event for event in await here.events() if event.kind == "tool_call"]
        assert "an evil deed" in str([event.payload for event in calls])
        assert files_with(tmp_path, *WORDS) == []
        verified(here)


async def test_an_artifact_goes_although_a_later_call_names_it(tmp_path: Path) -> None:
    async with remembering(tmp_path) as here, here.client(version=HANDSHAKE) as client:
        made = [await done(client, "remember", text=f"{TEXT} {number} " + "filler " * 2000) for number in range(6)]
        await client.call("memory__recall", {"query": WORDS[0], "budget_chars": 100_000, "k": 50})
        kept = [(event.payload or {}).get("artifact") for event in await here.events()]
        [artifact] = [one["sha256"] for one in kept if one]
        await client.call("tools__text_hash", {"text": f"artifact://{artifact}"})
        for item in made:
            await forget(here, client, item["id"])
        assert files_with(tmp_path, *WORDS) == []
        verified(here)


@pytest.mark.parametrize(
    "wrong", [{"scope": "project"}, {"expires_at": "2001-01-01T00:00:00Z"}, {"importance": 7}], ids=str
)
async def test_the_first_try_of_what_is_forgotten_goes_too(wrong: dict[str, object], tmp_path: Path) -> None:
    async with remembering(tmp_path) as here, here.client(principal=AGENT) as client:
        await refused(client, "remember", text=TEXT, **wrong)
        made = await done(client, "remember", text=TEXT)
        await forget(here, client, made["id"])
        assert files_with(tmp_path, *WORDS) == []
        verified(here)


async def test_a_quote_that_was_sent_in_vain_goes_with_what_it_became(tmp_path: Path) -> None:
    """Its first try names an event that does not hold the quote; the next one says it in other words."""
    async with remembering(tmp_path) as here, here.client(principal=AGENT, version=HANDSHAKE) as client:
        assert (await refused(client, "promote", run=client.run, seq=1, quote=TEXT))[0] == "invalid_arguments"
        made = await done(client, "remember", text=TEXT)
        await forget(here, client, made["id"])
        assert files_with(tmp_path, *WORDS) == []
        verified(here)


async def test_a_revision_that_came_too_late_is_forgotten_with_its_item(tmp_path: Path) -> None:
    async with remembering(tmp_path) as here, here.client(principal=AGENT) as client:
        made = await done(client, "remember", text="harmless")
        assert (await refused(client, "revise", id=made["id"], text=TEXT, expected_version=7))[0] == "conflict"
        await forget(here, client, made["id"])
        assert files_with(tmp_path, *WORDS) == []


async def test_many_questions_leave_nothing_behind(tmp_path: Path) -> None:
    """Rows of questions move between pages of their database."""
    async with remembering(tmp_path, ASKS) as here, here.client(principal=AGENT) as client:
        made = []
        for number in range(14):
            text = f"{TEXT} {'filler ' * (37 * (number * 7 % 11))} {number}"
            assert (await refused(client, "remember", text=text))[0] == "approval_pending"
            here.answer(True)
            made.append(await done(client, "remember", text=text))
        for item in made[::2] + made[1::2]:
            await forget(here, client, item["id"])
        assert files_with(tmp_path, *WORDS) == []


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("recall", {"query": "harmless", "k": 10.0}),
        ("recall", {"query": "harmless", "k": 10, "budget_chars": 100.0}),
        ("list", {"limit": 2.0}),
        ("duplicates", {"limit": 2.0}),
        ("remember", {"text": "x", "expires_in_s": 60.0}),
        ("remember", {"text": "x", "importance": 1}),
    ],
    ids=str,
)
async def test_a_whole_number_with_a_point_is_an_integer(
    tool: str, arguments: dict[str, object], tmp_path: Path
) -> None:
    """JSON Schema says so."""
    async with remembering(tmp_path) as here, here.client(principal=AGENT) as client:
        await done(client, "remember", text="harmless")
        await done(client, "remember", text="harmless too")
        await done(client, "remember", text="harmless as well")
        await done(client, tool, **arguments)


@pytest.mark.parametrize("text", [None, "something else"], ids=["text stays", "text changes"])
async def test_an_erasure_takes_what_the_run_wrote_although_another_run_revised_it(
    text: str | None, tmp_path: Path
) -> None:
    async with remembering(tmp_path) as here:
        async with here.client(version=HANDSHAKE, principal=AGENT) as first:
            made = await done(first, "remember", text=TEXT)
            run = str(first.run)
        async with here.client(version=HANDSHAKE, principal=AGENT) as second:
            changes = {"importance": 0.9} if text is None else {"text": text}
            await done(second, "revise", id=made["id"], **changes)
    report = await CommandLine(tmp_path).json("erase", "--run", run, "--yes")
    assert report["memory"] == ([made["id"]] if text is None else [])
    assert files_with(tmp_path, *WORDS) == []


async def test_an_erasure_that_is_killed_before_it_unlinks_artifacts_is_finished(tmp_path: Path) -> None:
    async with remembering(tmp_path) as here, here.client(version=HANDSHAKE, principal=AGENT) as client:
        made = [await done(client, "remember", text=f"{TEXT} {number} " + "filler " * 2000) for number in range(6)]
        await done(client, "recall", query=WORDS[0], budget_chars=100_000, k=50)
        for item in made:
            await here.gateway.memory.forget_item(item["id"])
        calls = await here.gateway.memory.to_erase()
        with pytest.raises(_Killed), open_eraser(here.home, by="nobody") as eraser:
            eraser._blobs = _Dies(here.home.artifacts)
            eraser.erase_calls(calls, reason="it is killed")
        assert files_with(tmp_path, WORDS[0])
    await finished_by_the_next_start(tmp_path, WORDS)


async def test_an_answer_that_was_kept_before_its_call_was_killed_goes_too(tmp_path: Path) -> None:
    async with remembering(tmp_path) as here, here.client(version=HANDSHAKE, principal=AGENT) as client:
        made = await done(client, "remember", text=TEXT)
        call, run = new_id(), str(client.run)
        asked = ToolCall(
            call_kind="tool", name="memory__recall", arguments={"query": "x"}, arguments_hmac="hmac-sha256:00",
            arguments_bytes=2, principal=AGENT.key, profile="default",
        )  # fmt: skip
        await here.gateway.log.append(run, draft(asked, actor=AGENT.key, call=call)).durable()
        await here.gateway.memory.touched([made["id"]], run=run, call=call)
        blobs = BlobStore(here.home.artifacts)
        answer = (TEXT * 3000).encode()
        blobs.put(answer, media_type="application/json", owner=AGENT.key, run=run, name=answer_name(call))
        blobs.close()
    async with remembering(tmp_path) as here, here.client(version=HANDSHAKE, principal=AGENT) as client:
        assert [name for name in files_with(tmp_path, WORDS[0]) if "db" not in name]
        await forget(here, client, made["id"])
        assert files_with(tmp_path, *WORDS) == []


async def test_no_other_call_copies_a_large_answer_out_of_the_record(tmp_path: Path) -> None:
    async with remembering(tmp_path) as here, here.client(version=HANDSHAKE) as client:
        made = [await done(client, "remember", text=f"{TEXT} {number} " + "filler " * 2000) for number in range(6)]
        await done(client, "recall", query=WORDS[0], budget_chars=100_000, k=50)
        kept = [(event.payload or {}).get("artifact") for event in await here.events()]
        [artifact] = [one["sha256"] for one in kept if one]
        assert (await client.call("tools__artifact_read", {"artifact": artifact}))["isError"]
        assert (await refused(client, "promote", artifact=artifact))[0] == "not_found"
        for item in made:
            await forget(here, client, item["id"])
        assert files_with(tmp_path, *WORDS) == []


async def test_a_try_of_somebody_else_stays_theirs(tmp_path: Path) -> None:
    async with (
        remembering(tmp_path) as here,
        here.client(principal=AGENT) as client,
        here.client(principal=STRANGER) as stranger,
    ):
        await refused(stranger, "remember", text=TEXT, importance=7)
        await client.call("tools__text_hash", {"text": TEXT, "algorithm": "none"})
        made = await done(client, "remember", text=TEXT)
        await forget(here, client, made["id"])
        asked = [event.payload for event in await here.events() if event.kind == "tool_call"]
        assert sum(TEXT in str(payload) for payload in asked) == 2
    await CommandLine(tmp_path).run("memory", "list")


class _Killed(BaseException):
    """What ends a process between two steps."""


class _Dies(BlobStore):
    def release(self, run: str, sha256s: Sequence[str]) -> list[str]:
        raise _Killed


async def test_comparing_much_does_not_hold_up_somebody_elses_recall(tmp_path: Path) -> None:
    async with open_memory(tmp_path / "memory.db") as store:
        for owner, count in (("one", 4000), ("other", 1)):
            await store.put_many([_item(owner, "the same words over and over") for _ in range(count)])
        theirs = asyncio.ensure_future(store.duplicates(readers=_reader("one"), limit=5))
        mine = asyncio.ensure_future(store.recall(Recall(query="words", readers=_reader("other"))))
        await asyncio.wait({theirs, mine}, return_when=asyncio.FIRST_COMPLETED)
        assert mine.done() and not theirs.done()
        assert len(await mine) == 1 and [score for *_, score in await theirs] == [1.0] * 5


def _item(owner: str, text: str) -> MemoryItem:
    return MemoryItem(
        id=new_id(), scope="agent", owner=owner, project="default", text=text, at_ns=1_000, created_at_ns=1_000
    )


def _reader(owner: str) -> Readers:
    return Readers(places=(("agent", owner),), project="default")


def test_long_words_are_not_kept_in_the_memory_of_the_process() -> None:
    """Sixteen thousand of them would be hundreds of megabytes, of whoever sent them."""
    tracemalloc.start()
    try:
        for number in range(40):
            counted(f"{number}" * 5000)
            counted(f"{number}-" * 3000)
            counted(f"é{number}" * 3000)
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()


async def test_one_erasure_fills_the_search_anew_once_however_many_runs_it_is_about(tmp_path: Path) -> None:
    """All calls of everybody wait for it."""
    async with remembering(tmp_path) as here, here.client(principal=AGENT) as client:
        made = await done(client, "remember", text=TEXT)
        for _ in range(4):
            async with here.client(version=HANDSHAKE, principal=AGENT) as other:
                await done(other, "recall", query=WORDS[0])
        calls = await here.gateway.memory.forget_item(made["id"])
        assert len({run for run, _ in calls}) == 5
        ledger = open_ledger(here.home.log_file, here.home.secrets, events_per_run=1_000_000).ledger
        blobs = BlobStore(here.home.artifacts)
        before = ledger.commits
        erased = Eraser(ledger, here.home.log_file, blobs, by="nobody").erase_calls(calls, reason="once")
        assert (ledger.commits - before, len(erased.runs)) == (1, 5)
        blobs.close()
        ledger.connection.close()
        assert files_with(tmp_path, *WORDS) == []
        verified(here)


async def test_who_shared_an_item_can_take_it_back_when_the_run_is_long_erased(tmp_path: Path) -> None:
    async with remembering(tmp_path) as here, here.client(version=HANDSHAKE, principal=AGENT) as client:
        made = await done(client, "share", text=TEXT)
    await CommandLine(tmp_path).run("retention", "run", "--older-than", "0s")
    async with (
        remembering(tmp_path) as here,
        here.client(principal=AGENT) as client,
        here.client(principal=STRANGER) as stranger,
    ):
        assert (await refused(stranger, "share", revises=made["id"], text="mine"))[0] == "not_found"
        await forget(here, client, made["id"])
        assert files_with(tmp_path, *WORDS) == []


async def test_what_must_not_be_stored_is_in_no_byte_wherever_it_is_sent(tmp_path: Path) -> None:
    arguments = {"do_not_store": True, "text": TEXT}
    async with remembering(tmp_path) as here:
        async with here.client(profile="tools") as elsewhere:
            assert (await elsewhere.call("memory__remember", arguments))["isError"]
        async with here.client() as client:
            model = {"io.omni-mcp/model": {"name": WORDS[0]}}
            assert (await client.call("memory__remember", arguments, _meta=model))["isError"]
            await client.call("memory__nothing", {"text": "an evil deed", "do_not_store": True})
        asked = [event.payload for event in await here.events() if event.kind == "tool_call"]
        assert len(asked) == 3 and "an evil deed" in str(asked)
    assert files_with(tmp_path, *WORDS) == []
