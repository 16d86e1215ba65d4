"""Every shipped tool passes its golden call over MCP, through the whole chain, in a cell, with a permit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from omni_mcp.config import ApprovalSettings, Settings
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.manifest import ToolManifest
from omni_mcp.engines.catalog.manifests import ManifestDirectory, ManifestSource
from omni_mcp.paths import bundled
from omni_mcp.serving.search_server import OWN
from omni_mcp.testing import ALLOW_ALL, LocalGateway, MemoryClient, error_of, local_gateway
from tests.tools.golden_matcher import matches

NETWORKED = {"http_fetch", "http_send"}  # tests/egress_policy calls them
SHIPPED: dict[str, ToolManifest] = {
    entry.name: entry.manifest
    for entry in ManifestSource(
        [ManifestDirectory(path=bundled("manifests"), bundled=True)], code=bundled("sandbox") / "tools"
    ).load()
    if entry.manifest is not None and entry.name not in NETWORKED
}
IN_PROCESS = {
    ("tool", "runs", "list"), ("tool", "runs", "read"), ("tool", "runs", "search"), ("tool", "runs", "explain"),
    ("tool", "runs", "why_refused"), ("tool", "runs", "runtime_query"), ("tool", "runs", "why"),
    ("tool", "runs", "influence"),
    ("resource", "runs", "run://latest"), ("resource_template", "runs", "run://{run}"),
    ("resource_template", "runs", "run://{run}/{seq}"), ("resource_template", "runs", "run://{run}/{seq}/influence"),
    ("resource_template", "runs", "artifact://{sha256}"), ("resource_template", "runs", "artifact://{sha256}/why"),
    ("tool", "memory", "remember"), ("tool", "memory", "share"), ("tool", "memory", "recall"),
    ("tool", "memory", "list"), ("tool", "memory", "revise"), ("tool", "memory", "forget"),
    ("tool", "memory", "promote"), ("tool", "memory", "duplicates"),
    ("resource", "memory", "memory://latest"), ("resource_template", "memory", "memory://{id}"),
    ("tool", "messages", "say"),
    ("tool", "tools", "search_tools"), ("tool", "tools", "call_tool"),
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here() -> AsyncIterator[LocalGateway]:
    async with local_gateway(ALLOW_ALL, settings=Settings(approvals=ApprovalSettings(wait_s=0))) as here:
        yield here


async def run(here: LocalGateway, client: MemoryClient, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call a tool; where a guardrail asks a person, a person says yes and the call is sent again."""
    result = await client.call(f"tools__{tool}", arguments)
    if error_of(result).get("code") == "approval_pending":
        here.answer(True)
        result = await client.call(f"tools__{tool}", arguments)
    assert not result["isError"], result["content"]
    found: dict[str, Any] = result["structuredContent"]
    return found


@pytest.mark.usefixtures("cells")
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("tool", sorted(SHIPPED))
async def test_a_tool_passes_its_golden_call_in_a_cell_and_the_record_says_so(tool: str, here: LocalGateway) -> None:
    golden = SHIPPED[tool].golden
    assert golden is not None
    alone = Principal(kind="Agent", id="golden", owner="ann", project=tool.replace("_", "-"))
    async with here.client(principal=alone, version="2025-11-25") as client:
        for step in golden.before:
            await run(here, client, step.tool, step.arguments)
        result = await run(here, client, tool, golden.arguments)
        assert matches(golden.expect, result), result
        ends = [event for event in await here.events() if event.run == client.run and event.kind == "tool_result"]
    assert len(ends) == len(golden.before) + 1
    for end in ends:
        assert end.payload is not None
        assert end.payload["where"] == "cell"
        assert end.payload["isolation"]["posture"] in ("full", "no-cgroup")


@pytest.mark.asyncio(loop_scope="module")
async def test_what_runs_in_the_gateways_own_process_is_this_closed_list(here: LocalGateway) -> None:
    entries = [*here.gateway.catalog.all_entries(), *OWN.values()]
    assert {entry.key for entry in entries if entry.binding != "sandbox_job"} == IN_PROCESS
    assert {entry.key for entry in entries if entry.binding == "inproc_safe"} == IN_PROCESS


@pytest.mark.asyncio(loop_scope="module")
async def test_the_record_of_a_call_that_ran_in_process_says_so(here: LocalGateway) -> None:
    async with here.client(version="2025-11-25") as client:
        assert not (await client.call("runs__list"))["isError"]
    ends = [event.payload or {} for event in await here.events() if event.kind == "tool_result"]
    assert ends[-1]["where"] == "in_process"
