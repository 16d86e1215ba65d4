"""Whose memory is full, what makes room in it, and that what is over leaves by itself."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.config import ApprovalSettings, Settings
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import LogUnavailable
from omni_mcp.contracts.memory import MemorySettings
from omni_mcp.serving.changes import Changes
from omni_mcp.serving.memory.news import MemoryNews
from omni_mcp.serving.memory.sweeping import Sweeping
from omni_mcp.testing import ANN, WAIT_S, LocalGateway, MemoryClient
from tests.memory_server.world import (
    AGENT,
    SIBLING,
    STRANGER,
    done,
    files_with,
    forget,
    refused,
    remembering,
    texts,
    verified,
)  # fmt: skip

WORDS = ("zyxwqumbo", "plofkrast")
TEXT = f"the {WORDS[0]} stands behind the {WORDS[1]}"


def bounded(**memory: Any) -> Settings:
    return Settings(approvals=ApprovalSettings(wait_s=0), memory=MemorySettings(**memory))


async def expire(here: LocalGateway, item: str) -> None:
    """Let an item expire now, as time would."""
    found = await here.gateway.memory.find(item)
    await here.gateway.memory.put(found.model_copy(update={"expires_at_ns": time.time_ns() - 1}))


def gateway_run(here: LocalGateway) -> str:
    return str(here.gateway.status()["log"]["run"])


async def swept(here: LocalGateway) -> int:
    """Wait for a sweep that is under way, and for all that is to be erased after it; returns what was left for us."""
    count = await here.gateway.sweeping.sweep()
    await here.gateway.forgetting.finish(by="test")
    return count


async def left(here: LocalGateway) -> list[str]:
    return [item.text for item in await here.gateway.memory.all_items()]


async def test_an_agent_that_shares_too_much_is_refused_and_its_neighbours_are_not(tmp_path: Path) -> None:
    async with (
        remembering(tmp_path, settings=bounded(shared_items=2)) as here,
        here.client(principal=AGENT) as greedy,
        here.client(principal=SIBLING) as other,
        here.client(principal=STRANGER) as stranger,
    ):
        await done(greedy, "share", text="one")
        await done(greedy, "remember", text="two", scope="user")
        for tool, more in (("share", {}), ("remember", {"scope": "user"}), ("remember", {"scope": "run"})):
            code, said = await refused(greedy, tool, text="three", **more)
            assert code == "quota_exceeded" and "others" in said and "2 items" in said
        await done(greedy, "remember", text="what is its own is another matter")
        for client in (other, stranger):
            await done(client, "share", text="there is room")
        await done(other, "remember", text="here too", scope="user")


async def test_the_refusal_says_which_memory_is_full(tmp_path: Path) -> None:
    async with (
        remembering(tmp_path, settings=bounded(items=1)) as here,
        here.client(principal=AGENT) as client,
        here.client(principal=STRANGER) as stranger,
    ):
        await done(client, "remember", text="one")
        await done(stranger, "share", text="one")
        assert "your own memory is full" in (await refused(client, "remember", text="two"))[1]
        assert "the memory of the project is full" in (await refused(client, "share", text="two"))[1]
        await done(client, "remember", text="user's", scope="user")
        assert "the memory of your user is full" in (await refused(client, "remember", text="two", scope="user"))[1]


async def test_what_has_expired_takes_no_room(tmp_path: Path) -> None:
    async with remembering(tmp_path, settings=bounded(items=2)) as here, here.client(principal=AGENT) as client:
        lasting = await done(client, "remember", text="lasting")
        await expire(here, (await done(client, "remember", text=TEXT))["id"])
        await done(client, "remember", text="in its room")
        assert (await refused(client, "remember", text="one too many"))[0] == "quota_exceeded"
        assert set(await left(here)) == {"lasting", "in its room"}
        await expire(here, lasting["id"])
        await done(client, "share", text="elsewhere")
        await done(client, "remember", text="again")


async def test_an_expired_item_can_be_forgotten_by_its_owner_and_by_nobody_else(tmp_path: Path) -> None:
    async with (
        remembering(tmp_path) as here,
        here.client(principal=AGENT) as client,
        here.client(principal=STRANGER) as stranger,
    ):
        made = await done(client, "remember", text=TEXT)
        await expire(here, made["id"])
        assert (await refused(client, "revise", id=made["id"], text="back"))[0] == "not_found"
        code, _ = await refused(stranger, "forget", id=made["id"])
        assert code == "approval_pending"
        here.answer(True)
        assert (await refused(stranger, "forget", id=made["id"]))[0] == "not_found"
        assert (await forget(here, client, made["id"]))["forgotten"]
        assert await left(here) == []
        assert files_with(tmp_path, *WORDS) == []
        verified(here)


async def test_a_start_lets_go_of_what_expired_and_of_what_runs_that_are_over_had(tmp_path: Path) -> None:
    async with remembering(tmp_path) as here:
        async with here.client(version="2025-11-25") as client:
            await done(client, "remember", text=f"{TEXT} of a run", scope="run")
            await done(client, "remember", text="what lasts")
            gone = await done(client, "remember", text=TEXT)
        await expire(here, gone["id"])
        assert len(await left(here)) == 3
    async with remembering(tmp_path) as here:
        await here.until("memory_written", count=5)  # three were remembered
        assert await swept(here) == 0, "the start had swept"
        noted = [event for event in await here.events() if (event.payload or {}).get("change") == "expired"]
        assert [(event.actor, (event.payload or {})["scope"]) for event in noted] == [
            ("gateway", "agent"), ("gateway", "run"),
        ]  # fmt: skip
        assert all(event.run == gateway_run(here) for event in noted)
        assert await left(here) == ["what lasts"]
        verified(here)
    assert files_with(tmp_path, *WORDS) == []


async def test_a_run_that_goes_on_keeps_what_it_remembers(tmp_path: Path) -> None:
    async with remembering(tmp_path) as here, here.client(version="2025-11-25") as client:
        await done(client, "remember", text="for this run", scope="run")
        assert await here.gateway.sweeping.sweep() == 0
        assert await texts(client, "run") == ["for this run"]


class Unwritable:
    """A log that cannot be written for a while."""

    def __init__(self, log: Any) -> None:
        self.log = log
        self.broken = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)

    def append(self, *args: Any, **more: Any) -> Any:
        if self.broken:
            raise LogUnavailable("the log cannot be written", detail="the disk is full")
        return self.log.append(*args, **more)


async def test_nothing_leaves_without_a_record_and_a_sweep_that_failed_is_made_again(tmp_path: Path) -> None:
    async with remembering(tmp_path) as here, here.client() as client:
        await expire(here, (await done(client, "remember", text=TEXT))["id"])
        gateway, log = here.gateway, Unwritable(here.gateway.log)
        sweeping = Sweeping(
            gateway.memory, log, here.home, gateway.forgetting, MemoryNews(Changes()), gateway_run=gateway_run(here)
        )  # fmt: skip
        with pytest.raises(LogUnavailable):
            await sweeping.sweep()
        assert await left(here) == [TEXT]
        log.broken = False
        assert await sweeping.sweep() == 1
        assert await left(here) == []


async def listen(client: MemoryClient, *uris: str) -> None:
    """Subscribe as the client's version does."""
    if client.modern:
        await client.start("subscriptions/listen", {"notifications": {"resourceSubscriptions": list(uris)}})
        await heard(client, "notifications/subscriptions/acknowledged")
        return
    for uri in uris:
        assert "result" in await client.request("resources/subscribe", {"uri": uri})


async def heard(client: MemoryClient, method: str) -> list[str]:
    """Wait until a client hears *method*; returns the addresses that came with all of that kind, and forgets them."""
    while not (found := [one for one in client.notifications if one["method"] == method]):
        client.heard.clear()
        await asyncio.wait_for(client.heard.wait(), WAIT_S)
    client.notifications.clear()
    return [one["params"].get("uri", "") for one in found]


UPDATED = "notifications/resources/updated"


@pytest.mark.parametrize("era", ["2025-11-25", "2026-07-28"])
async def test_subscribers_hear_of_what_they_may_find_and_of_nothing_else(tmp_path: Path, era: str) -> None:
    latest = "memory://latest"
    async with (
        remembering(tmp_path) as here,
        here.client(principal=AGENT, version=era) as mine,
        here.client(principal=STRANGER, version=era) as stranger,
        here.client(principal=AGENT) as writer,
        here.client(principal=STRANGER) as other,
    ):
        await listen(mine, latest)
        await listen(stranger, latest)
        made = await done(writer, "remember", text="one")
        assert await heard(mine, UPDATED) == [latest]
        await listen(mine, made["uri"])
        await done(writer, "revise", id=made["id"], text="two")
        assert sorted(await heard(mine, UPDATED)) == sorted([latest, made["uri"]])
        await done(other, "remember", text="a stranger's")
        assert await heard(stranger, UPDATED) == [latest]
        assert mine.notifications == [], "what another remembers for itself"
        await done(other, "share", text="for all")
        assert await heard(mine, UPDATED) == [latest] == await heard(stranger, UPDATED)
        await forget(here, writer, made["id"])
        assert sorted(await heard(mine, UPDATED)) == sorted([latest, made["uri"]])
        assert stranger.notifications == []


async def test_another_project_hears_nothing(tmp_path: Path) -> None:
    elsewhere = Principal(kind="User", id="ann", project="other")
    async with remembering(tmp_path) as here, here.client() as client, here.client(principal=elsewhere) as far:
        async with here.client() as ears:
            await listen(ears, "memory://latest")
            await listen(far, "memory://latest")
            assert ANN.project != elsewhere.project
            await done(client, "share", text="for all of this project")
            await heard(ears, UPDATED)
            assert far.notifications == []
