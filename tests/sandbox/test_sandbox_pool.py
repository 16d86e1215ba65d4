"""Templates that die or hang, and a helper process that is killed: nobody waits for ever, and nothing stays."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.sandbox import JobEnd
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from omni_mcp.engines.sandbox.profiles import Profile
from omni_mcp.engines.sandbox.spawning import SpawnerGone, SpawnerLink
from omni_mcp.paths import bundled
from tests.sandbox.conftest import ENOUGH_S, PYTHON, Opener, cgroups_of, children_of, in_shell, templates_of, usable
from tests.sandbox.test_sandbox_servers import said_to
from tests.waiting import until

pytestmark = pytest.mark.sandbox


async def kill_with_family(pids: list[int]) -> None:
    """Kill *pids* and wait until the kernel has ended everything that came from them."""
    family = list(pids)
    for pid in family:
        family += children_of(pid)
    assert len(family) > len(pids)
    held = [os.pidfd_open(pid) for pid in family]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for descriptor in held:
        await asyncio.to_thread(select.select, [descriptor], [], [], ENOUGH_S)
        os.close(descriptor)


async def with_cells_ready(sandbox: BubblewrapSandbox) -> None:
    assert (await usable(sandbox).run(in_shell("exit 5"))).exit_code == 5
    await until(lambda: sandbox.held()["cells"])


@pytest.fixture
def cgroups() -> Iterator[None]:
    """No cgroup of a cell is left that was not there before."""
    before = set(cgroups_of(os.getpid()))
    yield
    assert set(cgroups_of(os.getpid())) - before == set()


@pytest.mark.usefixtures("cgroups")
async def test_a_template_that_died_costs_no_job(opened: Opener) -> None:
    async with opened() as sandbox:
        await with_cells_ready(sandbox)
        await kill_with_family(children_of(sandbox.spawner_pid or 0))
        ends = await asyncio.gather(*(sandbox.run(in_shell("exit 6")) for _ in range(4)))

        assert [(end.reason, end.exit_code) for end in ends] == [("exit", 6)] * 4, ends


async def test_a_cell_for_which_the_system_has_no_room_is_refused_and_the_next_one_of_its_template_runs(
    opened: Opener, profiles: dict[str, Profile]
) -> None:
    cold = {**profiles, "shell": profiles["shell"].model_copy(update={"warm": 0})}
    async with opened(profiles=cold) as sandbox:
        assert (await usable(sandbox).run(in_shell("exit 5"))).exit_code == 5
        (template,) = templates_of(sandbox)
        most = processes_limit_of(template)
        usual = most.read_text()
        most.write_text("1")
        refused = await sandbox.run(in_shell("exit 5"))
        most.write_text(usual)
        after = await sandbox.run(in_shell("exit 6"))

        assert refused.reason == "start_failed"
        assert "clone: Resource temporarily unavailable" in refused.message
        assert (after.reason, after.exit_code) == ("exit", 6), after
        assert templates_of(sandbox) == [template]


async def test_a_waiting_cell_has_nothing_open_that_its_template_has_or_that_it_has_joined_by(opened: Opener) -> None:
    async with opened() as sandbox:
        await with_cells_ready(sandbox)
        (template,) = templates_of(sandbox)
        await until(lambda: sandbox.held()["cells"] == len(children_of(template)) == 2)
        for cell in children_of(template):
            held = open_in(cell)
            assert held & open_in(template) == {"/dev/null", "/proc/loadavg"}  # that says what its reader may know
            assert not [path for path in held if "cgroup" in path or path.endswith("/tasks")]


def processes_limit_of(pid: int) -> Path:
    """Return the file with the limit of processes of the cgroup that *pid* is in."""
    for place in cgroups_of(os.getpid()):
        if (Path(place) / "pids.max").exists() and str(pid) in Path(place, "cgroup.procs").read_text().split():
            return Path(place, "pids.max")
    pytest.skip("its processes are in no cgroup that counts them")


def open_in(pid: int) -> set[str]:
    return {os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}


@pytest.mark.usefixtures("cgroups")
async def test_a_module_that_cannot_be_imported_ahead_costs_no_job_that_does_not_need_it(
    opened: Opener, profiles: dict[str, Profile], sandbox_dir: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "sandbox"
    shutil.copytree(sandbox_dir, copy)
    (copy / "tools" / "faulty.py").write_text("raise RuntimeError('always')\n")
    faulty = profiles["shell"].model_copy(update={"warm": 0, "preload": ("faulty",)})
    server = in_shell("cat", lasting=True)
    async with opened(profiles={"shell": faulty}, sandbox_dir=copy) as sandbox:
        async with usable(sandbox).serve(server, on_stderr=lambda data: None) as served:
            first = templates_of(sandbox)
            end = await sandbox.run(in_shell("exit 6"))  # its template has tried the import before it takes this

            assert (end.reason, end.exit_code) == ("exit", 6), end
            assert templates_of(sandbox) == first and len(first) == 1
            assert await said_to(served.stdin, served.stdout, b"still here\n") == b"still here\n"


async def test_a_helper_process_that_was_killed_costs_no_later_job(opened: Opener) -> None:
    async with opened() as sandbox:
        await with_cells_ready(sandbox)
        killed = sandbox.spawner_pid
        await kill_with_family([killed] if killed else [])
        end = await sandbox.run(in_shell("exit 6"))

        assert (end.reason, end.exit_code) == ("exit", 6), end
        assert sandbox.spawner_pid != killed


@pytest.mark.long
@pytest.mark.usefixtures("cgroups")
async def test_a_template_that_hangs_is_given_up_for_a_new_one(opened: Opener, profiles: dict[str, Profile]) -> None:
    patient = profiles["shell"].model_copy(update={"warm": 0, "start_limit_s": 8.0})
    async with opened(profiles={"shell": patient}) as sandbox:
        assert (await usable(sandbox).run(in_shell("exit 5"))).exit_code == 5
        for template in templates_of(sandbox):
            os.kill(template, signal.SIGSTOP)
        end = await sandbox.run(in_shell("exit 6"))
        again = await sandbox.run(in_shell("exit 7"))

        assert (end.reason, end.exit_code) == ("exit", 6), end
        assert again.usage["start_ms"] < 8000


@pytest.mark.usefixtures("cgroups")
async def test_closing_does_not_wait_for_a_server_on_a_template_that_was_given_up(
    opened: Opener, profiles: dict[str, Profile]
) -> None:
    patient = profiles["shell"].model_copy(update={"warm": 0, "start_limit_s": 3.0})
    left = asyncio.Event()
    server = in_shell("cat", lasting=True)

    async def serve(sandbox: BubblewrapSandbox, up: asyncio.Event) -> str:
        async with sandbox.serve(server, on_stderr=lambda data: None) as served:
            up.set()
            await left.wait()
            return (await served.ended).reason

    async with asyncio.timeout(ENOUGH_S):
        async with opened(profiles={"shell": patient}) as sandbox:
            up = asyncio.Event()
            user = asyncio.create_task(serve(usable(sandbox), up))
            await up.wait()
            for template in templates_of(sandbox):
                os.kill(template, signal.SIGSTOP)
            assert (await sandbox.run(in_shell("exit 6"))).exit_code == 6
        left.set()
        assert await user == "killed"


@pytest.mark.usefixtures("cgroups")
async def test_closing_while_cells_are_made_and_taken_ends_and_leaves_nothing(opened: Opener) -> None:
    for steps in range(0, 60, 6):
        async with asyncio.timeout(ENOUGH_S):
            async with opened(use_cgroups=True) as sandbox:
                calls = [asyncio.create_task(usable(sandbox).run(in_shell("sleep 60"))) for _ in range(3)]
                for _ in range(steps):
                    await asyncio.sleep(0.002)
            ends = await asyncio.gather(*calls, return_exceptions=True)
        assert {end.reason for end in ends if not isinstance(end, BaseException)} <= {"killed", "start_failed"}, ends
        assert [end for end in ends if isinstance(end, BaseException)] == []


@pytest.mark.usefixtures("cgroups")
async def test_a_closed_sandbox_starts_nothing_more(opened: Opener) -> None:
    async with opened() as sandbox:
        assert (await usable(sandbox).run(in_shell("exit 5"))).exit_code == 5
    end = await sandbox.run(in_shell("exit 6"))

    assert (end.reason, end.message) == ("start_failed", "the sandbox is closing")
    assert sandbox.spawner_pid is None


async def test_whoever_waits_for_a_helper_process_that_takes_no_more_learns_of_its_death() -> None:
    link = SpawnerLink.start(bundled("sandbox"))
    os.kill(link.pid, signal.SIGSTOP)
    many = ["x" * 1000] * 30
    senders = [asyncio.create_task(link.sweep_at_the_end(many)) for _ in range(40)]
    await asyncio.wait(senders, timeout=0.2)
    waiting = [sender for sender in senders if not sender.done()]
    assert len(waiting) > 1  # the control: the socket is full
    os.kill(link.pid, signal.SIGKILL)
    async with asyncio.timeout(ENOUGH_S):
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        await link.close()

    assert {type(end) for end in ends} == {SpawnerGone}


async def test_those_who_wait_for_a_helper_process_are_all_served_when_it_goes_on() -> None:
    link = SpawnerLink.start(bundled("sandbox"))
    os.kill(link.pid, signal.SIGSTOP)
    senders = [asyncio.create_task(link.sweep_at_the_end(["x" * 1000] * 30)) for _ in range(40)]
    await asyncio.wait(senders, timeout=0.2)
    assert sum(not sender.done() for sender in senders) > 1
    os.kill(link.pid, signal.SIGCONT)
    async with asyncio.timeout(ENOUGH_S):
        await asyncio.gather(*senders)
        await link.close()


def test_a_frame_with_descriptors_is_not_followed_by_an_empty_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stream nobody sees it; with message boundaries the other end would read it as our end."""
    monkeypatch.syspath_prepend(str(bundled("sandbox")))
    wire: Any = __import__("wire")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(os.devnull) as nothing:
        wire.send(ours, {"kind": "cell"}, (nothing.fileno(),))
        assert theirs.recv(1024).endswith(b'{"kind": "cell"}')
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1024)


def pipes_and_files() -> int:
    names = [os.readlink(place) for place in Path("/proc/self/fd").iterdir() if place.is_symlink()]
    return sum(name.startswith(("pipe:", "/memfd:")) for name in names)


async def test_a_gateway_that_is_short_of_descriptors_says_so_and_loses_none(opened: Opener) -> None:
    """Else those that a refused job has taken would be missing ever after."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with opened() as sandbox:
        await with_cells_ready(sandbox)
        before, ends = pipes_and_files(), list[JobEnd]()
        for room in range(14):
            await with_cells_ready(sandbox)
            free = set(range(1024)).difference(map(int, os.listdir("/proc/self/fd")))
            resource.setrlimit(resource.RLIMIT_NOFILE, (sorted(free)[room], usual[1]))
            try:
                ends.append(await sandbox.run(in_shell("exit 5")))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, usual)

        assert "start_failed" in {end.reason for end in ends} <= {"start_failed", "exit"}
        assert (await sandbox.run(in_shell("exit 5"))).exit_code == 5
        await until(lambda: pipes_and_files() <= before)


SHORT_OF_NUMBERS = """
import os, resource, socket, sys
sys.path.insert(0, sys.argv[1])
import wire
ours, theirs = socket.socketpair()
given = (0, 1, 2, 0, 1)
for _ in range(2):
    wire.send(ours, {"kind": "cell"}, given)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 2, 64))
before = os.listdir("/proc/self/fd")
try:
    print(wire.receive_packed_with(theirs, len(given)))
except OSError as error:
    print(error.strerror, os.listdir("/proc/self/fd") == before)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
body, found = wire.receive_packed_with(theirs, len(given))
print(body.decode(), len(found))
"""


def test_a_cell_that_cannot_have_all_ways_into_its_cgroups_has_none() -> None:
    """The kernel hands over those for which there are numbers: a cell would join two of four and seem to be in all.

    What comes next is read as if nothing had been.
    """
    command = [PYTHON, "-I", "-S", "-B", "-c", SHORT_OF_NUMBERS, str(bundled("sandbox"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ENOUGH_S, check=True)

    assert done.stdout.splitlines() == ["Too many open files True", '{"kind": "cell"} 5']
