"""Whatever ends a job, nothing of it goes on: seen from outside by a pipe that every process of the job holds open."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from omni_mcp.contracts.sandbox import Job, Mount
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from tests.sandbox.conftest import HERE, Opener, cgroups_of, in_shell, lacking, limits, usable
from tests.sandbox.gateway_to_kill import HOLD

pytestmark = pytest.mark.sandbox


class Witness:
    """The reading end of a fifo in the job's workspace: says when the job runs, and when the last of it has died."""

    def __init__(self, workspace: Path) -> None:
        self._fifo = workspace / "fifo"
        os.mkfifo(self._fifo, 0o600)
        owner = workspace.stat().st_uid
        os.chown(self._fifo, owner, owner)
        self._file = -1
        self.mount = Mount(source=workspace, inside="/workspace", writable=True)

    def wait_for_start(self) -> None:
        self._file = os.open(self._fifo, os.O_RDONLY)
        assert os.read(self._file, 100) == b"started\n"

    def wait_for_death(self) -> None:
        assert os.read(self._file, 100) == b""  # no process holds the other end
        os.close(self._file)


@pytest.fixture
def witness(workspace: Path) -> Witness:
    return Witness(workspace)


def holding_job(witness: Witness, **fields: float) -> Job:
    return in_shell(HOLD, mounts=(witness.mount,), limits=limits(**fields))


async def test_a_cancelled_call_leaves_no_process_behind(each_sandbox: BubblewrapSandbox, witness: Witness) -> None:
    call = asyncio.ensure_future(each_sandbox.run(holding_job(witness)))
    await asyncio.to_thread(witness.wait_for_start)
    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.to_thread(witness.wait_for_death)


async def test_a_call_that_is_cancelled_again_and_again_still_tidies_up(opened: Opener, witness: Witness) -> None:
    before = await descriptors_at_rest()
    async with opened() as sandbox:
        call = asyncio.ensure_future(usable(sandbox).run(holding_job(witness)))
        await asyncio.to_thread(witness.wait_for_start)
        while not call.done():
            call.cancel()
            await asyncio.sleep(0)

        assert call.cancelled()
        await asyncio.to_thread(witness.wait_for_death)
    assert len(os.listdir("/proc/self/fd")) <= before


async def descriptors_at_rest() -> int:
    """Count our descriptors once they have been as many for a while: a sandbox of the other tests may fill up yet."""
    counts = [len(os.listdir("/proc/self/fd"))]
    while len(counts) < 10 or len(set(counts[-10:])) > 1:
        await asyncio.sleep(0.02)
        counts.append(len(os.listdir("/proc/self/fd")))
    return counts[-1]


async def test_a_call_cancelled_at_any_moment_of_its_start_leaves_the_sandbox_usable(
    sandbox: BubblewrapSandbox,
) -> None:
    for steps in range(0, 24, 3):
        call = asyncio.ensure_future(sandbox.run(in_shell("sleep 60")))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    end = await sandbox.run(in_shell("echo fine"))

    assert end.stdout == b"fine\n"


async def test_a_job_that_ran_out_of_time_leaves_no_process_behind(
    sandbox: BubblewrapSandbox, witness: Witness
) -> None:
    started = asyncio.ensure_future(asyncio.to_thread(witness.wait_for_start))
    end = await sandbox.run(holding_job(witness, timeout_s=1))

    assert end.reason == "timeout"
    await started
    await asyncio.to_thread(witness.wait_for_death)


async def test_a_killed_helper_takes_its_cells_with_it_and_the_next_job_gets_a_new_one(
    each_sandbox: BubblewrapSandbox, witness: Witness
) -> None:
    call = asyncio.ensure_future(each_sandbox.run(holding_job(witness)))
    await asyncio.to_thread(witness.wait_for_start)
    helper = each_sandbox.spawner_pid
    assert helper is not None
    os.kill(helper, signal.SIGKILL)
    end = await call

    assert end.reason == "killed"
    await asyncio.to_thread(witness.wait_for_death)
    assert (await each_sandbox.run(in_shell("echo again"))).stdout == b"again\n"


async def test_a_cell_that_is_killed_from_outside_says_so(sandbox: BubblewrapSandbox, witness: Witness) -> None:
    call = asyncio.ensure_future(sandbox.run(holding_job(witness)))
    await asyncio.to_thread(witness.wait_for_start)
    helper = sandbox.spawner_pid
    for bwrap in Path(f"/proc/{helper}/task/{helper}/children").read_text().split():
        os.kill(int(bwrap), signal.SIGKILL)
    end = await call

    assert end.reason == "killed"
    await asyncio.to_thread(witness.wait_for_death)


def test_a_gateway_killed_at_once_takes_its_jobs_and_cgroups_with_it(
    sandbox_dir: Path, workspace: Path, no_bwrap: bool
) -> None:
    if no_bwrap:
        lacking("bwrap", "bubblewrap is missing")
    witness = Witness(workspace)
    gateway = subprocess.Popen([sys.executable, str(HERE / "gateway_to_kill.py"), str(sandbox_dir), str(workspace)])
    helpers = []
    try:
        witness.wait_for_start()
        helpers = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
        handles = [os.pidfd_open(int(helper)) for helper in helpers]
    finally:
        gateway.kill()
        gateway.wait()
    witness.wait_for_death()
    for handle in handles:
        readable, _, _ = select.select([handle], [], [], 10)  # once the helper has ended, after its cleaning up
        os.close(handle)
        assert readable

    assert helpers
    assert cgroups_of(gateway.pid) == []


def test_a_cell_notices_by_itself_that_its_gateway_has_gone(sandbox_dir: Path, workspace: Path, no_bwrap: bool) -> None:
    """With the helper held still, only process 1 of the cell is there to notice."""
    if no_bwrap:
        lacking("bwrap", "bubblewrap is missing")
    witness = Witness(workspace)
    gateway = subprocess.Popen([sys.executable, str(HERE / "gateway_to_kill.py"), str(sandbox_dir), str(workspace)])
    witness.wait_for_start()
    (helper,) = map(int, Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split())
    handle = os.pidfd_open(helper)
    os.kill(helper, signal.SIGSTOP)
    gateway.kill()
    gateway.wait()
    try:
        witness.wait_for_death()
    finally:
        signal.pidfd_send_signal(handle, signal.SIGCONT)
        readable, _, _ = select.select([handle], [], [], 10)
        os.close(handle)
    assert readable


@pytest.mark.parametrize("how", ["told to kill", "its gateway has gone"])
def test_what_a_killed_bubblewrap_had_forked_dies_too(sandbox_dir: Path, tmp_path: Path, how: str) -> None:
    """bubblewrap's child waits without end for one that is killed between their fork and its word to go on."""
    fifo, halfway = tmp_path / "fifo", tmp_path / "halfway"
    os.mkfifo(fifo)
    halfway.write_text(f"#!/bin/sh\n(echo forked; exec sleep 600) > {fifo} &\nwait\n")
    halfway.chmod(0o755)
    request = {
        "op": "spawn", "id": 1, "bwrap": str(halfway), "sources": [], "identities": [], "nested": [], "stage": False,
        "bind_fd": False, "uid": None, "cgroups": [], "command": ["true"], "args": [], "data": [],
    }  # fmt: skip
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, open(os.devnull, "r+b") as nothing:
        with theirs:
            spawner = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(sandbox_dir / "spawner.py"), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )  # fmt: skip
        socket.send_fds(ours, [json.dumps(request).encode()], [nothing.fileno()] * 4)
        with fifo.open("rb") as held:
            assert held.readline() == b"forked\n"
            if how == "told to kill":
                ours.send(json.dumps({"op": "kill", "id": 1, "signal": signal.SIGKILL}).encode())
                assert held.read() == b""
            ours.close()
            assert held.read() == b""
        assert spawner.wait(30) == 0


async def test_leaving_the_sandbox_ends_jobs_that_still_run(opened: Opener, witness: Witness) -> None:
    async with opened() as sandbox:
        call = asyncio.ensure_future(sandbox.run(holding_job(witness)))
        await asyncio.to_thread(witness.wait_for_start)
    end = await call

    assert end.reason == "killed"
    await asyncio.to_thread(witness.wait_for_death)


async def test_no_descriptor_of_the_gateway_stays_after_jobs_of_every_end(opened: Opener) -> None:
    before = await descriptors_at_rest()
    async with opened() as found:
        sandbox = usable(found)
        for _ in range(3):
            await sandbox.run(in_shell("true"))
            await sandbox.run(Job(profile="shell", argv=("/nowhere",)))
            await sandbox.run(in_shell("sleep 9", limits=limits(timeout_s=0.05)))
            await sandbox.run(in_shell("mkdir out; echo x > out/x", exports=True))

    assert len(os.listdir("/proc/self/fd")) <= before
