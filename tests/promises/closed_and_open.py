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
description: Leaves a file in the workspace of the project.
input_schema: {type: object, properties: {name: {type: string, pattern: "^[a-z0-9-]+$"}}, required: [name]}
binding: {kind: sandbox_job, entry_point: "leaf:leaf", workspace: project}
labels: {read_only: false, destructive: false, egress: false, reads_private: false, reads_untrusted: false}
"""
LEAF_CODE = """
def leaf(arguments):
    with open(arguments["name"], "w") as file:
        file.write("here")
    return {"left": arguments["name"]}
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
    write_private(home.manifests / "leaf.py", LEAF_CODE)
    chosen = rules if rules is not None else ALLOW_ALL if permits else ""
    async with local_gateway(chosen, canary=canary, directory=directory) as here:
        assert not here.gateway.status()["catalog"]["problems"]
        yield Twin(here, canary, permits)


def params_of(**params: Any) -> dict[str, Any]:
    """Read better than a dict where keys are names."""
    return params
