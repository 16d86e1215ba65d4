"""A gateway with a memory, people who say yes, and what is left on the disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from omni_mcp.cli.root import cli
from omni_mcp.config import ApprovalSettings, Settings
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.runlog.keys import find_keys
from omni_mcp.engines.runlog.verify import Report, verify_database
from omni_mcp.testing import ALLOW_ALL, Canary, LocalGateway, MemoryClient, error_of, local_gateway

HANDSHAKE, MODERN = "2025-11-25", "2026-07-28"
BOTH_ERAS = (HANDSHAKE, MODERN)
AGENT = Principal(kind="Agent", id="coder", owner="ann")
SIBLING = Principal(kind="Agent", id="writer", owner="ann")
STRANGER = Principal(kind="Agent", id="coder", owner="eve")
ELSEWHERE = Principal(kind="Agent", id="coder", owner="ann", project="other")


@asynccontextmanager
async def remembering(
    directory: Path, rules: str = ALLOW_ALL, *, canary: Canary | None = None, settings: Settings | None = None
) -> AsyncIterator[LocalGateway]:
    """Open a gateway on *directory* in which a question is answered later, never waited for."""
    wanted = settings or Settings(approvals=ApprovalSettings(wait_s=0))
    async with local_gateway(rules, directory=directory, settings=wanted, canary=canary, cells=False) as here:
        yield here


async def done(client: MemoryClient, tool: str, **arguments: Any) -> JsonObject:
    """Call a tool of the memory that must succeed; returns what it found."""
    result = await client.call(f"memory__{tool}", arguments)
    assert not result["isError"], result["content"]
    found: JsonObject = result["structuredContent"]
    return found


async def refused(client: MemoryClient, tool: str, **arguments: Any) -> tuple[str, str]:
    """Call a tool of the memory that must not succeed; returns its code and its words."""
    result = await client.call(f"memory__{tool}", arguments)
    assert result["isError"], result
    return str(error_of(result).get("code")), str(result["content"][0]["text"])


async def forget(here: LocalGateway, client: MemoryClient, item: str) -> JsonObject:
    """Forget an item; a person says yes, because it cannot be undone."""
    code, _ = await refused(client, "forget", id=item)
    assert code == "approval_pending"
    here.answer(True)
    return await done(client, "forget", id=item)


async def texts(client: MemoryClient, query: str, **arguments: Any) -> list[str]:
    return [item["text"] for item in (await done(client, "recall", query=query, **arguments))["items"]]


async def resource(client: MemoryClient, uri: str) -> JsonObject:
    """Read a resource; returns the reply's result or its error."""
    reply = await client.request("resources/read", {"uri": uri})
    if "error" in reply:
        return {"code": reply["error"]["code"], "message": reply["error"]["message"]}
    found: JsonObject = json.loads(reply["result"]["contents"][0]["text"])
    return found


def files_with(directory: Path, *words: str) -> list[str]:
    """Return each file below *directory* that holds one of *words*, whatever the case."""
    needles = [word.casefold().encode() for word in words]
    found: list[str] = []
    for file in directory.rglob("*"):
        content = file.read_bytes().lower() if file.is_file() else b""
        found.extend(f"{file.name}: {needle.decode()}" for needle in needles if needle in content)
    return found


def verified(here: LocalGateway) -> Report:
    report = verify_database(here.home.log_file, find_keys(here.home.secrets))
    assert report.ok, report.faults
    return report


async def finished_by_the_next_start(directory: Path, words: Iterable[str]) -> None:
    """Open the gateway on what an earlier one left: what that did not erase is erased now."""
    async with remembering(directory) as here:
        while await here.gateway.memory.to_erase():
            pass
        verified(here)
    assert files_with(directory, *words) == []


class CommandLine:
    """`omni-mcp` on one home."""

    def __init__(self, directory: Path) -> None:
        self._environment = {"OMNI_HOME": str(directory / "home")}

    async def run(self, *words: str, code: int = 0) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, cli, list(words), env=self._environment)
        assert result.exit_code == code, (result.output, result.exception)
        return result.stdout if code == 0 else result.output

    async def json(self, *words: str) -> Any:
        return json.loads(await self.run(*words, "--json"))
