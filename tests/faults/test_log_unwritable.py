"""A log that cannot be written: calls are refused, nothing is dispatched, and recovery needs no restart (promise 2)."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from random import Random

import pytest

from tests.clients.running import Running
from tests.databases import locked
from tests.faults.field import Field, new_field
from tests.faults.judge import judge
from tests.faults.recorder import PUBLIC_NAME, REFUSED_WHEN_TOLD, gate_beside, read_record
from tests.faults.talk import Reply, call_all_http, call_http

CALLS_LIMIT = 400
FULL_DISKS = 16  # each with other room left, so that each write of a call is once the first that fails
ROOM_LIMIT_BYTES = 90_000  # more than one call writes, less than fills the log's write-ahead file until it starts anew


@pytest.fixture
def field() -> Iterator[Field]:
    with new_field() as field:
        yield field


@contextmanager
def locked_by_another_process(field: Field) -> Iterator[None]:
    """Hold the write lock of the log, as a backup tool that hangs would; this process is not the gateway's."""
    with locked(field.place.home.log_file):
        yield


@contextmanager
def no_room_to_grow(field: Field, running: Running, *, slack_bytes: int) -> Iterator[None]:
    """Let no file of the gateway grow beyond a little more than its log's, as a full disk would."""
    home = field.place.home
    sizes = [file.stat().st_size for file in home.log_file.parent.glob(f"{home.log_file.name}*")]
    pid = running.process.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (max(sizes) + slack_bytes, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


def test_while_the_log_is_locked_calls_are_refused_and_nothing_runs(field: Field) -> None:
    with field.serving() as running:
        before = call_http(running, PUBLIC_NAME, "before")
        with locked_by_another_process(field):
            during = call_all_http(running, PUBLIC_NAME, ["during-1", "during-2"])
            effects = read_record(field.record)
        after = call_http(running, PUBLIC_NAME, "after")

        assert before.ok and after.ok, "it serves again without a restart"
        assert [reply.code for reply in during] == ["log_unavailable"] * 2
        assert [mark for _, mark in effects] == ["before"]
        assert judge(field.place, field.record, [before, *during, after])[0] == []


def test_when_the_disk_is_full_calls_are_refused_and_served_again_once_there_is_room(field: Field) -> None:
    with field.serving() as running:
        replies = [call_http(running, PUBLIC_NAME, f"before-{n}") for n in range(3)]
        assert all(reply.ok for reply in replies)
        for disk, room_bytes in enumerate(Random(5).choices(range(ROOM_LIMIT_BYTES), k=FULL_DISKS)):
            with no_room_to_grow(field, running, slack_bytes=room_bytes):
                filling = call_until_refused(running, disk)
                effects = {mark for _, mark in read_record(field.record)}
            after = call_http(running, PUBLIC_NAME, f"after-{disk}")
            assert filling[-1].mark not in effects, "what is refused for want of a log does not run"
            assert after.ok, "it serves again without a restart"
            replies += [*filling, after]
        assert judge(field.place, field.record, replies)[0] == []


def call_until_refused(running: Running, disk: int) -> list[Reply]:
    """Call until the log has no room. A call whose outcome found none says that it is unknown; that is no refusal."""
    replies: list[Reply] = []
    for number in range(CALLS_LIMIT):
        replies.append(call_http(running, PUBLIC_NAME, f"filling-{disk}-{number}"))
        if replies[-1].code == "log_unavailable":
            return replies
        assert replies[-1].ok or replies[-1].code == "outcome_unknown", replies[-1]
    pytest.fail(f"no call of {CALLS_LIMIT} was refused: the limit had no effect")


def test_a_refusal_that_finds_no_room_is_on_record_once_there_is_room(field: Field) -> None:
    """Its call is on record already, so it is owed an outcome though nothing ran (promise 4)."""
    os.mkfifo(gate_beside(field.record))
    with field.serving() as running, ThreadPoolExecutor(1) as pool:
        before = call_http(running, PUBLIC_NAME, "before")
        waiting = pool.submit(call_http, running, PUBLIC_NAME, REFUSED_WHEN_TOLD)
        gate = gate_beside(field.record).open("wb")  # returns when the tool waits at it: the intent is durable
        with no_room_to_grow(field, running, slack_bytes=0):
            gate.close()
            refused = waiting.result(30)
        after = call_http(running, PUBLIC_NAME, "after")
        broken, stories = judge(field.place, field.record, [before, refused, after])

    assert before.ok and after.ok and not refused.ok
    assert broken == []
    assert stories[REFUSED_WHEN_TOLD].outcomes[0]["payload"]["code"] == "sandbox_unavailable"
