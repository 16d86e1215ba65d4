"""A pin is one project's, of one launch, and a yes to one version is no yes to another."""

from __future__ import annotations

from pathlib import Path

from omni_mcp.contracts.manifest import Labels
from omni_mcp.testing import Canary, error_of
from tests.lock.world import OTHER_LAUNCH
from tests.pins.test_pinned_calls import NEW, OLD, a_story


async def test_what_one_project_is_pinned_to_can_be_named_by_no_other(canary: Canary, tmp_path: Path) -> None:
    async with a_story(canary, tmp_path) as story:
        await story.publishes()
        before = await story.calls(NEW, "notes__look@1", id="1")
        await story.pins("set", "old", "notes__look", "1")
        during = await story.calls(NEW, "notes__look@1", id="1")

    assert [error_of(one).get("code") for one in (before, during)] == ["policy_denied", "policy_denied"]
    assert canary.touched == []


async def test_a_pin_brings_back_nothing_that_was_accepted_of_another_launch(canary: Canary, tmp_path: Path) -> None:
    async with a_story(canary, tmp_path) as story:
        await story.pins("set", "old", "notes__look", "1")
        story.world.relaunched(OTHER_LAUNCH)
        await story.publishes()
        old, new = await story.calls(OLD, id="1"), await story.calls(NEW, page=1)
        listed = [await story.lists(OLD), await story.lists(NEW)]

    assert error_of(old)["code"] == "pin_missing"
    assert not new.get("isError")
    assert listed == [[], ["Second."]]


async def test_a_yes_to_version_2_covers_no_call_of_version_1_that_comes_after_the_pin(
    canary: Canary, tmp_path: Path
) -> None:
    async with a_story(canary, tmp_path) as story:
        await story.publishes(labels=Labels())
        async with story.world.here.client(principal=OLD) as client:
            _, reply = await client.start("tools/call", {"name": "notes__look@latest", "arguments": {"page": 1}})
            await story.world.here.until("approval_requested")
            story.world.here.answer(True)
            await story.pins("set", "old", "notes__look", "1")
            first = (await reply)["result"]
            _, later = await client.start("tools/call", {"name": "notes__look", "arguments": {"id": "1"}})
            await story.world.here.until("approval_requested", count=2)
            story.world.here.answer(False)
            second = (await later)["result"]

    assert [call.tool.version for call in canary.calls if call.tool] in ([], ["2"])
    assert second["isError"]
    assert first.get("isError", False) is (canary.calls == [])
