"""Whether the log can be written is known, told, and not waited for again and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from omni_mcp.contracts.errors import LogUnavailable
from omni_mcp.contracts.ids import new_id
from omni_mcp.engines.runlog.store import SqliteRunLog
from omni_mcp.engines.runlog.writer import QUEUE_EVENTS
from omni_mcp.testing import ALLOW_ALL, ANN, Canary, local_gateway
from tests.databases import locked
from tests.runlog.conftest import Place, answered, asked, new_run, said, texts

WAIT_S = 30.0


def _healthy(log: SqliteRunLog) -> bool:
    return log.healthy  # asked anew each time, which a type checker does not expect of a property


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def test_under_a_lock_only_the_first_waits_two_seconds_and_the_log_says_that_it_is_unavailable(
    place: Place,
) -> None:
    async with place.open() as log:
        run, call = await new_run(log), new_id()
        await log.append(run, asked(call)).durable()
        assert _healthy(log)
        with locked(place.file):
            began = time.monotonic()
            with pytest.raises(LogUnavailable):
                await new_run(log)
            first_s = time.monotonic() - began
            assert not _healthy(log)
            for _ in range(3):
                with pytest.raises(LogUnavailable):
                    await log.append(run, said("refused")).durable()
            with pytest.raises(LogUnavailable):
                await log.append_outcome(run, answered(call)).durable()
            assert first_s > 1.5 and time.monotonic() - began - first_s < 6, "four that waited would take eight seconds"
            assert not _healthy(log)
        assert await log.append(run, said("accepted")).durable() == 4
        assert _healthy(log)
        assert [event.kind async for event in log.read(run)][2:] == ["tool_result", "user_message"]


async def test_a_log_that_comes_back_is_found_healthy_though_nobody_writes(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log)
        with locked(place.file):
            with pytest.raises(LogUnavailable):
                await log.append(run, said("refused")).durable()
            assert not _healthy(log)
        await asyncio.to_thread(_until, lambda: _healthy(log))
        assert await texts(log, run) == []


async def test_a_lock_that_the_search_index_waited_for_is_known_to_whoever_comes_next(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log)
        await log.append(run, said("still to be indexed")).durable()
        with locked(place.file):
            await asyncio.to_thread(_until, lambda: not _healthy(log))
            began = time.monotonic()
            with pytest.raises(LogUnavailable):
                await log.append(run, said("refused")).durable()
            assert time.monotonic() - began < 1.9, "it would have waited two seconds"
        await asyncio.to_thread(_until, lambda: _healthy(log))


async def test_a_full_queue_is_not_healthy(place: Place) -> None:
    async with place.open() as log:
        run = await new_run(log)
        with locked(place.file):
            tickets = [log.append(run, said("x")) for _ in range(QUEUE_EVENTS * 2)]
            assert not _healthy(log)
            await asyncio.gather(*(ticket.durable() for ticket in tickets), return_exceptions=True)


async def test_readiness_and_status_tell_of_a_locked_log_and_a_call_waits_once(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "canary")
    canary.tool("echo")
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False) as here, here.http(ANN) as (address, [token]):
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            httpx2.AsyncClient(base_url=address, headers=headers, timeout=WAIT_S) as http,
            here.client() as client,
        ):
            await client.call("canary__echo")
            assert here.gateway.status()["log"]["healthy"] is True
            with locked(here.home.log_file):
                began = time.monotonic()
                refused = await client.call("canary__echo")
                waited_s = time.monotonic() - began
                ready = await http.get("/readyz")
                assert here.gateway.status()["log"]["healthy"] is False
            assert "log_unavailable" in str(refused) and waited_s > 1.5
            assert ready.status_code == 503 and ready.json()["log"] == "unavailable"
            await client.call("canary__echo")
            assert (await http.get("/readyz")).status_code == 200
        assert len(canary.calls) == 2
