"""Which era a server speaks is found out once, whatever it does when it is asked."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from omni_mcp.engines.upstream.connection import Timing
from omni_mcp.engines.upstream.pool import Known
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.testing import error_of
from tests.upstream.world import QUICK, python_server, world


def raw(**options: Any) -> ServerDefinition:
    return python_server("raw", json.dumps(options))


SHORT_PROBE = Timing(probe_s=0.3, patience=QUICK.patience)


@pytest.mark.parametrize(("probe", "starts"), [("error", 1), ("junk", 1), ("silent", 1), ("exit", 2)])
async def test_whatever_is_no_modern_answer_means_the_handshake_era(probe: str, starts: int) -> None:
    settings = raw(probe=probe, version="2025-06-18")
    async with world({"up": settings}, timing=SHORT_PROBE) as here, here.client() as client:
        result = await client.call("up__seen")
        facts = here.pool.facts()["up"]["connections"]["shared"]
        started = len(here.children.started)

    assert (facts["era"], facts["version"]) == ("handshake", "2025-06-18")
    assert started == starts
    assert here.pool.eras.find(settings.definition) == "handshake"
    initialize = next(m for m in result["structuredContent"]["seen"] if m["method"] == "initialize")
    assert initialize["params"]["protocolVersion"] == "2025-11-25"


async def test_a_remembered_handshake_server_is_not_probed() -> None:
    settings = raw(probe="exit")
    async with world({"up": settings}, known=Known(eras={settings.definition: "handshake"})) as here:
        async with here.client() as client:
            result = await client.call("up__seen")
            started = len(here.children.started)

    assert "server/discover" not in [message["method"] for message in result["structuredContent"]["seen"]]
    assert started == 1


@pytest.mark.parametrize("answers_late", [False, True])
async def test_a_modern_server_is_spoken_to_without_a_handshake_even_if_it_is_slow(answers_late: bool) -> None:
    settings = raw(probe="modern", answers_late=answers_late)
    async with world({"up": settings}, timing=SHORT_PROBE) as here, here.client() as client:
        result = await client.call("up__seen")
        era = here.pool.facts()["up"]["connections"]["shared"]["era"]

    assert era == "modern"
    calls = [message for message in result["structuredContent"]["seen"] if message["method"] == "tools/call"]
    assert calls[0]["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"


async def test_a_server_of_a_version_that_nobody_knows_is_unavailable_and_says_why() -> None:
    async with world({"up": raw(version="1999-01-01"), "ok": raw()}) as here, here.client() as client:
        assert "1999-01-01" in here.pool.facts()["up"]["list_fault"]
        assert not [tool for tool in await client.listed("tools") if tool["name"].startswith("up__")]
        assert (await client.call("ok__echo", {"text": "hi"}))["content"][0]["text"] == "hi"
        refused = await client.request("tools/call", {"name": "up__echo", "arguments": {}})

    assert error_of(refused)["code"] == "policy_denied"


async def test_a_changed_definition_is_probed_again() -> None:
    first, second = raw(probe="error"), raw(probe="modern")
    assert first.definition != second.definition
    async with world({"up": second}, known=Known(eras={first.definition: "handshake"})) as here:
        async with here.client() as client:
            await client.call("up__echo")
            assert here.pool.facts()["up"]["connections"]["shared"]["era"] == "modern"


async def test_a_server_that_nobody_uses_is_stopped_and_started_again_when_it_is_needed() -> None:
    timing = Timing(idle_s=0.1, patience=QUICK.patience)
    async with world({"up": raw()}, timing=timing) as here, here.client() as client:
        first = here.children.started[0]
        await asyncio.wait_for(first.wait(), 30)
        again = await client.call("up__echo", {"text": "awake"})

    assert again["content"][0]["text"] == "awake"
    assert len(here.children.started) == 2
