"""Attempts to see, reach or change what is on the other side of the wall; with controls that show the probes bite."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_mcp.contracts.sandbox import Job
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from omni_mcp.engines.sandbox.profiles import Profile
from omni_mcp.engines.sandbox.uids import DEFAULT_RANGE
from tests.sandbox.conftest import Opener, in_python, in_shell, lacking, outside, usable

pytestmark = pytest.mark.sandbox


async def said_inside(sandbox: BubblewrapSandbox, code: str) -> str:
    end = await sandbox.run(in_python(code))
    assert end.reason == "exit", (end.reason, end.message, end.stderr)
    return (end.stdout or end.stderr).decode().strip()


async def test_a_file_of_the_host_is_not_there(sandbox: BubblewrapSandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    probe = f"print(open({str(secret)!r}).read())"

    assert outside(probe) == "the host's"
    assert "FileNotFoundError" in await said_inside(sandbox, probe)


async def test_the_home_directory_holds_nothing_but_the_way_to_the_interpreter(sandbox: BubblewrapSandbox) -> None:
    probe = "import os; print(sorted(os.listdir(%r)) if os.path.isdir(%r) else [])"
    home = os.path.realpath(Path.home())
    inside = await said_inside(sandbox, probe % (home, home))

    assert set(json.loads(inside.replace("'", '"'))) <= {".pyenv", ".local", "miniconda3", ".asdf", ".nix-profile"}


async def test_nothing_of_the_root_can_be_written(sandbox: BubblewrapSandbox) -> None:
    probe = """
import os
for place in ("/", "/usr", "/etc", "/dev", "/sandbox", "/proc/sys/kernel", os.path.dirname(os.sys.executable)):
    try:
        open(place + "/canary", "w").close(); print("wrote", place)
    except OSError: pass
for name in ("/etc/passwd", "/sandbox/init.py", "/usr/bin/env"):
    try:
        open(name, "a").close(); print("opened", name)
    except OSError: pass
print("done")
"""
    assert await said_inside(sandbox, probe) == "done"


async def test_the_kernels_core_pattern_cannot_be_opened_for_writing(sandbox: BubblewrapSandbox) -> None:
    """Root that has no capability left can still write it: the reason why no job has uid 0."""
    probe = "import os; os.close(os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY)); print('opened')"

    if os.geteuid() == 0:
        assert outside(probe) == "opened"
    assert "opened" not in await said_inside(sandbox, probe)


async def hosts_users_of(sandbox: BubblewrapSandbox, *profiles: str) -> list[int]:
    """Run a job of each profile at the same time and return whom the host sees running them."""
    marks = [f"mark-{os.urandom(8).hex()}" for _ in profiles]
    commands = [(name, ("/bin/sh", "-c", "sleep 30 & wait", mark)) for name, mark in zip(profiles, marks, strict=True)]
    running = [asyncio.ensure_future(sandbox.run(Job(profile=name, argv=argv))) for name, argv in commands]
    try:
        return await asyncio.to_thread(lambda: [user_of(mark) for mark in marks])
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def user_of(mark: str) -> int:
    """Return the uid of the process with *mark* on its command line, as soon as there is one."""
    for _ in range(2000):
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark.encode() in (entry / "cmdline").read_bytes():
                    return entry.stat().st_uid
            except OSError:
                continue
        time.sleep(0.005)
    raise AssertionError(f"no process with {mark}")


async def test_a_job_is_never_the_hosts_root(sandbox: BubblewrapSandbox) -> None:
    inside, _, count = (await said_inside(sandbox, "print(open('/proc/self/uid_map').read())")).split()
    (user,) = await hosts_users_of(sandbox, "shell")

    assert (inside, count) == ("1000", "1")
    assert user in DEFAULT_RANGE if os.geteuid() == 0 else user == os.geteuid()


async def test_jobs_of_two_profiles_at_once_are_two_users(sandbox: BubblewrapSandbox) -> None:
    if os.geteuid() != 0:
        pytest.skip("an ordinary user has one uid")

    assert len(set(await hosts_users_of(sandbox, "shell", "python"))) == 2


async def test_no_variable_of_the_gateways_environment_is_to_be_found(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bubblewrap is process 1 unless told otherwise, and /proc/1/environ would show what it was started with."""
    monkeypatch.setenv("OMNI_TRIAL_SECRET", "hidden-value-7731")
    probe = """
import glob, os
found = [dict(os.environ)]
for name in glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline"):
    try: found.append(open(name, "rb").read())
    except OSError: pass
print("hidden-value-" + "7731" in str(found), len(found) > 1)
"""
    assert outside(probe, env={"OMNI_TRIAL_SECRET": "hidden-value-7731"}) == "True True"
    async with opened() as sandbox:
        assert await said_inside(usable(sandbox), probe) == "False True"


async def test_process_1_can_be_neither_read_nor_written(sandbox: BubblewrapSandbox) -> None:
    probe = """
import os
opened = []
for name in ("environ", "mem", "maps", "fd", "root", "cwd", "exe", "auxv"):
    try: os.close(os.open(f"/proc/{PID}/{name}", os.O_RDWR if name == "mem" else 0)); opened.append(name)
    except OSError: pass
print(opened)
"""
    assert "mem" in outside(probe.replace("{PID}", "self"))
    assert await said_inside(sandbox, probe.replace("{PID}", "1")) == "[]"


async def test_only_the_cells_own_processes_are_seen(sandbox: BubblewrapSandbox) -> None:
    probe = "import os; print(sorted(int(n) for n in os.listdir('/proc') if n.isdigit()), os.getpid())"
    listed, _, own = (await said_inside(sandbox, probe)).rpartition(" ")

    assert json.loads(listed) == [1, int(own)]


async def test_descriptors_that_the_gateway_leaks_do_not_arrive(opened: Opener, tmp_path: Path) -> None:
    """A directory descriptor would be a way out of the root."""
    leaked = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leaked, True)
    probe = """
import os
found = []
for number in range(3, 1024):
    try: found.append(os.readlink(f"/proc/self/fd/{number}"))
    except OSError: pass
print(found)
"""
    try:
        assert str(tmp_path) in outside(probe, close_fds=False)
        async with opened() as sandbox:
            seen = await said_inside(usable(sandbox), probe)
            assert seen == "[]"
    finally:
        os.close(leaked)


@pytest.fixture
def loopback() -> Iterator[tuple[int, str, list[str]]]:
    """Listeners of the host: a TCP port of its loopback and an abstract unix socket; and who came."""
    came: list[str] = []
    tcp = socket.create_server(("127.0.0.1", 0))
    name = f"omni-trial-{os.getpid()}"
    unix = socket.socket(socket.AF_UNIX)
    unix.bind("\0" + name)
    unix.listen()

    def accept(listener: socket.socket, label: str) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            came.append(label)
            peer.close()

    threads = [threading.Thread(target=accept, args=(tcp, "tcp")), threading.Thread(target=accept, args=(unix, "unix"))]
    for thread in threads:
        thread.start()
    yield tcp.getsockname()[1], name, came
    for listener in (tcp, unix):
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join()


async def test_the_hosts_network_is_out_of_reach(opened: Opener, loopback: tuple[int, str, list[str]]) -> None:
    """With unix sockets allowed, so that it is the network namespace that is tried and not the system call filter."""
    port, name, came = loopback
    probe = f"""
import socket
for family, address in ((socket.AF_INET, ("127.0.0.1", {port})), (socket.AF_UNIX, "\\0{name}")):
    try:
        s = socket.socket(family); s.settimeout(5); s.connect(address); s.recv(1); print("reached", family.name)
    except OSError as error: print(type(error).__name__)
"""
    assert outside(probe).count("reached") == 2
    assert sorted(came) == ["tcp", "unix"]
    open_profile = Profile(profile=1, description="With unix sockets.", unix_sockets=True)
    async with opened(profiles={"python": open_profile}) as sandbox:
        said = await said_inside(usable(sandbox), probe)

    assert "reached" not in said
    assert sorted(came) == ["tcp", "unix"]


async def test_no_address_outside_can_be_reached_or_resolved(sandbox: BubblewrapSandbox) -> None:
    probe = """
import errno, socket
print([name for _, name in socket.if_nameindex()])
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    try: socket.socket(socket.AF_INET, kind).connect(("192.0.2.1", 53)); print("reached")
    except OSError as error: print(errno.errorcode[error.errno])
try: print(socket.getaddrinfo("example.com", 80))
except OSError as error: print("unresolved")
"""
    assert (await said_inside(sandbox, probe)).split("\n") == ["['lo']", "ENETUNREACH", "ENETUNREACH", "unresolved"]


async def test_a_job_has_a_loopback_of_its_own(sandbox: BubblewrapSandbox) -> None:
    """A control: ordinary use works."""
    probe = """
import socket
server = socket.create_server(("127.0.0.1", 0)); client = socket.create_connection(server.getsockname())
peer, _ = server.accept(); peer.sendall(b"hello"); print(client.recv(5).decode())
"""
    assert await said_inside(sandbox, probe) == "hello"


async def test_ordinary_programs_work(sandbox: BubblewrapSandbox) -> None:
    """A control: threads, processes, pipes, temporary files, locks and asyncio are all there."""
    probe = """
import asyncio, json, multiprocessing, os, sqlite3, subprocess, tempfile, threading
multiprocessing.set_start_method("fork")
queue = multiprocessing.Queue(); child = multiprocessing.Process(target=queue.put, args=(1,)); child.start()
assert queue.get() == 1; child.join()
out = subprocess.run(["/bin/sh", "-c", "echo hi | tr h j"], capture_output=True, text=True, check=True).stdout
thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
with tempfile.NamedTemporaryFile() as file: file.write(b"x")
async def main():
    child = await asyncio.create_subprocess_exec("/bin/true"); return await child.wait()
base = sqlite3.connect("base.db"); base.execute("create table t(x)"); base.commit()
print(out.strip(), asyncio.run(main()), os.getuid())
"""
    assert await said_inside(sandbox, probe) == "ji 0 1000"


_CALLS = """
import ctypes, errno, mmap, os, struct
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]
"""

# name: (number on x86_64, number on aarch64, arguments that a call without a filter would not refuse with EPERM)
_REFUSED_CALLS = {
    "unshare(CLONE_NEWUSER)": (272, 97, "0x10000000"),
    "setns": (308, 268, "-1, 0"),
    "mount": (165, 40, "0, 0, 0, 0, 0"),
    "fsopen": (430, 430, "0, 0"),
    "open_tree": (428, 428, "-1, 0, 0"),
    "pivot_root": (155, 41, "0, 0"),
    "chroot": (161, 51, "0"),
    "ptrace": (101, 117, "0x4200, -1, 0, 0"),
    "process_vm_readv": (310, 270, "-1, 0, 0, 0, 0, 0"),
    "pidfd_getfd": (438, 438, "-1, 0, 0"),
    "kcmp": (312, 272, "-1, -1, 0, 0, 0"),
    "keyctl": (250, 219, "0, -3, 0"),
    "add_key": (248, 217, "0, 0, 0, 0, 0"),
    "bpf": (321, 280, "0, 0, 0"),
    "perf_event_open": (298, 241, "0, 0, 0, -1, 0"),
    "userfaultfd": (323, 282, "1"),
    "io_uring_setup": (425, 425, "1, 0"),
    "open_by_handle_at": (304, 265, "-1, 0, 0"),
    "fanotify_init": (300, 262, "0, 0"),
    "memfd_secret": (447, 447, "0"),
    "personality": (135, 92, "0x0040000"),
    "syslog": (103, 116, "3, 0, 0"),
    "finit_module": (313, 273, "-1, 0, 0"),
    "kexec_load": (246, 104, "0, 0, 0, 0"),
    "clock_settime": (227, 112, "0, 0"),
    "quotactl": (179, 60, "0, 0, 0, 0"),
}


async def test_dangerous_system_calls_are_refused_by_the_filter(sandbox: BubblewrapSandbox) -> None:
    column = 0 if platform.machine() == "x86_64" else 1
    lines = [f"print({name!r}, call({numbers[column]}, {numbers[2]}))" for name, numbers in _REFUSED_CALLS.items()]
    said = await said_inside(sandbox, _CALLS + "\n".join(lines))

    assert said.split("\n") == [f"{name} EPERM" for name in _REFUSED_CALLS]


def test_outside_the_wall_the_same_calls_are_not_refused() -> None:
    """The control, with those whose effect ends with the process that makes them."""
    column = 0 if platform.machine() == "x86_64" else 1
    harmless = (
        "fsopen",
        "open_tree",
        "ptrace",
        "pidfd_getfd",
        "io_uring_setup",
        "personality",
        "unshare(CLONE_NEWUSER)",
    )
    lines = [f"print(call({_REFUSED_CALLS[name][column]}, {_REFUSED_CALLS[name][2]}))" for name in harmless]
    if os.geteuid() != 0:
        lacking("root", "an ordinary user's control differs from kernel to kernel")

    assert "EPERM" not in outside(_CALLS + "\n".join(lines))


async def test_clone_with_a_namespace_is_refused_and_clone3_does_not_exist(sandbox: BubblewrapSandbox) -> None:
    column = 0 if platform.machine() == "x86_64" else 1
    probe = f"print(call({(56, 220)[column]}, 0x10000011, 0, 0, 0, 0), call(435, 0, 0), call(999, 0), call(463, 0))"

    assert await said_inside(sandbox, _CALLS + probe) == "EPERM ENOSYS ENOSYS ENOSYS"


async def test_only_internet_routing_and_unix_sockets_can_be_made(sandbox: BubblewrapSandbox) -> None:
    probe = """
import errno, socket
for name, family, kind, protocol in (
        ("inet", 2, 1, 0), ("inet6", 10, 2, 0), ("route", 16, 3, 0), ("unix", 1, 1, 0), ("audit", 16, 3, 9),
        ("packet", 17, 3, 0), ("alg", 38, 5, 0), ("vsock", 40, 1, 0), ("bluetooth", 31, 3, 1), ("can", 29, 3, 1)):
    try: socket.socket(family, kind, protocol).close(); print(name, "made")
    except OSError as error: print(name, errno.errorcode[error.errno])
a, b = socket.socketpair(); print("pair made")
"""
    said = dict(line.split() for line in (await said_inside(sandbox, probe)).split("\n"))
    made = {name for name, answer in said.items() if answer == "made"}

    assert made == {"inet", "inet6", "route", "pair", "unix"}
    assert {said[name] for name in said.keys() - made} == {"EAFNOSUPPORT"}


_FOREIGN = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid of i386); int 0x80; ret
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))() > 0)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="i386 calls exist on x86_64 only")
async def test_a_call_of_a_foreign_architecture_kills_and_an_x32_call_does_not_exist(
    sandbox: BubblewrapSandbox,
) -> None:
    assert outside(_FOREIGN) == "True"

    end = await sandbox.run(in_python(_FOREIGN))

    assert (end.reason, end.signal, end.stdout) == ("policy", 31, b"")
    assert await said_inside(sandbox, _CALLS + "print(call(0x40000000 | 39))") == "ENOSYS"


async def test_no_user_namespace_can_be_made_even_by_a_program_that_is_made_for_it(sandbox: BubblewrapSandbox) -> None:
    end = await sandbox.run(in_shell("unshare --user --map-root-user true; cat /proc/sys/user/max_user_namespaces"))

    assert b"unshare" in end.stderr
    assert end.stdout == b"0\n"


async def test_all_capabilities_are_gone_for_good(sandbox: BubblewrapSandbox) -> None:
    said = await said_inside(
        sandbox, "print(*[l.strip() for l in open('/proc/self/status') if l[:3] in ('Cap', 'NoN', 'Sec')], sep='\\n')"
    )
    facts = dict(line.split(":\t") for line in said.split("\n"))

    assert {name: facts[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == dict.fromkeys(
        ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0" * 16
    )
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")


async def test_terminal_input_cannot_be_forged(sandbox: BubblewrapSandbox) -> None:
    column = 0 if platform.machine() == "x86_64" else 1
    assert (
        await said_inside(
            sandbox, _CALLS + f"print(call({(16, 29)[column]}, 0, 0x5412, 0), call({(16, 29)[column]}, 0, 0x541C, 0))"
        )
        == "EPERM EPERM"
    )


async def test_process_1_survives_every_signal_that_a_job_can_send(sandbox: BubblewrapSandbox) -> None:
    probe = """
import os, signal
for number in signal.valid_signals():
    try: os.kill(1, number)
    except OSError: pass
print("still here")
"""
    assert await said_inside(sandbox, probe) == "still here"


async def test_uncounted_memory_is_refused_where_no_cgroup_counts_it(each_sandbox: BubblewrapSandbox) -> None:
    column = 0 if platform.machine() == "x86_64" else 1
    probe = f"print(call({(319, 279)[column]}, b'm', 0), call({(29, 194)[column]}, 0, 4096, 0o1600))"

    counted = each_sandbox.isolation().posture == "full"
    assert await said_inside(each_sandbox, _CALLS + probe) == ("done done" if counted else "EPERM EPERM")


async def test_one_cell_leaves_nothing_for_the_next(sandbox: BubblewrapSandbox) -> None:
    await sandbox.run(in_shell("echo left > /tmp/note; echo left > /dev/shm/note; echo left > note"))
    end = await sandbox.run(in_shell("ls /tmp /dev/shm /workspace"))

    assert end.stdout == b"/dev/shm:\n\n/tmp:\n\n/workspace:\n"
