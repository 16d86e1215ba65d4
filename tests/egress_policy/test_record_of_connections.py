"""What a job reached for stands in the run of its call, before the outcome, and a flood of it stays small."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from omni_mcp.config import load_settings
from omni_mcp.contracts.events import RunEvent
from omni_mcp.contracts.sandbox import Connection
from omni_mcp.engines.sandbox.first_connections import MOST_TOLD
from omni_mcp.testing import LocalGateway, write_private
from tests.egress_policy.sandbox_double import SandboxDouble, a_gateway, fetch, grant

OPEN = Connection(
    host="a.org", port=443, method="GET", verdict="open", address="192.0.2.1", bytes_sent=10, bytes_received=20,
    duration_ms=1.5,
)  # fmt: skip
REFUSED = Connection(host="b.org", port=80, method="CONNECT", verdict="refused", reason="not_granted")
SECRET = "hunter2hunter2"


async def story(here: LocalGateway) -> list[RunEvent]:
    """Return the events of the one call that ran."""
    events = await here.events()
    (call,) = {event.call for event in events if event.code == "egress_connection"}
    return [event for event in events if event.call == call]


async def connections(here: LocalGateway) -> list[dict[str, Any]]:
    return [event.payload or {} for event in await story(here) if event.code == "egress_connection"]


async def test_each_connection_is_on_record_before_the_outcome_of_its_call(tmp_path: Path) -> None:
    sandbox = SandboxDouble()
    sandbox.connections = [OPEN, REFUSED]
    async with a_gateway(sandbox, tmp_path) as here, here.client() as client:
        await grant(here, "tools__http_fetch", "--host", "a.org:443")
        assert await fetch(client, "https://a.org/") is None

        events = await story(here)
        asked, outcome = events[0], events[-1]
        assert (asked.kind, outcome.kind) == ("tool_call", "tool_result")
        seen = [event for event in events if event.code == "egress_connection"]
        assert all(event.parent == asked.seq and event.run == asked.run for event in seen)
        found = [
            (p["host"], p["port"], p["method"], p["verdict"], p["reason"], p["bytes_sent"], p["bytes_received"])
            for p in await connections(here)
        ]
    assert found == [
        ("a.org", 443, "GET", "open", "", 10, 20),
        ("b.org", 80, "CONNECT", "refused", "not_granted", 0, 0),
    ]


async def test_a_flood_has_few_events_that_still_add_up_and_hides_nothing_of_another_verdict(tmp_path: Path) -> None:
    sandbox = SandboxDouble()
    sandbox.connections = [*[OPEN] * 1000, REFUSED]
    async with a_gateway(sandbox, tmp_path) as here, here.client() as client:
        await grant(here, "tools__http_fetch", "--host", "a.org:443")
        assert await fetch(client, "https://a.org/") is None
        found = await connections(here)
        assert (await story(here))[-1].kind == "tool_result"
    opened = [one for one in found if one["verdict"] == "open"]
    assert len(opened) == MOST_TOLD + 1
    assert len(opened) + sum(one["more"] for one in opened) == 1000
    assert sum(one["bytes_sent"] for one in opened) == 10_000
    assert sum(one["bytes_received"] for one in opened) == 20_000
    assert [one["host"] for one in found if one["verdict"] == "refused"] == ["b.org"]


async def test_a_call_that_is_cancelled_has_its_connections_on_record_too(tmp_path: Path) -> None:
    sandbox = SandboxDouble()
    sandbox.connections = [OPEN] * (MOST_TOLD + 5)
    sandbox.never_ends = True
    async with a_gateway(sandbox, tmp_path) as here, here.client(version="2025-11-25") as client:
        await grant(here, "tools__http_fetch", "--host", "a.org:443")
        asked = {"name": "tools__http_fetch", "arguments": {"url": "https://a.org/"}}
        number, _ = await client.start("tools/call", asked)
        async with asyncio.timeout(30):
            await sandbox.begun.wait()
        await client.notify("notifications/cancelled", {"requestId": number})
        await here.until("tool_error")
        found = await connections(here)
        assert (await story(here))[-1].kind == "tool_error"
    assert len(found) == MOST_TOLD + 1 and found[-1]["more"] == 4


async def test_a_secret_in_what_a_job_asked_for_is_masked(tmp_path: Path) -> None:
    """A job can put what it knows into a host name; the record must not hold it."""
    write_private(tmp_path / "omni.toml", f'[approvals]\nwait_s = 0.02\n[secrets]\nkey = "file:{tmp_path / "key"}"\n')
    write_private(tmp_path / "key", SECRET)
    settings = load_settings(tmp_path / "omni.toml")
    sandbox = SandboxDouble()
    sandbox.connections = [Connection(host=f"{SECRET}.org", port=443, method="GET", verdict="refused", reason="x")]
    async with a_gateway(sandbox, tmp_path, settings=settings) as here, here.client() as client:
        await grant(here, "tools__http_fetch", "--host", "a.org:443")
        assert await fetch(client, "https://a.org/") is None
        (found,) = await connections(here)
    assert SECRET not in found["host"]
