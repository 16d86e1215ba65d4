"""A thousand tools, names of 200 characters, a list that changes every second: all bounded, and all callable."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.bench.soak import grown_beyond, settled
from tests.upstream_faults.yard import Yard, ask, listed, open_yard, over_http, stdio, text_of, until

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]

NAME_LIMIT = 64
TICKS = 4


@pytest.fixture(scope="module")
def yard(cells: None) -> Iterator[Yard]:
    with over_http("--restless", "1") as web:
        servers = {
            "many": stdio("--tools", "1000"), "long": stdio("--names", "200"),
            "restless": stdio("--restless", "1"), "restless_web": web,
        }  # fmt: skip
        with open_yard(servers) as found:
            yield found


def test_all_of_a_thousand_tools_are_listed_once_and_the_last_one_can_be_called(yard: Yard) -> None:
    names = [tool["name"] for tool in listed(yard.running) if tool["name"].startswith("many__tool_")]

    assert sorted(names) == sorted(f"many__tool_{number}" for number in range(1000))
    assert text_of(ask(yard.running, "tools/call", {"name": "many__tool_999", "arguments": {"text": "x"}})) == "x"


def test_long_names_get_short_ones_that_lead_to_the_right_tool(yard: Yard) -> None:
    names = [tool["name"] for tool in listed(yard.running) if tool["name"].startswith("long__")]
    short = [name for name in names if "nnn" in name]
    answers = {text_of(ask(yard.running, "tools/call", {"name": name, "arguments": {"text": name}})) for name in short}

    assert len(short) == len(set(short)) == 20 and answers == set(short)
    assert max(map(len, names)) <= NAME_LIMIT


@pytest.mark.parametrize("server", ["restless", pytest.param("restless_web", marks=pytest.mark.long)])
async def test_a_list_that_changes_for_ever_costs_its_server_nothing_but_what_is_new(yard: Yard, server: str) -> None:
    """What was accepted stays callable, what is new stays quarantined, and the daemon does not grow."""
    seen: set[str] = set()

    def ticks() -> bool:
        seen.update(fresh(yard, server))
        return len(seen) >= TICKS

    before = await settled(yard.running)
    await asyncio.to_thread(until, ticks, "other lists")
    answer = await asyncio.to_thread(
        ask, yard.running, "tools/call", {"name": f"{server}__echo", "arguments": {"text": "here"}}
    )
    shown = {tool["name"] for tool in await asyncio.to_thread(listed, yard.running)}

    assert text_of(answer) == "here"
    assert not shown & {f"{server}__{name}" for name in seen - {"tick_0"}}
    assert grown_beyond(before, await settled(yard.running), memory_mib=16) == []


def fresh(yard: Yard, server: str) -> set[str]:
    """Return what of a server's last list nobody accepted."""
    found = yard.place.end_of("lock", "--server", server).stdout
    return {word for line in found.splitlines() for word in line.replace("/", " ").split() if word.startswith("tick_")}
