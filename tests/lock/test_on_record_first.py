"""An acceptance is on record before it is in force, whatever asks for the catalog anew meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

from omni_mcp.contracts.lock import Pause
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.testing import error_of
from tests.databases import locked
from tests.upstream.servers.web import web_server
from tests.upstream.town import Shop, Town, a_town
from tests.waiting import until


def state(town: Town) -> str | None:
    entry = town.here.gateway.catalog.get("tool", "up", "it")
    return entry.state if entry is not None else None


async def test_what_is_accepted_while_nothing_can_be_recorded_is_not_in_force_though_the_catalog_is_renewed(
    tmp_path: Path,
) -> None:
    async with web_server(Shop().script()) as server:
        async with a_town(tmp_path, f'[servers.up]\nurl = "{server.url}"\n') as town:
            await until((town.here.home.data / "listings" / "up.json").exists)
            await until(lambda: state(town) == "quarantined")
            with locked(town.here.home.log_file):
                town.accepts("up")
                is_recorded = await town.here.gateway.reload_lock()
                town.here.gateway.reload_catalog()
                meanwhile = state(town)
            await until(lambda: state(town) == "accepted")
            async with town.here.client() as client:
                result = await client.call("up__it")

    assert (is_recorded, meanwhile) == (False, "quarantined")
    assert error_of(result) == {}


async def test_of_several_looks_at_the_file_at_once_the_last_one_counts(tmp_path: Path) -> None:
    async with a_town(tmp_path) as town:
        file = LockFile(town.here.home.lock_file)
        for number in range(20):
            paused = {f"s{number}": Pause(by="ann", at="2026-11-21T12:00:00Z")}
            looking = asyncio.create_task(town.here.gateway.reload_lock())
            await asyncio.sleep(0)  # the look is under way
            file.edit(lambda now, paused=paused: now.model_copy(update={"paused": paused}))  # type: ignore[misc]
            await asyncio.gather(looking, *(town.here.gateway.reload_lock() for _ in range(3)))
            assert set(town.here.gateway.status()["paused"]) == set(paused)
