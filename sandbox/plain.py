"""Where no namespaces can be had: runs one job as a plain process tree under Landlock and the system call filter.

The counterpart of `init.py`, with the same frames, for profiles that say `posture = "landlock"`. It is weaker than a
cell, and `NOT_STOPPED` says where. This process supervises: whatever the job leaves behind becomes its child, and it
kills until it has none. It lives as long as the gateway's end of either socket, and SIGTERM ends it in the same way;
SIGKILL leaves grandchildren alive. Standard library only; `python3 -I -S -B plain.py`.

Descriptors on entry: 0, 1 nothing; 2 for last words; 3 the control socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import jobs
import kernel
import landlock
import seccomp
import wire
import worker

POSTURE = "landlock"
NOT_STOPPED = (
    "It is the host's own process table and root directory: whether a process or a file exists, how large a file is, "
    "who owns it and when it is used can be seen, though not what is in it.",
    "Modes, owners, times and extended attributes of files of the job's own user can be changed wherever they are: "
    "Landlock does not rule them.",
    "Memory is limited for each process (RLIMIT_DATA) and watched for all; disk use of the workspace is only watched.",
    "Jobs that run as the gateway's own user can change priority and processor of that user's other processes, and "
    "before Landlock 6 (Linux 6.12) also signal them, this supervisor included. Their limit of processes counts on top "
    "of what the user runs at the start.",
    "If this supervisor is killed, grandchildren of the job run on.",
    "Before Landlock 3 (Linux 6.2) files of the job's own user can be truncated wherever they are.",
    "What is missing: the network, also through the gateway; sockets with a name; /tmp, /dev/shm, /proc and most of "
    "/etc, so semaphores of multiprocessing fail, and programs for which a closed file is worse than a missing one; "
    "before Landlock 2 (5.19) moves from one directory to another. HOME and TMPDIR are the workspace, at its place on "
    "the host.",
)

CONTROL_FD = 3
_HERE = os.path.dirname(os.path.abspath(__file__))
_DESCRIPTORS_OF_AN_ORDER = 4
_RESULT = 3  # where a function writes what it returns, after 0, 1, 2
_FREE = 10  # descriptors wait at this number and above
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SETTINGS = (
    "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives",
    "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf",  # node ends where it may not read a file that is there
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_OWN_VARIABLES = {"GIT_CONFIG_NOSYSTEM": "1"}  # so does git
_NEVER = {"RLIMIT_RTPRIO": [0, 0], "RLIMIT_NICE": [0, 0], "RLIMIT_CORE": [0, 0]}
_LOOK_AGAIN_S = 0.002

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4

Frame = dict[str, Any]


def main() -> None:
    """Say that we are here, take the one job, run it, end with everything that it started.

    The setup frame: `workspace`, a private directory made by the caller; `read`, `write`, `execute`, host paths besides
    the system's; `alone`, whether no other process runs as our user.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(CONTROL_FD, False)
    control = socket.socket(fileno=CONTROL_FD)
    with contextlib.suppress(wire.Gone, OSError):
        setup = wire.receive(control)
        wire.send(control, {"kind": "ready"})
        _, descriptors = wire.receive_with(control, 1)
        _serve_one_job(socket.socket(fileno=descriptors[0]), setup)


def _serve_one_job(channel: socket.socket, setup: Frame) -> None:
    wire.send(channel, {"kind": "ready"})
    order, given = wire.receive_with(channel, _DESCRIPTORS_OF_AN_ORDER)
    try:
        layers, kept_in = _seal(setup, order)
    except (OSError, ValueError) as error:
        wire.send(channel, {"kind": "failed", "what": str(error)})
        return
    try:
        signal.signal(signal.SIGTERM, _told_to_end)
        end = _run_one_job(channel, setup, order, given)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        kill_descendants(at_once=kept_in or setup["alone"])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    usage = {"cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}
    exported = _open_out(setup["workspace"]) if order["exports"] else None
    wire.send(
        channel,
        {"kind": "ended", **end, **usage, "layers": layers, "posture": POSTURE, "full": [],
         "exported": exported is not None},
        (exported,) if exported is not None else (),
    )  # fmt: skip
    channel.recv(1)  # the gateway reads out/ through the descriptor it was given, then closes


def _seal(setup: Frame, order: Frame) -> tuple[list[str], bool]:
    """Give up what the supervisor must not have. Returns the layers of the job, and whether signals stay inside.

    Raises:
        ValueError: this process or this machine is not fit for it, or the job asks for what cannot be had.
        OSError: a system call failed.
    """
    if 0 in os.getresuid():
        raise ValueError("a plain process is never started as root")
    if landlock.abi() == 0:
        raise ValueError("the kernel has no Landlock")
    if order["listen"]:
        raise ValueError("a plain process has no network")
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    kernel.drop_capabilities()
    kernel.set_no_new_privileges()
    kernel.set_dumpable(False)
    kept_in = landlock.keep_signals_in()
    # count_memory also keeps it from the host's SysV objects and message queues
    program = seccomp.build_filter(os.uname().machine, unix_sockets=False, count_memory=True, sockets=False)
    kernel.install_filter(program)
    layers = [*landlock.layers(network=False), "capabilities", "no-new-privileges", "seccomp", "no-sockets", "rlimits"]
    return layers, kept_in


def _told_to_end(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise wire.Gone


def _run_one_job(channel: socket.socket, setup: Frame, order: Frame, given: list[int]) -> Frame:
    """Run it until its own process has ended; whatever else it started may still run.

    Raises:
        Gone: the gateway wants no more of it.
    """
    for file in order["files"]:
        _place_file(channel, os.path.join(setup["workspace"], file["path"]), file["size"])
    given, argv = _command(order, [_moved_up(descriptor) for descriptor in given])
    rlimits = {**order["rlimits"], **_NEVER}
    if not setup["alone"] and "RLIMIT_NPROC" in rlimits:
        rlimits["RLIMIT_NPROC"] = [limit + _tasks_of_our_user() for limit in rlimits["RLIMIT_NPROC"]]
    wakeups, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    refused, tell = os.pipe()
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        channel.close()
        os.close(refused)
        _become_job(setup, {**order, "rlimits": rlimits}, argv, [*given, _moved_up(tell)], supervisor)
    for descriptor in (*given, tell):
        os.close(descriptor)
    status = _wait_for_end(channel, wakeups, child)
    with open(refused, "rb") as pipe:
        return {"status": status, "not_started": pipe.read(4096).decode(errors="replace")}


def _command(order: Frame, given: list[int]) -> tuple[list[int], list[str]]:
    """Return the job's descriptors and what to exec; nothing for a function that may run in this interpreter."""
    if not order["function"]:
        os.close(given[_RESULT])
        return given[:_RESULT], order["argv"]
    if order["bundled"]:
        return given, []
    held = _moved_up(worker.hold(order["arguments"]))
    return [*given, held], worker.command(order["function"], arguments_fd=_RESULT + 1, result_fd=_RESULT)


def _moved_up(descriptor: int) -> int:
    """Move a descriptor above the numbers that the job's own will have."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FREE)
    os.close(descriptor)
    return moved


def _wait_for_end(channel: socket.socket, wakeups: int, child: int) -> int:
    status = None
    while status is None:
        readable, _, _ = select.select([channel.fileno(), wakeups], [], [])
        if channel.fileno() in readable:
            raise wire.Gone  # it closed the socket, or sent anything at all
        with contextlib.suppress(BlockingIOError):
            os.read(wakeups, 4096)
        status = jobs.reap(child, os.WNOHANG)
    return status


def _become_job(setup: Frame, order: Frame, argv: list[str], descriptors: list[int], supervisor: int) -> None:
    """In the forked child: limits, a clean state, Landlock, then the command or the function. Never returns."""
    tell, workspace = descriptors.pop(), setup["workspace"]
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(jobs.EXIT_NOT_STARTED)
        signal.set_wakeup_fd(-1)
        for changed in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(changed, signal.SIG_DFL)
        kernel.set_dumpable(True)  # core dumps are off, and ptrace is refused
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number, inheritable=True)
        os.closerange(len(descriptors), _FREE)
        environment = {**order["environment"], **_OWN_VARIABLES, "HOME": workspace, "TMPDIR": workspace}
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(workspace)
        for name, (soft, hard) in order["rlimits"].items():
            _set_limit(getattr(resource, name), soft, hard)
        _restrict(setup)
        if argv:
            os.execvpe(argv[0], argv, environment)
        os.set_inheritable(_RESULT, False)
        os.closerange(_FREE, max(*descriptors, tell) + 1)
        os._exit(worker.run(order["function"], order["arguments"], _RESULT))
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(tell, f"{type(error).__name__}: {error}".encode()[:4000])
    os._exit(jobs.EXIT_NOT_STARTED)


def _set_limit(number: int, soft: int, hard: int) -> None:
    _, highest = resource.getrlimit(number)
    ceiling = hard if highest == resource.RLIM_INFINITY else min(hard, highest)
    resource.setrlimit(number, (min(soft, ceiling), ceiling))


def _place_file(channel: socket.socket, target: str, size: int) -> None:
    """Write one input file; nothing has run here yet, so no link can be in the way."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        wire.copy_to_file(channel, descriptor, size)
    finally:
        os.close(descriptor)


def _restrict(setup: Frame) -> None:
    programs = [*_SYSTEM, sys.base_prefix, sys.base_exec_prefix, _HERE]
    landlock.restrict(
        [*programs, *_SETTINGS, *setup["read"]],
        [setup["workspace"], *_DEVICES, *setup["write"]],
        [*programs, setup["workspace"], *setup["execute"]],
        network=False,
    )


def kill_descendants(*, at_once: bool) -> None:
    """Kill and reap until we have no child; what lost its parent became ours.

    Args:
        at_once: no signal of ours reaches a process that is not ours, so all can be killed with one call.
    """
    while _reap_has_more():
        if at_once:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        for pid in _descendants():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_AGAIN_S)


def _reap_has_more() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _descendants() -> set[int]:
    parents = {pid: parent for pid, parent in map(_parent_of, _process_numbers()) if parent}
    found = {os.getpid()}
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return found - {os.getpid()}
        found |= more


def _process_numbers() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _parent_of(pid: int) -> tuple[int, int]:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return pid, int(file.read().rpartition(b") ")[2].split()[1])
    except OSError:
        return pid, 0  # it has ended meanwhile


def _tasks_of_our_user() -> int:
    count = 0
    for pid in _process_numbers():
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{pid}/task"))
    return count


def _open_out(workspace: str) -> int | None:
    try:
        return os.open(f"{workspace}/out", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None  # the job left no such directory


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


if __name__ == "__main__":
    try:
        main()
    finally:
        os._exit(0)
