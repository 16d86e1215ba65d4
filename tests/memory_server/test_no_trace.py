"""After a forgetting no piece of a word is left, in no spelling and in no kind of file.

Looked into is all that the gateway writes: its home, its sockets' place and the system's temporary files.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from omni_mcp.contracts.call import Answer, Call
from omni_mcp.testing import ALLOW_ALL, Canary
from tests.memory_server.world import (
    AGENT,
    HANDSHAKE,
    MODERN,
    STRANGER,
    CommandLine,
    done,
    finished_by_the_next_start,
    forget,
    refused,
    remembering,
    resource,
    texts,
    verified,
)  # fmt: skip
from tests.traces import Traces

WORDS = ("xwolframitz", "pfnürzelgah", "kjökvantqus")  # the beginning and the end of each are in no other word
NEIGHBOUR = "xwolfram beside pfnurzel and kjokvan"  # shares their beginnings, and stays
TEXT = f"the {WORDS[0]} stands behind the {WORDS[1]} of {WORDS[2]}"
SHEET_EVENTS = 256
LEFT = Traces(*WORDS, elsewhere=NEIGHBOUR)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which the system's temporary files lie, too."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


RULES = f"""{ALLOW_ALL}
@id("ask") @approval("required") forbid (principal, action, resource == Omni::Tool::"memory__share")
unless {{ context has approval && context.approval.digest == context.args_digest }};"""


@pytest.mark.parametrize("era", [MODERN, pytest.param(HANDSHAKE, marks=pytest.mark.long)])
async def test_after_a_forgetting_no_piece_of_a_word_is_in_any_file_of_any_kind(era: str, place: Path) -> None:
    canary = Canary(place / "touched")

    async def nothing(call: Call) -> Answer:
        return Answer(body={"content": [{"type": "text", "text": "nothing"}], "isError": False}, where="remote")

    canary.tool("nothing", nothing)
    async with (
        remembering(place, RULES, canary=canary) as here,
        here.client(principal=AGENT, version=HANDSHAKE) as client,
        here.client(principal=STRANGER, version=era) as reader,
    ):
        kept = await done(client, "remember", text=NEIGHBOUR)
        facts = {"text": TEXT, "subject": WORDS[2], "tags": [WORDS[0]], "session": WORDS[1]}
        assert (await refused(client, "share", **facts))[0] == "approval_pending"
        here.answer(True)
        made = [await done(client, "share", **facts)]
        made += [
            await done(client, "remember", text=f"{TEXT} {number} " + "filler " * 2000, key=f"{WORDS[1]}{number}")
            for number in range(8)
        ]
        await done(client, "revise", id=made[1]["id"], text=f"{TEXT} revised")
        await refused(client, "revise", id=made[1]["id"], text=f"{TEXT} too late", expected_version=1)
        await done(client, "recall", query=WORDS[0], k=50, budget_chars=100_000)
        assert await texts(reader, WORDS[0]) and await resource(reader, made[0]["uri"])
        await done(reader, "duplicates")
        for _ in range(SHEET_EVENTS):
            await client.call("canary__nothing")
        await here.gateway.log.flush_index()
        before = LEFT.below(place)
        kinds = {name.split("/")[-1].partition(".")[2] if "sheets" in name else name.split("/")[-1] for name in before}
        assert kinds >= {"sheet", "runlog.db", "memory.db", "state.db-wal"}, kinds
        assert any("artifacts" in name for name in before), before.keys()
        for item in made:
            await forget(here, client, item["id"])
        assert LEFT.below(place) == {}
        assert [item["id"] for item in (await done(client, "list"))["items"]] == [kept["id"]]
        verified(here)
    assert LEFT.below(place) == {}
    await finished_by_the_next_start(place, WORDS)


@pytest.mark.parametrize(
    "beside",
    [pytest.param(True, id="beside the gateway"), pytest.param(False, id="alone", marks=pytest.mark.long)],
)
async def test_after_an_erasure_no_piece_of_a_word_of_the_run_is_in_any_file_of_any_kind(
    beside: bool, place: Path
) -> None:
    """Asked, answered, refused, said on the way, kept apart as an artifact and as a sealed file."""
    canary = Canary(place / "touched")

    async def large(call: Call) -> Answer:
        await call.link.progress(1, 2, TEXT)
        return Answer(body={"content": [{"type": "text", "text": f"{TEXT} " * 5000}], "isError": False}, where="remote")

    canary.tool("echo")
    canary.tool("large", large)
    line = CommandLine(place)
    async with remembering(place, RULES, canary=canary) as here:
        async with here.client(principal=AGENT, version=HANDSHAKE) as other:
            await other.call("canary__echo", {"word": NEIGHBOUR})
            for _ in range(SHEET_EVENTS // 3):
                await other.call("canary__echo", {"word": NEIGHBOUR})
        async with here.client(principal=AGENT, version=HANDSHAKE) as client:
            for number in range(SHEET_EVENTS // 3 + 1):
                await client.call("canary__echo", {WORDS[1]: f"{TEXT} {number}"})
            await client.call("canary__large", {}, _meta={"progressToken": WORDS[0]})
            await client.call(f"canary__{WORDS[0]}")
            await client.call("runs__search", {"query": WORDS[2]})
            await client.call("messages__say", {"kind": "user_message", "text": TEXT, "author": WORDS[1]})
            run = str(client.run)
        await here.gateway.log.flush_index()
        before = LEFT.below(place)
        assert {name.partition("/data/")[2].split("/")[0] for name in before} >= {"runlog.db", "sheets", "artifacts"}
        assert list((here.home.data / "bodies").iterdir()), "a body that is a file of its own"
        if beside:
            await line.run("erase", "--run", run, "--yes")
            assert LEFT.below(place) == {}
            verified(here)
    if not beside:
        await line.run("erase", "--run", run, "--yes")
    assert LEFT.below(place) == {}
    await line.run("db", "rebuild")
    assert LEFT.below(place) == {}
    assert "verified" in await line.run("audit", "verify")
