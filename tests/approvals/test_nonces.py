"""A nonce is used once, by one of many, and across restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.errors import Overloaded
from omni_mcp.engines.state.database import open_state
from omni_mcp.engines.state.nonces import PURGE_EVERY, StoredNonces


async def test_the_first_use_wins_among_many_and_over_two_connections(state_file: Path, clock: Any) -> None:
    first, second = (StoredNonces(open_state(state_file), now_ns=clock) for _ in range(2))

    uses = [store.use("n", expires_at_ns=clock() + 10**9) for store in (first, second) * 20]

    assert sum(await asyncio.gather(*uses)) == 1
    await first.close()
    await second.close()


async def test_a_used_nonce_stays_used_after_a_restart(state_file: Path, clock: Any) -> None:
    before = StoredNonces(open_state(state_file), now_ns=clock)
    assert await before.use("n", expires_at_ns=clock() + 10**12)
    await before.close()

    after = StoredNonces(open_state(state_file), now_ns=clock)

    assert not await after.use("n", expires_at_ns=clock() + 10**12)
    assert await after.use("other", expires_at_ns=clock() + 10**12)
    await after.close()


async def test_an_expired_nonce_counts_as_used_even_after_it_was_forgotten(state_file: Path, clock: Any) -> None:
    store = StoredNonces(open_state(state_file), now_ns=clock)
    expires_at_ns = clock() + 10**9
    assert await store.use("n", expires_at_ns=expires_at_ns)
    clock.pass_s(2 * 3600)
    for number in range(PURGE_EVERY + 1):
        await store.use(f"x{number}", expires_at_ns=clock() + 10**9)

    assert not await store.use("n", expires_at_ns=expires_at_ns)
    await store.close()


async def test_too_many_open_nonces_are_refused_rather_than_forgotten(state_file: Path, clock: Any) -> None:
    store = StoredNonces(open_state(state_file), now_ns=clock, max_nonces=10)
    for number in range(PURGE_EVERY):
        assert await store.use(f"n{number}", expires_at_ns=clock() + 10**9)

    with pytest.raises(Overloaded):
        await store.use("more", expires_at_ns=clock() + 10**9)
    await store.close()


@pytest.mark.parametrize("nonce", ["", "x" * 513])
async def test_a_nonce_has_a_length(state_file: Path, clock: Any, nonce: str) -> None:
    store = StoredNonces(open_state(state_file), now_ns=clock)

    with pytest.raises(ValueError, match="512"):
        await store.use(nonce, expires_at_ns=clock() + 10**9)
    await store.close()
