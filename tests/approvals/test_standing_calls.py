"""Standing grants through the front door: a whole gateway, the commands beside it, and a tool that destroys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from omni_mcp.cli.root import cli
from omni_mcp.config import ApprovalSettings, Settings
from omni_mcp.contracts.manifest import Labels
from omni_mcp.contracts.tool import Entry
from omni_mcp.testing import ALLOW_ALL, BOB, Canary, LocalGateway, MemoryClient, error_of, local_gateway
from tests.waiting import until

UNTRUSTED = Labels()  # nobody vouched for it: every guardrail that can apply does
BRIEFLY = Settings(approvals=ApprovalSettings(wait_s=0.02))
WAIT_S = 30


@asynccontextmanager
async def a_gateway(directory: Path, canary: Canary, rules: str = ALLOW_ALL) -> AsyncIterator[LocalGateway]:
    canary.tool("wipe", labels=UNTRUSTED)
    canary.tool("burn", labels=UNTRUSTED)
    async with local_gateway(rules, settings=BRIEFLY, canary=canary, directory=directory, cells=False) as here:
        yield here


async def person(here: LocalGateway, *words: str, group: str = "approvals") -> Any:
    """Run a command as a person beside the gateway does; returns what it prints."""
    environment = {"OMNI_HOME": str(here.home.config)}
    result = await asyncio.to_thread(CliRunner().invoke, cli, [group, *words, "--json"], env=environment)
    assert result.exit_code == 0, result.output
    return orjson.loads(result.stdout)


async def grant(here: LocalGateway, *words: str) -> str:
    """Give a grant and wait until it counts."""
    before = here.gateway.status()["standing_grants"]
    given = await person(here, "grant", *words, "--expires", "7d", "--yes")
    await until(lambda: here.gateway.status()["standing_grants"] == before + 1)
    return str(given["id"])


async def code_of(client: MemoryClient, tool: str = "canary__wipe") -> str | None:
    """Call once; returns the code of its failure, None for an answer."""
    return error_of(await client.call(tool)).get("code")


async def last_decision(here: LocalGateway) -> dict[str, Any]:
    decided = [event for event in await here.events() if event.code == "policy_decided"]
    return dict(decided[-1].payload or {})


async def test_a_standing_grant_lets_guarded_calls_pass_and_its_id_is_in_each_of_them(
    tmp_path: Path, canary: Canary
) -> None:
    async with a_gateway(tmp_path, canary) as here, here.client() as client:
        assert await code_of(client) == "approval_pending"
        given = await grant(here, "canary__wipe", "--user", "ann")

        assert [await code_of(client) for _ in range(3)] == [None] * 3

        events = [event for event in await here.events() if event.code == "policy_decided"]
        decided = [event.payload or {} for event in events][-3:]
        assert [(one["verdict"], one["standing"], one["approval"]) for one in decided] == [("allow", given, None)] * 3
        assert {one["request"]["context"]["standing"]["id"] for one in decided} == {given}
        assert {call.grant.approval for call in canary.calls if call.grant} == {given}
        story = await person(here, "last", group="explain")
        assert story["standing"] == given and f"under the standing grant {given}" in story["summary"]
    assert canary.touched == ["tool canary__wipe"] * 3


async def test_another_caller_and_another_tool_are_still_asked_about(tmp_path: Path, canary: Canary) -> None:
    async with a_gateway(tmp_path, canary) as here, here.client() as ann, here.client(principal=BOB) as bob:
        await code_of(ann)  # asked about once, so that its definition is known
        await grant(here, "canary__wipe", "--user", "ann")

        assert await code_of(ann) is None
        assert await code_of(bob) == "approval_pending"
        assert await code_of(ann, "canary__burn") == "approval_pending"
    assert canary.touched == ["tool canary__wipe"]


async def test_everyone_of_the_project_is_everyone(tmp_path: Path, canary: Canary) -> None:
    async with a_gateway(tmp_path, canary) as here, here.client() as ann, here.client(principal=BOB) as bob:
        await grant(here, "canary__*", "--any-definition")

        assert [await code_of(ann), await code_of(bob), await code_of(bob, "canary__burn")] == [None] * 3


async def test_a_revoked_grant_lets_nothing_pass_any_more(tmp_path: Path, canary: Canary) -> None:
    async with a_gateway(tmp_path, canary) as here, here.client() as client:
        given = await grant(here, "canary__wipe", "--any-definition")
        assert await code_of(client) is None

        await person(here, "revoke", given)
        await until(lambda: here.gateway.status()["standing_grants"] == 0)

        assert await code_of(client) == "approval_pending"
        assert (await last_decision(here))["standing"] is None
        assert (await here.until("standing_revoked")).payload is not None
    assert canary.touched == ["tool canary__wipe"]


@pytest.mark.parametrize("rules", ["", ALLOW_ALL + '@id("never") forbid (principal, action, resource);'])
async def test_without_a_rule_that_allows_the_call_a_standing_grant_changes_nothing(
    tmp_path: Path, canary: Canary, rules: str
) -> None:
    async with a_gateway(tmp_path, canary, rules) as here, here.client() as client:
        await grant(here, "canary__*", "--any-definition")

        assert await code_of(client) == "policy_denied"
    assert canary.touched == []


async def test_a_changed_tool_is_asked_about_again(tmp_path: Path, canary: Canary) -> None:
    async with a_gateway(tmp_path, canary) as here, here.client() as client:
        await code_of(client)
        await grant(here, "canary__wipe")
        assert await code_of(client) is None

        other = canary.load()
        canary._entries[:] = [
            Entry(kind="tool", server="canary", name=one.name, definition={**one.definition, "description": "new"},
                  binding=one.binding, labels=one.labels, limits=one.limits)
            for one in other
        ]  # fmt: skip
        here.gateway.reload_catalog()

        assert await code_of(client) == "approval_pending"
    assert canary.touched == ["tool canary__wipe"]


async def test_a_grant_given_while_no_gateway_ran_counts_from_the_first_call_on(tmp_path: Path, canary: Canary) -> None:
    async with a_gateway(tmp_path, canary) as here:
        pass
    await person(here, "grant", "canary__wipe", "--any-definition", "--expires", "1d", "--yes")

    async with (
        local_gateway(settings=BRIEFLY, canary=canary, directory=tmp_path, cells=False) as again,
        again.client() as client,
    ):
        code = await code_of(client)
        assert code is None, [event.payload for event in await again.events()][-3:]
        assert [event.code for event in await again.events()].count("standing_granted") == 1


async def test_a_waiting_call_is_told_at_once_when_its_tool_changed(tmp_path: Path, canary: Canary) -> None:
    canary.tool("wipe", labels=UNTRUSTED)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.client() as client:
        _, reply = await client.start("tools/call", {"name": "canary__wipe", "arguments": {}})
        await until(lambda: here.gateway.status()["pending_approvals"] == 1)
        canary._entries.clear()

        here.gateway.reload_catalog()

        result = (await asyncio.wait_for(reply, WAIT_S))["result"]
        assert error_of(result)["code"] == "approval_expired"
        assert "the tool changed while the call waited" in result["content"][0]["text"]


async def test_a_call_that_nobody_answered_names_the_question_its_end_and_the_commands(
    tmp_path: Path, canary: Canary
) -> None:
    async with a_gateway(tmp_path, canary) as here, here.client() as client:
        result = await client.call("canary__wipe")

        (asked,) = await person(here, "list")
    text = result["content"][0]["text"]
    assert asked["id"] in text and asked["expires_at"] in text
    assert f"omni-mcp approvals approve {asked['id']}" in text and f"approvals show {asked['id']}" in text
