"""Limits that share a timer end each wait in its time, and nothing but that wait."""

from __future__ import annotations

import asyncio
import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_mcp.time_limits import LENGTHS_KEPT, TimeLimit, TimeLimits

PATIENCE_S = 30.0


async def test_a_block_that_takes_too_long_is_ended() -> None:
    with pytest.raises(TimeoutError):
        with TimeLimits().within(0.01):
            await asyncio.Event().wait()


async def test_a_block_that_ends_in_time_is_not_ended_later() -> None:
    limits = TimeLimits()
    with limits.within(0.01):
        pass
    over = asyncio.Event()
    limits.set(0.02, over.set)
    async with asyncio.timeout(PATIENCE_S):
        await over.wait()


async def test_a_task_that_is_cancelled_from_outside_ends_as_cancelled() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        with TimeLimits().within(PATIENCE_S):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_a_task_that_is_cancelled_in_the_moment_of_its_limit_ends_as_cancelled() -> None:
    limits = TimeLimits()

    async def work() -> None:
        with limits.within(0.01):
            await asyncio.Event().wait()

    task, loop = asyncio.create_task(work()), asyncio.get_running_loop()
    await asyncio.sleep(0)
    limits.set(0.01, task.cancel)
    both_are_due_s = loop.time() + 0.02
    while loop.time() < both_are_due_s:
        pass
    await asyncio.wait({task})
    assert task.cancelled()


async def test_a_failure_inside_goes_through_as_it_is() -> None:
    with pytest.raises(KeyError):
        with TimeLimits().within(PATIENCE_S):
            raise KeyError("x")


async def test_only_the_inner_one_of_two_ends_where_it_is_the_shorter() -> None:
    limits = TimeLimits()
    with limits.within(PATIENCE_S):
        with pytest.raises(TimeoutError):
            with limits.within(0.01):
                await asyncio.Event().wait()
        await asyncio.sleep(0)


async def test_one_that_fails_does_not_keep_the_others_from_their_end() -> None:
    limits, over = TimeLimits(), asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    limits.set(0.01, lambda: 1 / 0)
    limits.set(0.01, over.set)
    async with asyncio.timeout(PATIENCE_S):
        await over.wait()


@given(st.lists(st.tuples(st.sampled_from([0.001, 0.002, 0.003]), st.booleans()), max_size=200))
def test_each_is_called_once_unless_it_is_lifted(wanted: list[tuple[float, bool]]) -> None:
    async def run() -> list[int]:
        limits, called, last = TimeLimits(), list[int](), asyncio.Event()
        made = [limits.set(length_s, lambda at=at: called.append(at)) for at, (length_s, _) in enumerate(wanted)]  # type: ignore[misc]
        for limit, (_, is_lifted) in zip(made, wanted, strict=True):
            if is_lifted:
                limit.lift()
                limit.lift()
        limits.set(0.01, last.set)
        async with asyncio.timeout(PATIENCE_S):
            await last.wait()
        return called

    called = asyncio.run(run())
    assert sorted(called) == [at for at, (_, is_lifted) in enumerate(wanted) if not is_lifted]
    of_one_length = [at for at in called if wanted[at][0] == 0.002]
    assert of_one_length == sorted(of_one_length)


async def test_what_was_lifted_is_not_kept_for_the_sake_of_one_that_lasts() -> None:
    limits = TimeLimits()
    lasting = limits.set(600.0, print)
    for _ in range(10_000):
        limits.set(600.0, print).lift()
    assert _count_limits() < 1000
    lasting.lift()


async def test_lengths_that_nobody_waits_under_are_forgotten() -> None:
    limits, over = TimeLimits(), asyncio.Event()
    limits.set(0.01, over.set)
    for number in range(4 * LENGTHS_KEPT):
        limits.set(600.0 + number, print).lift()
    assert len(limits._rows) <= LENGTHS_KEPT + 1
    async with asyncio.timeout(PATIENCE_S):
        await over.wait()


def _count_limits() -> int:
    gc.collect()
    return sum(isinstance(one, TimeLimit) for one in gc.get_objects())
