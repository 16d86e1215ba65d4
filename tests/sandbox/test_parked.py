"""Cells whose job's process was made ahead: whatever the next job is, it runs, and as it would in any other cell."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.sandbox import Job, JobEnd, Mount
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from omni_mcp.paths import bundled
from tests.sandbox.conftest import Opener, children_of, limits, templates_of, usable
from tests.waiting import until

pytestmark = pytest.mark.sandbox


def function(name: str, arguments: dict[str, Any] | None = None, **fields: Any) -> Job:
    return Job(profile="job", function=f"trial_tools:{name}", arguments=arguments or {}, bundled=True, **fields)


def command(script: str, **fields: Any) -> Job:
    """A command in the profile of the functions, so that both use the same cells."""
    return Job(profile="job", argv=("/bin/sh", "-c", script), **fields)


def cells_of(sandbox: BubblewrapSandbox) -> list[int]:
    """Return the processes 1 of all cells that wait."""
    return [cell for template in templates_of(sandbox) for cell in children_of(template)]


def waiting_in(sandbox: BubblewrapSandbox) -> list[int]:
    """Return the processes that wait in cells for an order."""
    return [process for cell in cells_of(sandbox) for process in children_of(cell)]


def in_directory(place: Path, name: str, arguments: dict[str, Any]) -> Job:
    """A function with *place* as its workspace."""
    return function(name, arguments, mounts=(Mount(source=place, inside="/workspace", writable=True),))


async def until_hot(sandbox: BubblewrapSandbox, job: Job) -> AsyncIterator[JobEnd]:
    """Run *job* until one of its cells was ready before it; each end is for the caller to look at."""
    while True:
        end = await sandbox.run(job)
        yield end
        if end.usage["temperature"] == "hot":
            return
        await asyncio.sleep(0.01)


def is_free(file: Path) -> bool:
    """Whether nobody holds a lock on *file*."""
    with file.open() as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


async def settled(sandbox: BubblewrapSandbox, last: Job) -> JobEnd:
    """Run *last* until a cell made after it is taken by it: the cells that wait then expect its like."""
    ends = []
    for _ in range(4):
        ends.append(await sandbox.run(last))
        await until(lambda: sandbox.held()["cells"] >= 2)
    return ends[-1]


async def test_a_function_finds_its_process_made_and_a_command_is_not_kept_waiting_for_one(
    sandbox: BubblewrapSandbox,
) -> None:
    end = await settled(sandbox, function("echo", {"n": 1}))
    assert (end.reason, end.result, end.usage["temperature"]) == (
        "exit", {"echo": {"n": 1}, "cwd": "/workspace"}, "hot",
    )  # fmt: skip
    await until(lambda: len(waiting_in(sandbox)) == len(cells_of(sandbox)) == 2)

    end = await settled(sandbox, command("exit 3"))
    assert (end.reason, end.exit_code) == ("exit", 3)
    await until(lambda: not waiting_in(sandbox))


async def test_what_a_cell_did_not_expect_runs_in_it_all_the_same(sandbox: BubblewrapSandbox) -> None:
    await settled(sandbox, function("echo"))
    there = await sandbox.run(command("cat; echo $0 $HOME; ls /proc/self/fd; exit 4", stdin=b"given "))
    await settled(sandbox, command("true"))
    and_back = await sandbox.run(function("echo", {"n": 2}))

    assert there.usage["temperature"] == and_back.usage["temperature"] == "hot"
    assert (there.reason, there.exit_code) == ("exit", 4), there
    assert there.stdout == b"given /bin/sh /workspace\n0\n1\n2\n3\n"  # 3 is ls's own look at the directory
    assert and_back.result == {"echo": {"n": 2}, "cwd": "/workspace"}


async def test_a_command_that_cannot_be_started_says_why_in_such_a_cell_too(sandbox: BubblewrapSandbox) -> None:
    await settled(sandbox, function("echo"))
    end = await sandbox.run(Job(profile="job", argv=("no-such-command",)))

    assert (end.reason, end.message) == ("start_failed", "there is no command 'no-such-command' in the cell")
    assert end.usage == {} or end.usage["temperature"] == "hot"


async def test_a_job_that_was_waited_for_has_the_limits_of_its_order_and_no_others(sandbox: BubblewrapSandbox) -> None:
    asked = limits(open_files=77, processes=11, file_size_mib=3)
    await settled(sandbox, function("echo", limits=asked))
    end = await sandbox.run(command("cat /proc/self/limits", limits=asked))
    found = {line[:26].strip(): tuple(line[26:].split()[:2]) for line in end.stdout.decode().splitlines()}

    assert found["Max open files"] == ("77", "77"), end
    most = "13" if end.isolation.posture == "full" else "12"  # a cgroup comes to its limit first: process 1 is in it
    assert found["Max processes"] == (most, most)
    assert found["Max file size"] == (str(3 << 20),) * 2
    assert found["Max core file size"] == ("0", "0")


async def test_a_job_that_was_waited_for_is_outside_process_1_and_has_nothing_of_it(sandbox: BubblewrapSandbox) -> None:
    look = Job(profile="job", function="selfcheck:report", arguments={}, bundled=True)
    found = (await settled(sandbox, look)).result or {}

    assert found["descriptors"] == [0, 1, 2, 3, 4]  # the last is the counter in which it leaves word of its end
    assert (found["pid"], found["outer_environment_readable"]) == (1, False)
    assert found["new_user_namespace"] != "allowed"
    assert (found["capabilities"], found["seccomp"]) == ("0000000000000000", "2")


async def test_a_cell_whose_waiting_process_was_killed_is_not_given_to_a_job(opened: Opener) -> None:
    async with opened() as sandbox:
        await settled(usable(sandbox), function("echo"))
        cells = cells_of(sandbox)
        for process in waiting_in(sandbox):
            os.kill(process, 9)
        await until(lambda: not any(Path(f"/proc/{cell}").exists() for cell in cells))
        end = await sandbox.run(function("echo", {"n": 3}))

        assert (end.reason, end.result) == ("exit", {"echo": {"n": 3}, "cwd": "/workspace"}), end


@pytest.mark.parametrize(("name", "arguments", "reason"), [
    ("vanish", {}, "exit"), ("crash", {}, "exit"), ("spin", {}, "cpu_time"), ("eat_memory", {"mib": 600}, "memory"),
])  # fmt: skip
async def test_however_a_job_ends_that_was_waited_for_it_is_said(
    sandbox: BubblewrapSandbox, name: str, arguments: dict[str, Any], reason: str
) -> None:
    asked = limits(cpu_s=1.0, memory_mib=128, timeout_s=60)
    await settled(sandbox, function("echo", limits=asked))
    end = await sandbox.run(function(name, arguments, limits=asked))

    assert (end.reason, end.usage["temperature"]) == (reason, "hot"), end


@pytest.mark.parametrize("what", ["child", "orphan", "thread"])
async def test_what_a_function_leaves_behind_has_ended_before_its_answer_is_there(
    sandbox: BubblewrapSandbox, workspace: Path, what: str
) -> None:
    async for end in until_hot(sandbox, in_directory(workspace, "leave_behind", {"what": what})):
        assert (end.reason, end.result) == ("exit", {"left": what}), end
        assert is_free(workspace / "held")


async def test_a_function_that_says_that_it_has_returned_and_goes_on_is_killed(opened: Opener, workspace: Path) -> None:
    async with opened() as sandbox:
        async for _ in until_hot(usable(sandbox), in_directory(workspace, "echo", {})):
            await until(lambda: len(waiting_in(sandbox)) == 2)
        end = await sandbox.run(in_directory(workspace, "claim_to_have_ended", {}))

        assert (end.reason, end.exit_code, end.result, end.usage["temperature"]) == ("exit", 0, None, "hot"), end
        await until(lambda: is_free(workspace / "held"))


async def test_a_function_that_takes_its_word_back_ends_as_any_other(opened: Opener) -> None:
    async with opened() as sandbox:
        for _ in range(5):
            await settled(usable(sandbox), function("echo"))
            end = await sandbox.run(function("say_and_take_back", {"times": 20_000}))

            assert (end.reason, end.exit_code, end.usage["temperature"]) == ("exit", 0, "hot"), end


async def test_what_a_function_has_used_is_told_although_its_process_still_ends(sandbox: BubblewrapSandbox) -> None:
    for _ in range(20):  # beside others, a cell may not be ready again at once
        await settled(sandbox, function("echo"))
        end = await sandbox.run(function("eat_memory", {"mib": 40}))
        if end.usage["temperature"] == "hot":
            break

    assert (end.result, end.usage["temperature"]) == ({"bytes": 40 << 20}, "hot"), end
    assert end.usage["memory_peak_bytes"] >= 40 << 20
    assert end.usage["cpu_ms"] > 0


async def test_the_template_is_after_its_rehearsal_as_it_was_before(opened: Opener) -> None:
    async with opened() as sandbox:
        await settled(usable(sandbox), function("echo"))
        (template,) = templates_of(sandbox)

        await until(lambda: sorted(map(int, os.listdir(f"/proc/{template}/fd"))) == [0, 1, 2, 3, 4])
        assert os.readlink(f"/proc/{template}/fd/4") == "/proc/loadavg"
        assert os.readlink(f"/proc/{template}/cwd") == "/workspace"
        (bubblewrap,) = children_of(sandbox.spawner_pid or 0)
        assert Path(f"/proc/{template}/limits").read_text() == Path(f"/proc/{bubblewrap}/limits").read_text()


def test_a_rehearsal_goes_through_all_of_it() -> None:
    setup = {
        "environment": {}, "unix_sockets": False, "count_memory": False, "proc": True, "tmpfs": ["/tmp"],
        "mounts": [], "writable": [], "sizes": {"disk_bytes": 1 << 20, "inodes": 100},
    }  # fmt: skip
    code = f"import json, rehearsal, wall; setup = {setup}; "
    code += "print(json.dumps(rehearsal.rehearse(setup, wall.prepare(setup))))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=bundled("sandbox"), capture_output=True, timeout=60, check=False
    )
    assert json.loads(done.stdout or "null") is True, done.stderr
