"""A call is made again for whoever made it as they are now, by an operator, and as what its name meant."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.call import ClientFacts
from omni_mcp.contracts.errors import BadRequest, OutcomeUnknown
from omni_mcp.engines.identity.keys import Key, KeyRing
from omni_mcp.replay.caller import NO_KEY, WHICH_KEY, Caller, caller_now
from omni_mcp.replay.remake import MEANS_ANOTHER, order_of
from omni_mcp.testing import ALLOW_ALL, BOB, Canary, local_gateway
from tests.replay.test_made_again import TOOL, Tool, again, with_tool

BOSS = replace(BOB, roles=("admin",))
ADMINS = '@id("admins") permit (principal in Omni::Role::"admin", action, resource);'


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing(tmp_path / "keys" / "keys.json")


def now(ring: KeyRing, principal: Any, transport: Any = "http") -> Caller:
    keys: list[Key] = ring.keys()
    return caller_now(principal, ClientFacts(transport=transport), keys, at_ns=time.time_ns())


async def test_a_role_that_no_key_confirms_is_dropped_and_the_plan_says_so(canary: Canary) -> None:
    tool = with_tool(canary)
    async with local_gateway(ADMINS, canary=canary, cells=False) as here, here.client(principal=BOSS) as client:
        await client.call(TOOL)
        tool.failure = None
        plan = await again(here, plan=True)
        report = await again(here)

    assert len(tool.seen) == 1 and report["calls"][0]["ending"] == "policy_denied"
    assert plan["calls"][0]["note"] == "its caller's roles now: none (then: admin)"


async def test_a_role_that_a_key_still_has_counts_until_it_is_revoked(canary: Canary) -> None:
    tool = with_tool(canary)
    async with local_gateway(ADMINS, canary=canary, cells=False) as here, here.client(principal=BOSS) as client:
        keys = KeyRing(here.home.keys_file)
        keys.create("boss", BOSS)
        await client.call(TOOL)
        await client.call(TOOL)
        tool.failure = None
        first, second = await here.outcomes()
        good = await again(here, call=first)
        keys.revoke("boss")
        refused = await again(here, call=second)

    assert good["calls"][0]["ending"] == "answered" and good["calls"][0]["note"] == ""
    assert refused["calls"][0]["why_not"] == NO_KEY and refused["rerun"] is None and len(tool.seen) == 3


def test_who_came_with_a_key_needs_one_that_holds(ring: KeyRing) -> None:
    assert now(ring, BOB).why_not == NO_KEY
    ring.create("old", BOB, expires_at_ns=1)
    assert now(ring, BOB).why_not == NO_KEY
    ring.create("bob", BOB)
    assert now(ring, BOB) == Caller(principal=BOB)
    assert now(ring, replace(BOB, project="other")).why_not == NO_KEY


def test_who_came_over_the_local_socket_needs_none(ring: KeyRing) -> None:
    ring.create("boss", BOSS)
    ring.revoke("boss")
    assert now(ring, BOB, "socket") == Caller(principal=BOB)
    assert now(ring, BOSS, "socket").why_not == NO_KEY, "only a key has roles"


def test_the_roles_of_today_count_also_where_they_are_more(ring: KeyRing) -> None:
    ring.create("bob", BOSS)
    found = now(ring, BOB)
    assert found.principal.roles == ("admin",) and "now: admin (then: none)" in found.note


def test_of_several_keys_that_with_the_roles_of_then_counts_and_else_none(ring: KeyRing) -> None:
    ring.create("boss", BOSS)
    ring.create("clerk", replace(BOB, roles=("clerk",)))
    assert now(ring, BOSS) == Caller(principal=BOSS)
    assert now(ring, replace(BOB, roles=("intern",))).why_not == WHICH_KEY


@pytest.mark.parametrize("by", ["gateway", 'User::"1"@default', "operator:a\nb", "operator:" + "x" * 200])
def test_only_an_operator_asks_for_it_by_name(by: str) -> None:
    with pytest.raises(BadRequest, match="operator"):
        order_of({"run": "r", "by": by})
    assert order_of({"run": "r", "by": "operator:me"}).by == "operator:me"


async def test_a_name_that_means_another_definition_now_wants_a_yes(canary: Canary, tmp_path: Path) -> None:
    tool = with_tool(canary)
    async with local_gateway(ALLOW_ALL, canary=canary, cells=False, directory=tmp_path) as here:
        async with here.client() as client:
            await client.call(TOOL)
        same = await again(here, plan=True)
        [failed] = await here.outcomes()
    changed, other = Canary(tmp_path / "changed"), Tool()
    other.failure = OutcomeUnknown("who knows")
    changed.tool("it", other, definition={"description": "deletes everything"})
    async with local_gateway(ALLOW_ALL, canary=changed, cells=False, directory=tmp_path) as here:
        plan = await again(here, plan=True)
        without = await again(here)
        seen = len(other.seen)
        await again(here, confirmed=(failed,))

    assert same["calls"][0]["means_another"] is False and plan["calls"][0]["means_another"] is True
    assert without["calls"][0]["why_not"] == MEANS_ANOTHER and seen == 0
    assert len(other.seen) == 1 and len(tool.seen) == 1
