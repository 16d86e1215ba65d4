"""Salts and nonces: as many bytes as were asked for, and no byte given out twice."""

from __future__ import annotations

from omni_mcp.engines.runlog.random_bytes import BLOCK_BYTES, RandomBytes


def test_nothing_is_given_twice_also_where_a_block_ends() -> None:
    random = RandomBytes()
    taken = [random.take(size) for _ in range(BLOCK_BYTES // 8) for size in (16, 12)]
    assert {len(one) for one in taken} == {16, 12}
    assert len(set(taken)) == len(taken)
    assert len({one[:8] for one in taken}) == len(taken), "nor does one begin inside another"
