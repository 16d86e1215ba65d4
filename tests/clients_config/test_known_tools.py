"""`tools list` and `tools show` know every tool that a next step can name, those of servers among them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from click.testing import CliRunner, Result

from omni_mcp.cli.root import cli
from omni_mcp.testing import home_in
from tests.clients_config.test_add_conversation import TOOLS, on_a_terminal
from tests.upstream.servers.web import web_server
from tests.upstream.town import Shop


async def test_a_tool_of_a_server_is_listed_and_shown_without_a_gateway(tmp_path: Path) -> None:
    home = home_in(tmp_path)

    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, list(words), env={"OMNI_HOME": str(home.config)})

    async with web_server(Shop(tools=TOOLS).script()) as server:
        await on_a_terminal(home, "r\ns\nn\n", "add", "up", "--url", server.url)
    listed = json.loads((await asyncio.to_thread(run, "tools", "list", "--server", "up", "--json")).stdout)
    shown = await asyncio.to_thread(run, "tools", "show", "up__look")
    waiting = await asyncio.to_thread(run, "tools", "list")
    nobody = await asyncio.to_thread(run, "tools", "list", "--server", "nobody")

    assert {one["name"]: one["state"] for one in listed} == {"up__look": "accepted", "up__write": "quarantined"}
    assert shown.exit_code == 0 and "inputSchema" in shown.output and "read_only=true" in shown.output
    assert "quarantined: omni-mcp accept up" in waiting.output and "runs__list" in waiting.output
    assert nobody.exit_code == 1 and "omni-mcp servers list" in nobody.output
