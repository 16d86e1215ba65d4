"""Every block of docs/connect.md can be pasted: it parses, and what it starts is a command that exists and works."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.cli.shim import parse_arguments
from omni_mcp.config import Settings
from tests.daemon.gateway_world import World, a_world, connect, serving

PAGE = Path(__file__).resolve().parents[2] / "docs" / "connect.md"
BLOCKS = {
    name: (language, text)
    for language, name, text in re.findall(r"^```(json|toml|sh) ?([a-z-]*)\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    if name
}


def parsed(name: str) -> dict[str, Any]:
    language, text = BLOCKS[name]
    return json.loads(text) if language == "json" else tomllib.loads(text)


def server_of(block: dict[str, Any]) -> dict[str, Any]:
    for key in ("mcpServers", "servers", "mcp_servers"):
        if key in block:
            return block[key]["omni"]  # type: ignore[no-any-return]
    raise AssertionError("no known key for servers")


def test_the_page_has_a_block_for_each_client() -> None:
    assert set(BLOCKS) == {
        "claude-desktop", "claude-code", "claude-code-http", "cursor", "vscode", "vscode-http", "codex", "codex-http",
        "http",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(BLOCKS) - {"http"}))
def test_a_block_parses_and_names_what_there_is(name: str) -> None:
    server = server_of(parsed(name))
    if "url" in server:
        assert server["url"] == f"http://127.0.0.1:{Settings().server.port}/mcp"
        return
    assert server["command"] == "omni-mcp" and server["args"][0] == "stdio"
    assert parse_arguments(server["args"][1:])["agent"]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as made:
        yield made


async def test_what_a_desktop_client_is_told_to_start_answers(world: World) -> None:
    async with serving(world):
        arguments = server_of(parsed("claude-desktop"))["args"]
        client = await connect(world, *arguments[1:])
        assert "tools" in (await client.ask("tools/list"))["result"]
        assert await client.leave() == 0


async def test_the_lines_for_any_http_client_work_as_they_stand(world: World) -> None:
    async with serving(world):
        facts = world.status()
        environment = {**world.environment, "URL": facts["url"], "TOKEN_FILE": facts["token_file"]}
        done = subprocess.run(
            ["sh", "-c", BLOCKS["http"][1]], env=environment, capture_output=True, text=True, timeout=30
        )
    assert done.returncode == 0, done.stderr
    assert '"serverInfo"' in done.stdout
