"""Through the front door: a project that is pinned to a version keeps it, whatever is accepted or installed later."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from omni_mcp.cli.root import cli
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.lock import Lock
from omni_mcp.contracts.manifest import Labels
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.testing import ALLOW_ALL, Canary, error_of
from tests.lock.world import READ_ONLY, Server, World, a_world, tool

OLD = Principal(kind="User", id="ann", project="old")
NEW = Principal(kind="User", id="ann", project="new")
FIRST = tool(description="First.")
SECOND: JsonObject = {
    **tool(description="Second."),
    "inputSchema": {"type": "object", "properties": {"page": {"type": "integer"}}, "required": ["page"]},
}
READERS = '@id("readers") permit (principal, action, resource) when { resource.read_only };'


@dataclass
class Story:
    """A world in which version 1 and then version 2 of `notes__look` were accepted."""

    world: World

    def runs(self, *words: str) -> Result:
        home = self.world.here.home.config
        return CliRunner(env={"OMNI_HOME": str(home)}).invoke(cli, list(words))

    async def pins(self, *words: str) -> None:
        """Run a command that changes omni.lock, and have the gateway look."""
        done = self.runs("pins", *words)
        assert done.exit_code == 0, done.output
        await self.looks()

    async def looks(self) -> None:
        self.world.lock.reload()
        assert await self.world.here.gateway.reload_lock()
        self.world.here.gateway.catalog.reload()  # the source of this world is none that the gateway watches

    async def calls(self, who: Principal, name: str = "notes__look", **arguments: Any) -> JsonObject:
        async with self.world.here.client(principal=who) as client:
            return await client.call(name, arguments)

    async def lists(self, who: Principal) -> list[str]:
        """Return the descriptions of the server's tools that a client of *who* sees."""
        async with self.world.here.client(principal=who) as client:
            found = await client.listed("tools")
        return [one["description"] for one in found if one["name"].startswith("notes__")]

    async def publishes(self, definition: JsonObject = SECOND, labels: Labels = READ_ONLY) -> None:
        """The server offers *definition* from now on, and a person accepted it."""
        self.world.changes(definition)
        self.world.accept(labels=labels)
        await self.looks()


@asynccontextmanager
async def a_story(canary: Canary, directory: Path, rules: str = ALLOW_ALL) -> AsyncIterator[Story]:
    async with a_world(canary, directory, Server(FIRST), rules) as world:
        world.accept()
        yield Story(world)


def without_version(now: Lock, version: str) -> Lock:
    data = now.model_dump(mode="json")
    del data["servers"]["notes"]["items"]["tool/look"]["versions"][version]
    return Lock.model_validate(data)


async def test_a_pinned_project_keeps_calling_version_1_after_version_2_was_accepted_and_the_others_go_on(
    canary: Canary, tmp_path: Path
) -> None:
    async with a_story(canary, tmp_path) as story:
        await story.pins("set", "old", "notes__look", "1")
        await story.publishes()
        old = await story.calls(OLD, id="1")
        old_with_new_arguments = await story.calls(OLD, page=1)
        new = await story.calls(NEW, page=1)
        listed = [await story.lists(OLD), await story.lists(NEW)]
        events = [event for event in await story.world.here.events() if event.code == "policy_decided"]

    assert not old.get("isError")
    assert error_of(old_with_new_arguments)["code"] == "invalid_arguments"
    assert not new.get("isError")
    assert listed == [["First."], ["Second."]]
    assert [event.payload and event.payload["tool_version"] for event in events] == ["1", "1", "2"]
    assert [call.tool and call.tool.definition["description"] for call in canary.calls] == ["First.", "Second."]


async def test_a_pin_whose_version_was_taken_out_of_the_lock_fails_with_pin_missing_and_is_not_listed(
    canary: Canary, tmp_path: Path
) -> None:
    async with a_story(canary, tmp_path) as story:
        await story.pins("set", "old", "notes__look", "1")
        await story.publishes()
        LockFile(story.world.lock.path).edit(lambda now: without_version(now, "1"))
        await story.looks()
        old, new = await story.calls(OLD, id="1"), await story.calls(NEW, page=1)
        listed = [await story.lists(OLD), await story.lists(NEW)]
        shown = json.loads(story.runs("pins", "list", "--json").stdout)
        outcomes = sorted(word for words in (await story.world.here.outcomes()).values() for word in words)

    assert error_of(old)["code"] == "pin_missing"
    assert not new.get("isError")
    assert listed == [[], ["Second."]]
    assert [(one["project"], one["item"], one["version"], one["there"]) for one in shown] == [
        ("old", "notes/tool/look", "1", False)
    ]
    assert outcomes == ["tool_error:pin_missing", "tool_result"]
    assert canary.touched == ["tool notes__look"]


async def test_who_may_not_call_the_tool_is_not_told_that_a_pin_is_missing(canary: Canary, tmp_path: Path) -> None:
    async with a_story(canary, tmp_path, READERS) as story:
        await story.pins("set", "old", "notes__look", "1")
        await story.publishes(labels=Labels())
        LockFile(story.world.lock.path).edit(lambda now: without_version(now, "1"))
        await story.looks()
        assert error_of(await story.calls(OLD, id="1"))["code"] == "policy_denied"


async def test_a_pin_lends_no_harmless_label_to_what_the_server_does_now(canary: Canary, tmp_path: Path) -> None:
    async with a_story(canary, tmp_path, READERS) as story:
        await story.pins("set", "old", "notes__look", "1")
        assert not (await story.calls(OLD, id="1")).get("isError")
        await story.publishes(labels=Labels(read_only=False, destructive=True))
        refused = await story.calls(OLD, id="1")

    assert error_of(refused)["code"] == "policy_denied"  # version 1 only read; nobody says so of what runs now
    assert canary.touched == ["tool notes__look"]


async def test_a_pin_makes_nothing_callable_while_what_the_server_offers_is_quarantined(
    canary: Canary, tmp_path: Path
) -> None:
    async with a_story(canary, tmp_path) as story:
        await story.pins("set", "old", "notes__look", "1")
        story.world.changes(SECOND)
        refused = await story.calls(OLD, id="1")

    assert error_of(refused)["code"] == "policy_denied"
    assert canary.touched == []


async def test_a_pin_that_comes_while_a_person_is_asked_ends_the_call_of_the_other_version(
    canary: Canary, tmp_path: Path
) -> None:
    async with a_story(canary, tmp_path) as story:
        await story.publishes(labels=Labels())
        async with story.world.here.client(principal=OLD) as client:
            _, reply = await client.start("tools/call", {"name": "notes__look", "arguments": {"page": 1}})
            await story.world.here.until("approval_requested")
            await story.pins("set", "old", "notes__look", "1")
            story.world.here.answer(True)
            result = (await reply)["result"]

    assert result["isError"]
    assert canary.touched == []


async def test_each_change_of_a_pin_is_on_record_once_also_one_that_was_made_while_no_gateway_ran(
    canary: Canary, tmp_path: Path
) -> None:
    async with a_story(canary, tmp_path) as story:
        await story.pins("set", "old", "notes__look", "1")
        await story.looks()
        first = await story.world.here.until("pins_changed")
        story.runs("pins", "remove", "old", "notes/tool/look")
    async with a_world(canary, tmp_path, Server(FIRST)) as again:
        last = await again.here.until("pins_changed", count=2)
        events = [event for event in await again.here.events() if event.code == "pins_changed"]

    assert first.payload is not None
    assert last.payload is not None
    [now] = first.payload["now"]
    assert (now["project"], now["item"], now["version"], bool(now["by"])) == ("old", "notes/tool/look", "1", True)
    assert [one["version"] for one in last.payload["gone"]] == ["1"]
    assert len(events) == 2


async def test_clients_hear_that_a_pin_changed_their_lists(canary: Canary, tmp_path: Path) -> None:
    async with a_story(canary, tmp_path) as story:
        await story.publishes()
        async with story.world.here.client(principal=OLD, version="2025-11-25") as client:
            client.heard.clear()
            await story.pins("set", "old", "notes__look", "1")
            await client.heard.wait()
            assert [one["description"] for one in await client.listed("tools") if "notes" in one["name"]] == ["First."]


async def test_search_finds_the_version_that_the_project_is_pinned_to(canary: Canary, tmp_path: Path) -> None:
    async with a_story(canary, tmp_path) as story:
        await story.pins("set", "old", "notes__look", "1")
        await story.publishes()
        found = [await story.calls(who, "tools__search_tools", query="look") for who in (OLD, NEW)]

    def of(result: JsonObject) -> list[str]:
        return [one["description"] for one in result["structuredContent"]["tools"] if one["name"] == "notes__look"]

    assert [of(one) for one in found] == [["First."], ["Second."]]


async def test_a_pinned_project_cannot_name_its_way_to_another_version(canary: Canary, tmp_path: Path) -> None:
    async with a_story(canary, tmp_path) as story:
        await story.pins("set", "old", "notes__look", "1")
        await story.publishes()
        ways = ["notes__look@2", "notes__look@latest", "notes__look@1", "notes__look@"]
        old = [await story.calls(OLD, way, id="1") for way in ways]
        new = [await story.calls(NEW, way, page=1) for way in ways]

    def codes(results: list[JsonObject]) -> list[str | None]:
        return [error_of(one).get("code") for one in results]

    assert codes(old) == ["policy_denied", None, None, "policy_denied"]
    assert codes(new) == [None, None, "policy_denied", "policy_denied"]  # a pin of another project opens no way


async def test_only_what_is_there_can_be_pinned(canary: Canary, tmp_path: Path) -> None:
    async with a_story(canary, tmp_path) as story:
        version, tool_name = (
            story.runs("pins", "set", "old", "notes__look", "7"),
            story.runs("pins", "set", "old", "x__y", "1"),
        )
        gone = story.runs("pins", "remove", "old", "notes__look")

    assert (version.exit_code, tool_name.exit_code, gone.exit_code) == (1, 1, 1)
    assert "choose one of: 1" in version.output
    assert LockFile(story.world.lock.path).read().pins == {}
