"""Clients that connect and leave, politely or not, leave nothing in the gateway, and share one copy of each server."""

from __future__ import annotations

import pytest

from tests.clients_many.crowd import Seen, all_gone, faults_of, rounds, shared_servers

ROUNDS = 8


@pytest.mark.sandbox
@pytest.mark.slow
@pytest.mark.long
async def test_ten_clients_that_come_and_go_leave_nothing_and_one_copy_of_each_server_ran(cells: None) -> None:
    with shared_servers() as (yard, starts):
        seen = Seen()
        await rounds(yard, 2, seen)
        before = await all_gone(yard)
        await rounds(yard, ROUNDS, seen)
        after = await all_gone(yard)
        outcomes = yard.outcome_counts()

        assert faults_of(before, after, ROUNDS, seen, starts()) == []
        assert set(outcomes) == {1} and outcomes[1] >= 10 * ROUNDS


def test_what_is_left_behind_is_named() -> None:
    held = {
        "descriptors": 10.0, "processes": 2.0, "threads": 5.0, "cgroups": 1.0, "mounts": 3.0, "temporary files": 0.0,
        "memory MiB": 90.0, "tasks": 12.0, "sockets": 4.0,
    }  # fmt: skip
    seen = Seen({"lines": {"a", "b"}, "web": {"c"}})
    more = {**held, "processes": 3.0, "sockets": 9.0, "tasks": 13.0, "memory MiB": 200.0}

    assert faults_of(held, more, 10, seen, {"lines": 2, "web": 1}) == [
        "processes: 2 before, 3 after", "memory: 90.0 MiB before, 200.0 after", "tasks: 12 before, 13 after",
        "sockets: 4 before, 9 after", "lines was started 2 times", "2 processes of lines answered",
    ]  # fmt: skip
