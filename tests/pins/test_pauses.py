"""`omni-mcp pause`: new calls are refused, also after a restart; what is under way finishes; others go on."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from omni_mcp.cli.root import cli
from omni_mcp.contracts.lock import Pause
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.testing import error_of
from tests.databases import locked
from tests.upstream.servers.web import web_server
from tests.upstream.town import Shop, a_town
from tests.waiting import until

TOOLS = [{"name": name, "inputSchema": {"type": "object"}} for name in ("slow", "it")]


async def test_a_paused_tool_takes_no_new_call_also_after_a_restart_and_the_one_under_way_finishes(
    tmp_path: Path,
) -> None:
    shop = Shop(tools=TOOLS)
    async with web_server(shop.script()) as server:
        settings = f'[servers.up]\nurl = "{server.url}"\n'
        async with a_town(tmp_path, settings) as town, town.here.client() as client:
            await town.accepted("up")
            _, under_way = await client.start("tools/call", {"name": "up__slow", "arguments": {}})
            await shop.begun.wait()
            town.runs("pause", "tool", "up__slow", "--note", "being looked at")
            await until(lambda: town.here.gateway.status()["paused"])
            paused = town.here.gateway.status()["paused"]
            refused, other = await client.call("up__slow"), await client.call("up__it")
            event = await town.here.end_of(error_of(refused)["call"])
            shop.open.set()
            finished = (await under_way)["result"]
        async with a_town(tmp_path) as again, again.here.client() as client:
            after_restart = await client.call("up__slow")
            again.runs("resume", "tool", "up__slow")
            await until(lambda: not again.here.gateway.status()["paused"])
            resumed = await client.call("up__slow")

    assert paused["up/tool/slow"]["note"] == "being looked at"
    assert [error_of(one).get("code") for one in (refused, other, finished)] == ["paused", None, None]
    assert event.payload is not None and event.payload["dispatched"] is False
    assert "being looked at" in event.payload["detail"] and "being looked at" not in str(refused)
    assert [error_of(one).get("code") for one in (after_restart, resumed)] == ["paused", None]


async def test_a_paused_server_takes_no_call_of_any_of_its_tools_and_only_known_names_can_be_paused(
    tmp_path: Path,
) -> None:
    async with web_server(Shop(tools=TOOLS).script()) as server:
        async with a_town(tmp_path, f'[servers.up]\nurl = "{server.url}"\n') as town, town.here.client() as client:
            await town.accepted("up")
            town.runs("pause", "server", "up")
            town.runs("pause", "tool", "tools__text_hash")
            await until(lambda: len(town.here.gateway.status()["paused"]) == 2)
            codes = [error_of(await client.call(name)).get("code") for name in ("up__it", "up__slow")]
            own = await client.call("tools__text_hash", {"text": "x"})
    person = CliRunner(env={"OMNI_HOME": str(tmp_path / "home")})
    wrong = [person.invoke(cli, words).exit_code for words in (
        ["pause", "tool", "up__none"], ["pause", "server", "none"], ["resume", "tool", "up__it"],
    )]  # fmt: skip

    assert codes == ["paused", "paused"]
    assert error_of(own)["code"] == "paused"
    assert wrong == [1, 1, 1]


async def test_a_call_that_waits_for_its_record_when_its_server_is_paused_is_refused(tmp_path: Path) -> None:
    shop = Shop(tools=TOOLS)
    async with web_server(shop.script()) as server:
        async with a_town(tmp_path, f'[servers.up]\nurl = "{server.url}"\n') as town, town.here.client() as client:
            gateway = town.here.gateway
            await town.accepted("up")
            before = await client.call("up__it")
            with locked(town.here.home.log_file):
                _, waiting = await client.start("tools/call", {"name": "up__it", "arguments": {}})
                await until(lambda: gateway.open_calls == 1)
                pauses = {"up": Pause(by="ann", at="2026-11-21T12:00:00Z")}
                LockFile(town.here.home.lock_file).edit(lambda now: now.model_copy(update={"paused": pauses}))
                await gateway.reload_lock()
                running = gateway.doors.facts()["running"]
            refused = (await waiting)["result"]
        calls = [one for one in server.asked if one.rpc == "tools/call"]

    assert error_of(before) == {} and running == {}
    assert error_of(refused)["code"] == "paused"
    assert len(calls) == 1
