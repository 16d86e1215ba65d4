"""`runs failed` and `runs rerun` as an operator uses them: beside a gateway that runs, and without one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from omni_mcp.testing import ALLOW_ALL
from tests.clients.running import Place, new_place, serving
from tests.upstream.servers.web import Asked, modern, text, web_server


class Shop:
    """A server whose tool hangs up until it is mended."""

    def __init__(self) -> None:
        self.broken = True
        self.calls = 0

    async def __call__(self, asked: Asked) -> None:
        self.calls += 1
        if self.broken:
            asked.writer.close()
        else:
            await asked.result(text("done"))


async def ends(place: Place, code: int, *words: str) -> str:
    """Run a command that ends with *code*; returns what it printed."""
    end = await asyncio.to_thread(place.end_of, *words)
    assert end.returncode == code, (words, end.stdout, end.stderr)
    return end.stdout + end.stderr


async def failing(place: Place) -> list[Any]:
    found: list[Any] = json.loads(await ends(place, 0, "runs", "failed", "--json"))
    return found


async def test_a_failed_read_is_made_again_beside_a_gateway_and_without_one() -> None:
    shop = Shop()
    async with web_server(modern(shop)) as server:
        with new_place() as place:
            add = "add", "up", "--url", server.url, "--accept", "read-only", "--let", "read-only"
            await ends(place, 0, *add)
            with serving(place):
                await ends(place, 1, "tools", "try", "up__it")
                [run] = await failing(place)
                shown = await ends(place, 0, "runs", "show", run["run"])
                told = await ends(place, 0, "runs", "rerun", run["run"], "--dry-run")
                shop.broken = False
                report = json.loads(await ends(place, 0, "runs", "rerun", run["run"], "--json"))
                after = await failing(place)
                shop.broken = True
                await ends(place, 1, "tools", "try", "up__it")
            shop.broken = False
            alone = await ends(place, 0, "runs", "rerun", (await failing(place))[0]["run"])
            at_last = await failing(place)

    assert run["calls"][0]["attempts"] == 3 and shown.count("attempt_failed") == 2
    assert told == "up__it  upstream_unavailable -> would be made again\n"
    assert report["run"] == run["run"]
    assert [one["ending"] for one in report["calls"]] == ["answered"]
    assert after == [] and at_last == []
    assert "upstream_unavailable -> answered" in alone


async def test_a_write_that_may_have_taken_effect_wants_a_yes() -> None:
    shop = Shop()
    async with web_server(modern(shop)) as server:
        with new_place() as place:
            place.write_policy(ALLOW_ALL)
            await ends(place, 0, "add", "up", "--url", server.url)
            await ends(place, 0, "accept", "up", "it", "--labels", "destructive=no,egress=no,read_only=no", "--yes")
            with serving(place):
                await ends(place, 1, "tools", "try", "up__it")
                [run] = await failing(place)
                shop.broken = False
                asked = await ends(place, 2, "runs", "rerun", run["run"])
                before = shop.calls
                done = await ends(place, 0, "runs", "rerun", run["run"], "--yes")

    assert run["calls"][0]["code"] == "outcome_unknown"
    assert "add --yes" in asked and before == 1
    assert "outcome_unknown -> answered" in done and shop.calls == 2


async def test_what_cannot_be_made_again_says_why() -> None:
    with new_place() as place:
        place.write_policy(ALLOW_ALL)
        with serving(place):
            await ends(place, 0, "tools", "search", "hash")
            run = json.loads(await ends(place, 0, "runs", "list", "--json"))[0]["id"]
            nothing = await ends(place, 1, "runs", "rerun", run)
            unknown = await ends(place, 1, "runs", "rerun", "no-such-run", "--json")
            no_call = await ends(place, 1, "runs", "rerun", run, "--call", "x")

    assert "no failed call" in nothing and json.loads(unknown)["error"]["code"] == "not_found"
    assert "has no call 'x'" in no_call
