"""Where no namespaces can be had: jobs whose demand says so run as plain process trees, and all others are refused."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from omni_mcp.contracts.sandbox import Job, Mount, Streams
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from omni_mcp.engines.sandbox.job_directories import JobDirectories, remove_tree
from omni_mcp.engines.sandbox.plain_probe import plain_faults_of
from omni_mcp.engines.sandbox.profiles import Profile
from tests.sandbox.conftest import HERE, PYTHON, Opener, children_of, lacking, limits, run_as_ordinary_user

DAEMON = """
import os, signal, sys, time
def daemon():
    seen, held = os.pipe()
    if os.fork():
        os.close(held)
        return os.read(seen, 1)
    os.setsid()
    if os.fork(): os._exit(0)
    os.execv(sys.executable, [NAME, "-I", "-S", "-c", "import signal, time; signal.signal(15, 1); time.sleep(300)"])
"""


def plain(profiles: dict[str, Profile]) -> dict[str, Profile]:
    """Add a profile that accepts a plain process tree by name."""
    return {**profiles, "plain": profiles["shell"].model_copy(update={"posture": "landlock"})}


def usable(sandbox: BubblewrapSandbox) -> BubblewrapSandbox:
    if sandbox.isolation().posture != "landlock":
        lacking("landlock", f"no plain processes here: {sandbox.isolation().missing}")
    return sandbox


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(opened: Opener, profiles: dict[str, Profile]) -> AsyncIterator[BubblewrapSandbox]:
    async with opened(profiles=plain(profiles), use_namespaces=False) as found:
        yield usable(found)


def shell(script: str, **fields: Any) -> Job:
    return Job(
        **{"profile": "plain", "posture": "landlock", "argv": ("/bin/sh", "-c", script), "limits": limits(), **fields}
    )


def python(code: str, **fields: Any) -> Job:
    return shell("", argv=(PYTHON, "-I", "-S", "-c", code), **fields)


def alive(name: str) -> list[int]:
    """Return the processes that call themselves *name*."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cmdline").read_bytes().startswith(name.encode() + b"\0"):
                found.append(int(entry.name))
    return found


async def test_the_posture_and_its_layers_are_told(sandbox: BubblewrapSandbox) -> None:
    end = await sandbox.run(shell("exit 3"))

    assert (end.reason, end.exit_code, end.isolation.posture) == ("exit", 3, "landlock")
    assert {"landlock-files", "seccomp", "no-sockets", "rlimits", "watchdog"} <= set(end.isolation.layers)
    assert "own-namespaces" not in end.isolation.layers
    assert end.isolation.missing == {"namespaces": "switched off"}


@pytest.mark.parametrize(("profile", "posture"), [("shell", "landlock"), ("plain", "no-cgroup"), ("plain", "full")])
async def test_whoever_demands_more_is_refused(sandbox: BubblewrapSandbox, profile: str, posture: Any) -> None:
    end = await sandbox.run(shell("true", profile=profile, posture=posture))

    assert end.reason == "sandbox_unavailable"
    assert "'landlock' can be had" in end.message


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"egress": ("example.org:443",)}, "no network"),
        ({"mounts": (Mount(source=Path("/opt"), inside="/workspace", writable=True),)}, "at their own places only"),
        ({"mounts": (Mount(source=Path("/opt"), inside="/packages"),)}, "'/packages'"),
    ],
)
async def test_what_a_plain_process_cannot_have_is_refused(
    sandbox: BubblewrapSandbox, fields: dict[str, Any], word: str
) -> None:
    end = await sandbox.run(shell("true", **fields))

    assert end.reason == "sandbox_unavailable"
    assert word in end.message


@pytest.mark.parametrize("bundled", [True, False])
async def test_a_function_returns_its_object(sandbox: BubblewrapSandbox, bundled: bool) -> None:
    arguments = {"text": "x" * 300_000, "algorithm": "sha256"}
    job = shell("", argv=(), function="text:text_hash", arguments=arguments, bundled=bundled)
    end = await sandbox.run(job)

    assert (end.reason, end.exit_code) == ("exit", 0), end
    assert end.result is not None and hashlib.sha256(b"x" * 300_000).hexdigest() in end.result.values()


async def test_a_missing_command_is_named(sandbox: BubblewrapSandbox) -> None:
    end = await sandbox.run(shell("", argv=("no-such-thing",)))

    assert (end.reason, end.message) == ("start_failed", "there is no command 'no-such-thing' in the cell")


async def test_files_come_in_and_out_comes_back_without_what_links_lead_to(sandbox: BubblewrapSandbox) -> None:
    script = """
mkdir out; tr a-z A-Z < in/text > out/text
ln -s /etc/passwd out/link; ln -s /etc out/directory; ln in/text out/twin; mkfifo out/pipe"""
    end = await sandbox.run(shell(script, files={"in/text": b"hello"}, exports=True))

    assert [(file.name, file.data) for file in end.files] == [("out/text", b"HELLO")], end
    assert len(end.usage["not_exported"]) == 4, end


async def test_out_itself_may_not_be_a_link(sandbox: BubblewrapSandbox) -> None:
    end = await sandbox.run(shell("ln -s /etc out", exports=True))

    assert (end.reason, end.files) == ("exit", ())


async def test_nothing_of_a_jobs_directory_is_left(opened: Opener, profiles: dict[str, Profile]) -> None:
    """Also where the job closed its directories, or nested them deeper than a path can be long."""
    code = """
import os
print(os.getcwd())
os.mkdir("closed"); open("closed/file", "w"); os.mkdir("closed/inner"); os.chmod("closed/inner", 0)
os.chmod("closed", 0)
for _ in range(1500): os.mkdir("deep-directory"); os.chdir("deep-directory")
"""
    async with opened(profiles=plain(profiles), use_namespaces=False) as found:
        end = await usable(found).run(python(code))
        place = Path(end.stdout.decode().strip())
        async with asyncio.timeout(30):
            while os.path.lexists(place):  # it goes a moment after the answer
                await asyncio.sleep(0.01)

    assert (end.exit_code, end.stderr) == (0, b"")
    assert not os.path.lexists(place.parent)


def test_a_place_with_something_left_in_it_stays_and_a_missing_tree_is_no_fault() -> None:
    directories = JobDirectories()
    made = directories.make(1, None)
    directories.close()
    assert made.is_dir()
    remove_tree(made)
    remove_tree(made)
    directories.close()

    assert not directories.place.exists()


class Talk:
    """A job that goes on until we say so: its output, line by line, and the end of its input in our hand."""

    def __init__(self, sandbox: BubblewrapSandbox, job: Job) -> None:
        self._stdin, self._writer = os.pipe()
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        streams = Streams(stdin=self._stdin, stdout=self._lines.put, stderr=self._lines.put)
        self.end = asyncio.ensure_future(sandbox.run(job, streams=streams))

    async def line(self) -> str:
        async with asyncio.timeout(30):
            return (await self._lines.get()).decode().strip()

    def close(self) -> None:
        os.close(self._writer)
        os.close(self._stdin)


async def test_jobs_at_the_same_time_are_different_users_and_none_is_ours(sandbox: BubblewrapSandbox) -> None:
    if os.geteuid() != 0:
        pytest.skip("an ordinary user runs all as themselves")
    talk = Talk(sandbox, shell("id -u; cat"))
    first = await talk.line()
    second = (await sandbox.run(shell("id -u"))).stdout.decode().strip()
    talk.close()

    assert (await talk.end).reason == "exit"
    assert len({first, second, "0"}) == 3


async def test_jobs_of_one_sandbox_do_not_see_each_others_files(sandbox: BubblewrapSandbox) -> None:
    talk = Talk(sandbox, shell("echo secret > file; chmod 777 . file; pwd; cat"))
    place = await talk.line()
    end = await sandbox.run(shell(f"cat {place}/file; ls {place}"))
    talk.close()

    assert (await talk.end).reason == "exit"
    assert end.exit_code != 0 and b"secret" not in end.stdout


async def test_directories_at_their_own_places_can_be_used_as_granted(
    sandbox: BubblewrapSandbox, workspace: Path, tmp_path: Path
) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "file").write_text("shown")
    mounts = (
        Mount(source=workspace, inside=str(workspace), writable=True),
        Mount(source=shown, inside=str(shown)),
    )
    end = await sandbox.run(shell(f"cp {shown}/file {workspace}/copy; echo x > {shown}/new", mounts=mounts))

    assert end.exit_code != 0
    assert (workspace / "copy").read_text() == "shown"
    assert not (shown / "new").exists()


@pytest.mark.parametrize(
    ("code", "given", "reason"),
    [
        ("import time; time.sleep(100)", {"timeout_s": 1}, "timeout"),
        ("while True: pass", {"cpu_s": 1}, "cpu_time"),
        ("print('x' * 99999)", {"output_limit_bytes": 1024}, "output_limit"),
        ("signal.signal(signal.SIGXFSZ, signal.SIG_DFL); open('f', 'w').write('x' * (3 << 20))",
         {"file_size_mib": 1}, "file_size"),
        ("import os, time\nfor n in range(9): open(f'f{n}', 'w').write('x' * (1 << 20))\ntime.sleep(99)",
         {"disk_mib": 4}, "disk"),
        ("for n in range(3):\n if os.fork() == 0: x = b'x' * (60 << 20); time.sleep(99)\ntime.sleep(99)",
         {"memory_mib": 100}, "memory"),
    ],
)  # fmt: skip
async def test_limits_end_a_job_and_all_that_it_started(
    sandbox: BubblewrapSandbox, code: str, given: dict[str, Any], reason: str
) -> None:
    name = f"omni-limit-{os.getpid()}"
    started = DAEMON.replace("NAME", repr(name)) + "daemon()\n"
    end = await sandbox.run(python(started + code, limits=limits(**given)))

    assert end.reason == reason, end
    assert alive(name) == []


async def test_a_cancelled_call_is_not_answered_before_its_tree_is_dead(sandbox: BubblewrapSandbox) -> None:
    name = f"omni-cancel-{os.getpid()}"
    code = DAEMON.replace("NAME", repr(name)) + "daemon(); print('up', flush=True); time.sleep(99)"
    talk = Talk(sandbox, python(code))
    assert await talk.line() == "up"
    assert alive(name)
    talk.end.cancel()
    with pytest.raises(asyncio.CancelledError):
        await talk.end
    talk.close()

    assert alive(name) == []


async def test_what_a_killed_supervisor_leaves_is_killed_too(opened: Opener, profiles: dict[str, Profile]) -> None:
    name = f"omni-orphan-{os.getpid()}"
    code = DAEMON.replace("NAME", repr(name)) + "daemon(); print('up', flush=True); time.sleep(99)"
    async with opened(profiles=plain(profiles), use_namespaces=False) as found:
        talk = Talk(usable(found), python(code))
        assert await talk.line() == "up"
        assert alive(name)
        for supervisor in children_of(found.spawner_pid or 0):
            os.kill(supervisor, signal.SIGKILL)
        assert (await talk.end).reason == "killed"
        talk.close()
        assert (await found.run(shell("exit 4"))).exit_code == 4

    assert alive(name) == []


async def test_when_the_gateway_is_killed_its_jobs_and_their_directories_go(sandbox_dir: Path, workspace: Path) -> None:
    """A job holds a fifo open; the helper process holds our pipe open: both ends are seen."""
    os.mkfifo(workspace / "fifo", 0o600)
    owner = workspace.stat().st_uid
    os.chown(workspace / "fifo", owner, owner)
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "plain_gateway_to_kill.py"), str(sandbox_dir), str(workspace),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    with await asyncio.to_thread(open, workspace / "fifo") as fifo:
        place = Path(fifo.readline().strip())
        assert place.is_dir()
        gateway.kill()
        assert await asyncio.to_thread(fifo.read) == ""
    assert gateway.stderr is not None
    said = await gateway.stderr.read()
    await gateway.wait()

    assert not os.path.lexists(place.parent), said


def test_jobs_of_an_ordinary_user_are_plain_processes_too() -> None:
    seen = run_as_ordinary_user(HERE / "plain_ordinary_user.py")
    if seen["posture"] != "landlock":
        lacking("landlock", f"no plain processes here: {seen['missing']}")
    scoped = "landlock-scopes" in seen["layers"]

    assert "own-uid" not in seen["layers"]
    assert seen["reasons"] == ["exit", "exit"]
    assert [said[0] for said in seen["said"]] == [str(seen["uid"])] * 2
    assert [said[2:] for said in seen["said"]] == [["no"] * (1 + scoped)] * 2
    assert seen["left"] == []


FINE: dict[str, Any] = {
    "uids": [61001], "capabilities": 0, "no_new_privileges": 1, "seccomp": 2, "new_user_namespace": "EPERM",
    "readable": [], "writable": [], "workspace_writable": True, "sockets": [], "descriptors": [0, 1, 2, 3],
    "limits": {"RLIMIT_NPROC": 17, "RLIMIT_DATA": 128 << 20, "RLIMIT_FSIZE": 64 << 20, "RLIMIT_RTPRIO": 0,
               "RLIMIT_NICE": 0, "RLIMIT_CORE": 0},
}  # fmt: skip


def test_a_plain_process_that_stands_as_it_should_has_no_faults() -> None:
    assert plain_faults_of(FINE, gateway_uid=0, alone=True) == {}
    ours = {**FINE, "uids": [1000], "limits": {**FINE["limits"], "RLIMIT_NPROC": 250}}
    assert plain_faults_of(ours, gateway_uid=1000, alone=False) == {}


@pytest.mark.parametrize(
    ("fact", "value", "layer"),
    [
        ("uids", [0], "own-uid"), ("uids", [0, 61001], "own-uid"), ("capabilities", 1, "capabilities"),
        ("capabilities", -1, "capabilities"), ("no_new_privileges", 0, "no-new-privileges"), ("seccomp", 0, "seccomp"),
        ("new_user_namespace", "allowed", "seccomp"), ("readable", ["/etc/passwd"], "landlock-files"),
        ("writable", ["/tmp"], "landlock-files"), ("workspace_writable", False, "workspace"),
        ("sockets", ["AF_UNIX"], "no-sockets"), ("descriptors", [0, 1, 2, 3, 4], "descriptors"),
        ("limits", {**FINE["limits"], "RLIMIT_NPROC": 400}, "rlimits"),
        ("limits", {**FINE["limits"], "RLIMIT_NPROC": -1}, "rlimits"),
        ("limits", {**FINE["limits"], "RLIMIT_DATA": -1}, "rlimits"),
        ("limits", {**FINE["limits"], "RLIMIT_NICE": 20}, "rlimits"),
    ],
)  # fmt: skip
def test_a_plain_process_with_a_hole_is_seen_from_inside(fact: str, value: object, layer: str) -> None:
    assert set(plain_faults_of({**FINE, fact: value}, gateway_uid=0, alone=True)) == {layer}


async def test_what_waits_in_sockets_of_the_host_is_not_a_jobs_memory(sandbox: BubblewrapSandbox) -> None:
    """Its network is the host's: with so many sockets of others there, each as full as it may be."""
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            for end in socket.socketpair():
                stack.enter_context(end)
        end_of_job = await sandbox.run(python("import time; time.sleep(1)", limits=limits(memory_mib=32)))

    assert end_of_job.reason == "exit", end_of_job
