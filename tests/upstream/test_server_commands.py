"""`servers test` and `servers list`: how a server does, for whoever set it up."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from omni_mcp.cli.root import cli
from omni_mcp.config import load_settings
from omni_mcp.engines.sandbox.launcher import base_interpreter
from omni_mcp.server_definition import ServerDefinition, Servers
from omni_mcp.servers_file import save_servers, servers_file_of
from omni_mcp.testing import WAIT_S, home_in
from omni_mcp.upstreams.definitions import read_definitions
from tests.upstream.servers.web import Asked, handshake, text, web_server
from tests.upstream.town import Shop, a_town

GOOD = """
import json, sys
print("ready to serve", file=sys.stderr, flush=True)
for line in sys.stdin:
    message = json.loads(line)
    if message.get("method") == "initialize":
        result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "small"}}
    elif message.get("method") == "tools/list":
        result = {"tools": [{"name": "one", "inputSchema": {"type": "object"}}, {"name": "two"}]}
    elif "id" in message:
        error = {"code": -32601, "message": "no"}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}), flush=True)
        continue
    else:
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""
BAD = "import sys; print('no key given: hunter2-hunter2', file=sys.stderr); sys.exit(3)"


async def tried(directory: Path, *words: str) -> tuple[int, Any, str]:
    """Run `servers test` as a person does; returns its exit code, what it says as JSON, and as text."""
    environment = {"OMNI_HOME": str(directory / "home")}

    def both() -> tuple[int, Any, str]:
        runner = CliRunner(env=environment)
        told = runner.invoke(cli, ["servers", "test", *words, "--json"])
        return told.exit_code, json.loads(told.stdout), runner.invoke(cli, ["servers", "test", *words]).output

    return await asyncio.wait_for(asyncio.to_thread(both), 2 * WAIT_S)


def defined(directory: Path, **servers: ServerDefinition) -> None:
    home = home_in(directory)
    save_servers(servers_file_of(home), Servers(servers=servers))


async def test_a_server_at_a_url_is_greeted_and_listed_and_nothing_is_kept_of_it(tmp_path: Path) -> None:
    async with web_server(Shop().script()) as server:
        defined(tmp_path, up=ServerDefinition(url=server.url, enabled=False))  # before it is used is when to try it
        code, found, shown = await tried(tmp_path, "up")

    assert (code, found["ok"], found["era"], found["version"], found["offers"]["tool"]) == (
        0, True, "handshake", "2025-11-25", 1,
    )  # fmt: skip
    assert found["ready_ms"] > 0 and found["list_ms"] > 0
    assert "2025-11-25" in shown and "1 tool" in shown
    assert not (tmp_path / "home" / "data" / "listings").exists()


@pytest.mark.usefixtures("cells")
async def test_a_command_says_what_isolates_it_and_what_of_its_list_was_left_out(tmp_path: Path) -> None:
    command = base_interpreter().binary
    defined(tmp_path, small=ServerDefinition(command=command, args=("-I", "-S", "-c", GOOD)))
    code, found, shown = await tried(tmp_path, "small")

    assert (code, found["version"], found["offers"]["tool"]) == (0, "2025-06-18", 1)
    assert found["isolation"]["posture"] in ("full", "no-cgroup", "landlock")
    assert "'two'" in found["left_out"][0]
    assert "ready to serve" in found["stderr"]
    assert found["isolation"]["posture"] in shown


@pytest.mark.usefixtures("cells")
async def test_a_command_that_fails_shows_how_it_ended_and_the_last_it_wrote_without_secrets(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    secret = tmp_path / "key"
    secret.write_text("hunter2-hunter2")
    definition = ServerDefinition(
        command=base_interpreter().binary, args=("-I", "-S", "-c", BAD), secrets={"KEY": "key"}
    )
    save_servers(servers_file_of(home), Servers(servers={"bad": definition}, secrets={"key": f"file:{secret}"}))
    code, found, shown = await tried(tmp_path, "bad")

    assert (code, found["ok"]) == (1, False)
    assert "3" in found["fault"]
    assert "no key given" in found["stderr"] and "no key given" in shown
    assert "hunter2" not in str(found) + shown


async def test_a_server_that_is_not_there_or_lacks_a_secret_is_said_to(tmp_path: Path) -> None:
    port = ServerDefinition(url="http://127.0.0.1:9/mcp")
    lacks = ServerDefinition(url="http://127.0.0.1:9/mcp", headers={"X-Key": "secret:nowhere"})
    defined(tmp_path, closed=port, lacks=lacks)
    closed, lacking = await tried(tmp_path, "closed"), await tried(tmp_path, "lacks")
    unknown = CliRunner(env={"OMNI_HOME": str(tmp_path / "home")}).invoke(cli, ["servers", "test", "nobody"])

    assert (closed[0], lacking[0], unknown.exit_code) == (1, 1, 1)
    assert closed[1]["fault"] and "nowhere" in lacking[1]["fault"]
    assert "servers list" in unknown.output


async def test_a_server_that_is_killed_is_degraded_and_then_offline_and_ready_again_if_it_comes_back_before(
    tmp_path: Path,
) -> None:
    up = True

    async def call(asked: Asked) -> None:
        await asked.result(text("done"))

    script = handshake(call)

    async def sometimes(asked: Asked) -> None:
        if up:
            await script(asked)
        else:
            asked.writer.close()

    async with web_server(sometimes) as server:
        settings = f'[servers.up]\nurl = "{server.url}"\n'
        async with a_town(tmp_path, settings) as town, town.here.client() as client:
            await town.accepted("up")
            await client.call("up__it")
            seen = [town.status("up")["status"]]
            up = False
            await client.call("up__it")
            seen.append(town.status("up")["status"])
            up = True
            await client.call("up__it")
            seen.append(town.status("up")["status"])
            up = False
            for _ in range(10):
                await client.call("up__it")
                if town.status("up")["status"] == "offline":
                    break
            seen.append(town.status("up")["status"])
            listed = town.names()
            events = [event.payload and event.payload["state"] for event in await town.here.events()
                      if event.code == "server_state"]  # fmt: skip

    assert seen == ["ready", "degraded", "ready", "offline"]
    assert listed == ["up__it"]  # its tools stay listed
    assert events == ["ready", "degraded", "ready", "degraded", "offline"]


def test_a_disabled_server_is_defined_and_not_used(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    save_servers(
        servers_file_of(home), Servers(servers={"off": ServerDefinition(command=sys.executable, enabled=False)})
    )
    found = read_definitions(load_settings(home.settings_file).servers, home, secrets={}, environment={})
    assert [definition.enabled for definition in found.servers.values()] == [False]
