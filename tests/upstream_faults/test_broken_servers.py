"""Whatever a server does, its call ends within its deadline with one outcome on record, and its neighbour answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from omni_mcp.testing import error_of
from tests.bench.soak import grown_beyond, settled
from tests.upstream_faults.yard import Yard, as_json, ask, text_of, until

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]

TRANSPORTS = ("lines", "http")
REPLY_LIMIT_S = 15.0  # for a call whose server has a second; more is no deadline at all
JUNK = [
    ("noise", "through the noise"), ("wrong_id", "mine"), ("twice", "first"), ("slow_bytes", "drip"),
    ("flood", "flooded"),
]  # fmt: skip
BROKEN = ["utf8", "nan", "deep"]
DYING = ["die", "half_and_die"]
ENDLESS = ["hang", "slow_forever", "half_and_wait", "noise_forever", "only_wrong_id"]


def both(yard: Yard, kind: str, tool: str, **arguments: Any) -> dict[str, dict[str, Any]]:
    """Call *tool* at the servers of both transports at once."""

    def one(transport: str) -> dict[str, Any]:
        params = {"name": f"{kind}_{transport}__{tool}", "arguments": arguments}
        return ask(yard.running, "tools/call", params, limit_s=REPLY_LIMIT_S if kind == "late" else 60.0)

    with ThreadPoolExecutor() as pool:
        return dict(zip(TRANSPORTS, pool.map(one, TRANSPORTS), strict=True))


def codes(replies: dict[str, dict[str, Any]]) -> set[str]:
    return {str(error_of(reply).get("code", "")) for reply in replies.values()}


def assert_calm(yard: Yard) -> None:
    """The neighbour answers."""
    assert text_of(ask(yard.running, "tools/call", {"name": "calm__echo", "arguments": {"text": "calm"}})) == "calm"


def until_well(yard: Yard, kind: str) -> None:
    """Wait until both servers answer again: one that died is started again, one that drips has to end."""
    until(lambda: {text_of(one) for one in both(yard, kind, "echo", text="well").values()} == {"well"}, "recovery")


@pytest.mark.parametrize(("tool", "text"), JUNK)
def test_junk_beside_an_answer_changes_nothing(yard: Yard, tool: str, text: str) -> None:
    replies = both(yard, "bad", tool, lines=3000)

    assert {text_of(reply) for reply in replies.values()} == {text}, as_json(replies)
    assert_calm(yard)


@pytest.mark.parametrize("tool", BROKEN)
def test_a_broken_answer_is_a_structured_error(yard: Yard, tool: str) -> None:
    replies = both(yard, "bad", tool)

    assert codes(replies) == {"upstream_protocol"}, as_json(replies)
    assert_calm(yard)
    until_well(yard, "bad")


@pytest.mark.parametrize("tool", DYING)
def test_a_server_that_dies_in_a_call_leaves_the_outcome_open_and_comes_back(yard: Yard, tool: str) -> None:
    replies = both(yard, "bad", tool)

    assert codes(replies) == {"outcome_unknown"}, as_json(replies)
    assert_calm(yard)
    until_well(yard, "bad")


@pytest.mark.parametrize("tool", ENDLESS)
def test_an_answer_that_does_not_come_to_an_end_ends_at_the_deadline(yard: Yard, tool: str) -> None:
    replies = both(yard, "late", tool, seconds=4)

    assert codes(replies) == {"timeout"}, as_json(replies)
    assert_calm(yard)
    until_well(yard, "late")


def test_a_server_that_dies_takes_all_calls_on_its_connection_with_it_and_no_other(yard: Yard) -> None:
    def call(name: str) -> dict[str, Any]:
        return ask(yard.running, "tools/call", {"name": name, "arguments": {"seconds": 20}})

    with ThreadPoolExecutor(max_workers=8) as pool:
        hanging = [pool.submit(call, "bad_lines__hang") for _ in range(5)]
        until(lambda: pending(yard, "bad_lines") == 5, "calls at the server")
        call("bad_lines__die")
        ends = [error_of(one.result())["code"] for one in hanging]

    assert ends == ["outcome_unknown"] * 5
    assert_calm(yard)
    until_well(yard, "bad")


def pending(yard: Yard, server: str) -> int:
    return sum(int(one["pending"]) for one in yard.status()["servers"][server]["connections"].values())


@pytest.mark.long
async def test_faults_again_and_again_leave_nothing_in_the_daemon(yard: Yard) -> None:
    def a_round() -> None:
        for tool in [name for name, _ in JUNK] + BROKEN:
            both(yard, "bad", tool, lines=1000)
        both(yard, "late", "hang", seconds=1)
        both(yard, "bad", "die")
        until_well(yard, "bad")

    await asyncio.to_thread(a_round)
    before = await settled(yard.running)
    for _ in range(3):
        await asyncio.to_thread(a_round)
    after = await settled(yard.running)

    assert grown_beyond(before, after, memory_mib=24) == []


def test_every_call_has_exactly_one_outcome_on_record(yard: Yard) -> None:
    both(yard, "bad", "nan")
    ended = yard.outcomes()

    assert ended and {call: words for call, words in ended.items() if len(words) != 1} == {}
    assert Counter(word for words in ended.values() for word in words)["tool_error:upstream_protocol"] >= 2
