"""Results of 30 and 100 MB become artifacts, a larger one is refused, and none of them stays in the daemon's memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from omni_mcp.testing import error_of
from tests.bench.soak import grown_beyond, settled
from tests.upstream_faults.yard import Yard, ask, open_yard, over_http, stdio, text_of

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]

LARGEST, AGAIN = 100_000_000, (30_000_000,) * 3
MORE_MIB = 64  # what the allocator may do; the results that come again are 86 in all


@pytest.fixture(scope="module")
def yard(cells: None) -> Iterator[Yard]:
    with over_http(timeout_s=100.0) as web, open_yard({"lines": stdio(timeout_s=100.0), "web": web}) as found:
        yield found


@pytest.mark.parametrize("server", ["lines", pytest.param("web", marks=pytest.mark.long)])
async def test_large_results_become_artifacts_and_do_not_add_up_in_the_daemon(yard: Yard, server: str) -> None:
    sizes = [await kept_bytes(yard, server, LARGEST)]
    before = await settled(yard.running)
    sizes += [await kept_bytes(yard, server, size) for size in AGAIN]
    after = await settled(yard.running)

    assert sizes == [LARGEST, *AGAIN]
    assert grown_beyond(before, after, memory_mib=MORE_MIB) == []


async def kept_bytes(yard: Yard, server: str, size: int) -> int:
    """Have a result of *size* made; returns the size of its artifact."""
    params = {"name": f"{server}__big", "arguments": {"bytes": size}}
    reply = await asyncio.to_thread(ask, yard.running, "tools/call", params)
    return int(reply["result"]["_meta"]["io.omni-mcp/artifact"]["size"])


@pytest.mark.parametrize("server", ["lines", pytest.param("web", marks=pytest.mark.long)])
def test_a_result_over_the_limit_is_refused_while_others_are_answered(yard: Yard, server: str) -> None:
    other = "web" if server == "lines" else "lines"
    with ThreadPoolExecutor() as pool:
        arguments = {"bytes": 140_000_000}
        huge = pool.submit(ask, yard.running, "tools/call", {"name": f"{server}__big", "arguments": arguments})
        meanwhile = ask(yard.running, "tools/call", {"name": f"{other}__echo", "arguments": {"text": "hi"}})
        refused = huge.result()
    after = ask(yard.running, "tools/call", {"name": f"{server}__echo", "arguments": {"text": "still here"}})

    assert text_of(meanwhile) == "hi"
    assert error_of(refused)["code"] == "upstream_protocol"
    assert text_of(after) == "still here"


def test_each_of_them_has_one_outcome(yard: Yard) -> None:
    ask(yard.running, "tools/call", {"name": "lines__echo", "arguments": {"text": "where the others ran elsewhere"}})
    assert set(yard.outcome_counts()) == {1}
