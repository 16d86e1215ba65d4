"""What an attacker tries on the memory: to keep a forgotten text, or to have its own calls forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from omni_mcp.testing import ALLOW_ALL
from tests.memory_server.world import (
    AGENT,
    HANDSHAKE,
    done,
    files_with,
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
