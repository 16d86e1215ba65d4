"""OpenAPI documents are read again when they change, and commands know their operations; profiles may be empty."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from omni_mcp.cli.root import cli
from omni_mcp.testing import ANN, home_in, write_private
from tests.openapi.world import document, operation
from tests.upstream.town import Town, a_town
from tests.waiting import until

SHOP = '[openapi.shop]\ndocument = "shop.json"\n'


def paths(*names: str) -> dict[str, Any]:
    return document({f"/{name}": {"get": operation(operationId=name)} for name in names})


def named(town: Town) -> list[str]:
    return sorted(
        name for name, entry in town.here.gateway.catalog.entries("default", "tool") if entry.server == "shop"
    )


async def test_an_edited_document_is_in_force_without_a_start_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    file = write_private(home_in(tmp_path).config / "shop.json", json.dumps(paths("one")))
    async with a_town(tmp_path, SHOP) as town:
        before = named(town)
        file.write_text(json.dumps(paths("one", "two")))
        await until(lambda: named(town) == ["shop__one", "shop__two"])
        file.write_text("{")
        event = await town.here.until("config_rejected")
        during = named(town)
        file.write_text(json.dumps(paths("two")))
        await until(lambda: named(town) == ["shop__two"])

    assert before == ["shop__one"]
    assert during == ["shop__one", "shop__two"]
    assert event.payload is not None and "shop.json" in event.payload["problems"][0]


def test_operations_of_documents_are_known_to_allow_explain_and_grants(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    write_private(home.config / "shop.json", json.dumps(paths("one")))
    write_private(home.settings_file, SHOP)
    person = CliRunner(env={"OMNI_HOME": str(home.config)})
    allowed = person.invoke(cli, ["allow", "shop__one"])
    mistyped = person.invoke(cli, ["allow", "shop__none"])
    granted = person.invoke(cli, ["approvals", "grant", "shop__one", "--user", "ann", "--expires", "1h", "--yes"])

    assert allowed.exit_code == 0, allowed.output
    assert "no such tool" not in allowed.output.lower() and "not known" not in allowed.output.lower()
    assert mistyped.output != allowed.output.replace("one", "none")
    assert granted.exit_code == 0, granted.output


async def test_a_profile_whose_servers_listed_nothing_yet_is_there_and_an_unknown_one_is_not(tmp_path: Path) -> None:
    text = '[servers.up]\nurl = "http://127.0.0.1:9/mcp"\n[profiles.work]\nservers = ["up"]\n'
    async with a_town(tmp_path, text) as town, town.here.http(ANN) as (url, [token]):
        codes = [await status_of(f"{url}/mcp/{name}", token) for name in ("work", "play")]

    assert codes == [200, 404]


async def status_of(url: str, token: str) -> int:
    """Send initialize and return the HTTP status."""
    host, _, path = url.removeprefix("http://").partition("/")
    asked = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": asked})
    lines = [
        f"POST /{path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {token}", "Content-Type: application/json",
        "Accept: application/json, text/event-stream", f"Content-Length: {len(body)}", "Connection: close", "", body,
    ]  # fmt: skip
    reader, writer = await asyncio.open_connection(*host.split(":"))
    writer.write("\r\n".join(lines).encode())
    answer = await reader.readline()
    writer.close()
    return int(answer.split()[1])
