"""Runs are opened at the rate of sessions, however many traces a client names; requests that open none go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from omni_mcp.config import LimitSettings, Settings
from omni_mcp.testing import ALLOW_ALL, Canary, error_of, local_gateway

FIVE_A_MINUTE = Settings(limits=LimitSettings(calls_per_minute=5))


def request_of(trace: int, **more: Any) -> dict[str, Any]:
    traceparent = f"00-{trace:032x}-{1:016x}-01"
    return {"name": "canary__echo", "arguments": {}, "_meta": {"traceparent": traceparent}, **more}


@pytest.mark.parametrize("more", [{}, {"requestState": "guessed"}], ids=["calls", "guessed states"])
async def test_a_client_over_its_rate_opens_no_run_for_each_trace_that_it_names(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    canary = Canary(tmp_path / "touched")
    canary.tool("echo")
    async with local_gateway(ALLOW_ALL, canary=canary, settings=FIVE_A_MINUTE, cells=False) as here:
        async with here.client() as client:
            replies = [await client.request("tools/call", request_of(trace, **more)) for trace in range(1, 41)]
        runs = await here.gateway.log.runs(limit=1000)
    assert error_of(replies[-1])["code"] == "rate_limited"
    assert len(runs) <= 1 + 5, "the gateway's own, and those of a minute"
    assert len(canary.touched) <= 5


async def test_a_client_that_names_one_trace_opens_one_run_and_is_bound_by_its_rate_of_calls_alone(
    tmp_path: Path,
) -> None:
    canary = Canary(tmp_path / "touched")
    canary.tool("echo")
    async with local_gateway(ALLOW_ALL, canary=canary, settings=FIVE_A_MINUTE, cells=False) as here:
        async with here.client() as client:
            replies = [await client.request("tools/call", request_of(7)) for _ in range(5)]
        runs = await here.gateway.log.runs(limit=1000)
    assert not any(reply["result"].get("isError") for reply in replies)
    assert len(runs) == 2
