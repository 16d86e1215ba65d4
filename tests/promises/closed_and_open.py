"""Two gateways in front of the same canaries: one with an empty policy, and its twin that permits everything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_mcp.contracts.call import Answer, Call, InputRequired, Result
from omni_mcp.contracts.events import RunEvent
from omni_mcp.testing import ALLOW_ALL, Canary, LocalGateway, home_in, local_gateway, write_private

LEAF = """
manifest: 1
id: leaf
version: 1.0.0
title: Leave a file
description: Leaves a file in the workspace of the project, and is vouched for as harmless, so that no one is asked.
input_schema:
  type: object
  properties: {path: {type: string}, text: {type: string}}
  required: [path, text]
binding: {kind: sandbox_job, entry_point: "files:files_write", workspace: project}
labels: {read_only: false, destructive: false, egress: false, reads_private: false, reads_untrusted: false}
"""
QUESTION = {"method": "elicitation/create", "params": {
    "mode": "form", "message": "Sure?", "requestedSchema": {"type": "object", "properties": {}}}}  # fmt: skip


@dataclass(slots=True)
class Twin:
    """One of the two gateways and all that can be seen of it from outside."""

    here: LocalGateway
    canary: Canary
    permits: bool

    def signs(self) -> list[str]:
        """Every trace that a dispatch leaves: lines of the canary, files that cells left in workspaces."""
        left = self.here.home.workspaces.rglob("*")
        return [*self.canary.touched, *sorted(str(file) for file in left if file.is_file())]

    async def since(self, gid: int) -> list[RunEvent]:
        """Return what was recorded after the event *gid*."""
        return [event for event in await self.here.events() if event.gid > gid]

    async def until_since(self, gid: int, code: str, count: int) -> None:
        """Wait until *count* events of a code are on record after the event *gid*."""
        old = [event for event in await self.here.events() if event.gid <= gid and event.code == code]
        await self.here.until(code, count=len(old) + count)

    async def last_gid(self) -> int:
        """Return the number of the newest event."""
        return (await self.here.events())[-1].gid


async def ask_once(call: Call) -> Result:
    """A tool that needs one answer of its caller."""
    if call.round is None:
        return InputRequired(requests={"sure": QUESTION}, state={"step": 1})
    return Answer(body={"content": [{"type": "text", "text": "done"}]}, where="remote")


def a_canary(file: Path) -> Canary:
    """Something of every kind that can be named."""
    canary = Canary(file)
    canary.tool("touch")
    canary.tool("ask", ask_once)
    canary.tool("unlisted", definition={"inputSchema": {"type": "object", "properties": {
        "a": {"type": "string", "x-mcp-header": "bad name"}}}})  # fmt: skip
    canary.tool("new", state="quarantined")
    canary.resource("note://a")
    canary.resource("note://{id}")
    canary.prompt("greet")
    return canary


@asynccontextmanager
async def a_twin(directory: Path, *, permits: bool, rules: str | None = None) -> AsyncIterator[Twin]:
    """Open one of the two, or one with *rules*."""
    canary = a_canary(directory / "touched")
    home = home_in(directory)
    write_private(home.manifests / "leaf.yaml", LEAF)
    chosen = rules if rules is not None else ALLOW_ALL if permits else ""
    async with local_gateway(chosen, canary=canary, directory=directory) as here:
        assert not here.gateway.status()["catalog"]["problems"]
        yield Twin(here, canary, permits)


def params_of(**params: Any) -> dict[str, Any]:
    """Read better than a dict where keys are names."""
    return params
