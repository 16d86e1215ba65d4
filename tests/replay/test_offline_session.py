"""A session with three servers, recorded, and given again to the same client without any of them, or a network."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.replay.script import Script
from tests.replay.world import World, world

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("cells"), pytest.mark.slow, pytest.mark.sandbox
]  # fmt: skip
SERVERS = ("lines", "web", "old")
LOUD = {"io.modelcontextprotocol/logLevel": "debug"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here() -> AsyncIterator[World]:
    async with world() as opened:
        yield opened


def everything(*, modern: bool) -> Script:
    """Lists, calls, errors, progress, messages, questions, resources and prompts of each server."""
    script = Script(modern=modern)
    for what in ("tools", "resources", "resources/templates", "prompts"):
        script.add(f"{what}/list")
    for server in SERVERS:
        script.call(f"{server}__echo", text="hi").call(f"{server}__echo", text="hi")
        script.call(f"{server}__fail").call(f"{server}__refuse")
        script.call(f"{server}__progress", meta={"progressToken": f"of {server}"})
        script.call(f"{server}__log", meta=LOUD if modern else None)
        script.call(f"{server}__sample").call(f"{server}__roots")
        script.add("resources/read", uri=f"omni+{server}+test://static")
        script.add("resources/read", uri=f"omni+{server}+test://item/7")
        script.add("resources/read", uri=f"omni+{server}+nowhere://at/all")
        script.add("prompts/get", name=f"{server}__greet", arguments={"word": server})
    script.call("lines__ask").call("web__ask")
    script.call("nowhere__nothing").add("no/such/method")
    return script


@pytest.mark.parametrize(
    "modern", [pytest.param(False, id="handshake", marks=pytest.mark.long), pytest.param(True, id="modern")]
)
async def test_a_session_comes_back_byte_for_byte_without_servers_and_network(here: World, modern: bool) -> None:
    script = everything(modern=modern)
    recorded = await here.session(script)
    run = await here.newest_run()

    again = await here.replayed(script, run, alone=True)

    assert again.code == 0, again.stderr
    assert again.lines == recorded.lines
    said = recorded.raw.decode()
    for word in ("of old", "of web", "of lines", "accept Ann", "file:///here", "no such luck", "hello web"):
        assert word in said  # else the script proves less than it says
    assert said.count('"requestState"') == (8 if modern else 0)
    assert "recorded calls were asked again" in again.stderr


async def test_what_was_not_recorded_is_refused_and_said(here: World) -> None:
    await here.session(Script(modern=False).call("web__echo", text="once"))
    run = await here.newest_run()

    twice = Script(modern=False).call("web__echo", text="once").call("web__echo", text="once")
    again = await here.replayed(twice, run)

    first, second = (reply["result"] for reply in again.replies[1:])
    assert first["content"][0]["text"] == "once"
    assert second["isError"] and "not_recorded" in second["content"][0]["text"]
    assert again.code == 1 and "not recorded: a call of web__echo" in again.stderr


@pytest.mark.long
async def test_a_replay_that_would_not_be_the_same_is_not_begun_and_names_what_changed(here: World) -> None:
    script = Script(modern=False).call("web__echo", text="x")
    recorded = await here.session(script)
    run = await here.newest_run()
    here.place.write_policy('@id("more") permit (principal == Omni::User::"nobody", action, resource);', "more.cedar")
    try:
        refused = await here.replayed(script, run)
        anyway = await here.replayed(script, run, options=("--accept-changes",))
    finally:
        (here.place.home.policies / "more.cedar").unlink()

    assert refused.code == 1 and not refused.raw and "policy_version" in refused.stderr
    assert anyway.raw == recorded.raw


@pytest.mark.long
async def test_a_run_is_made_again_with_parity_and_leaves_a_run_whose_parent_it_is(here: World) -> None:
    await here.session(everything(modern=True))
    run = await here.newest_run()

    told = await here.command("runs", "replay", run)

    newest = await here.newest_run()
    assert told.startswith("parity: ") and newest in told
    assert f'"parent_run": "{run}"' in await here.command("runs", "show", newest, "--json")
    assert "verified" in await here.command("audit", "verify")
