"""Process 1 of a cell: finishes the wall from the inside, runs one job, and says how it ended.

It holds capabilities only in the cell's own user namespace, and only until `_build_wall` has used them for what
bubblewrap cannot say. It lives as long as the gateway's end of the control socket: when that closes, also in the
middle of a job, every process of the cell dies with it. Standard library only; `python3 -I -S -B init.py`.

Descriptors on entry: 0, 1, 2 of the job; 3 the control socket; 4 the pipe for what a function returns.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import select
import signal
import socket
import sys
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import kernel
import seccomp
import wire
import worker

CONTROL_FD = 3
RESULT_FD = 4
WORKSPACE = "/workspace"
EXIT_NOT_STARTED = 127
_RUN_AS_USUAL = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGINT)  # Python or we changed these

Frame = dict[str, Any]


def main() -> int:
    """Build the wall, wait for the job, run it, report, and wait to be released."""
    # Signals from inside a namespace reach its process 1 only where it has a handler: Python's own for SIGINT must go.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(CONTROL_FD, False)
    os.set_inheritable(RESULT_FD, False)
    control = socket.socket(fileno=CONTROL_FD)
    try:
        setup = wire.receive(control)
        try:
            layers = _build_wall(setup)
        except (OSError, ValueError) as error:
            wire.send(control, {"kind": "failed", "what": str(error)})
            return EXIT_NOT_STARTED
        wire.send(control, {"kind": "ready", "layers": layers})
        _run_one_job(control, setup)
        control.recv(1)  # the gateway reads out/ through the descriptor it was given, then closes
    except (wire.Gone, BrokenPipeError, ConnectionResetError):
        return 0
    return 0


def _build_wall(setup: Frame) -> list[str]:
    """Do what needs a capability, then give all of them up for good. Returns the layers now in force."""
    layers = []
    for path in setup["tmpfs"]:
        options = f"size={setup['disk_bytes']},nr_inodes={setup['inodes']}"
        kernel.mount("tmpfs", path, "tmpfs", kernel.MS_REMOUNT | kernel.MS_NOSUID | kernel.MS_NODEV, options)
    layers.append("tmpfs-limits")
    if setup["proc"]:
        _write("/proc/sys/user/max_user_namespaces", "0")
        layers.append("userns-limit")
    kernel.drop_capabilities()
    kernel.set_no_new_privileges()
    kernel.set_dumpable(False)
    kernel.install_filter(
        seccomp.build_filter(platform.machine(), unix_sockets=setup["unix_sockets"], count_memory=setup["count_memory"])
    )
    return [*layers, "capabilities", "no-new-privileges", "seccomp"]


def _run_one_job(control: socket.socket, setup: Frame) -> None:
    job = wire.receive(control)
    for file in job["files"]:
        _place_file(control, file["path"], file["size"])
    wakeups = _wake_on_child_end()
    refused, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(refused)
        _become_job(job, setup, tell)
    os.close(tell)
    os.close(RESULT_FD)
    status, usage = _wait_for_end(control, wakeups, child)
    with open(refused, "rb") as pipe:
        why_not = pipe.read(4096).decode(errors="replace")
    end = {"kind": "ended", "status": status, "not_started": why_not, "full": _full_places(setup["tmpfs"]), **usage}
    exported = _open_out() if job["exports"] else None
    wire.send(control, {**end, "exported": exported is not None}, (exported,) if exported is not None else ())


def _wake_on_child_end() -> int:
    """Return a descriptor that becomes readable whenever a child ends."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return reader


def _wait_for_end(control: socket.socket, wakeups: int, child: int) -> tuple[int, Frame]:
    """Reap until *child* has ended, kill whatever else lives, and return its status and what all of them used.

    Raises:
        Gone: the gateway wants no more of this job (it closed the socket, or sent anything at all).
    """
    status = None
    while status is None:
        readable, _, _ = select.select([CONTROL_FD, wakeups], [], [])
        if CONTROL_FD in readable:
            _kill_everything()
            raise wire.Gone
        with contextlib.suppress(BlockingIOError):
            os.read(wakeups, 4096)
        status = _reap(child, os.WNOHANG)
    _kill_everything()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return status, {"cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}


def _reap(child: int, options: int) -> int | None:
    """Reap all that have ended; return the status of *child* if it was among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, options)
            if pid == 0:
                break
            if pid == child:
                found = status
    return found


def _kill_everything() -> None:
    """Kill every process of this pid namespace but us, and wait until none is left. SIGSTOP does not help."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    _reap(-1, 0)


def _become_job(job: Frame, setup: Frame, tell: int) -> None:
    """In the forked child: limits, a clean state, then the command or the function. Never returns."""
    try:
        os.set_inheritable(tell, False)
        os.close(CONTROL_FD)
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in _RUN_AS_USUAL:
            signal.signal(number, signal.SIG_DFL)
        kernel.set_dumpable(True)  # ordinary programs look at their own /proc entries
        if setup["proc"]:
            _write("/proc/self/oom_score_adj", "1000")  # if memory runs out, the job goes and not process 1
        _set_limits(job["rlimits"])
        os.environ.clear()
        os.environ.update(job["environment"])
        os.chdir(WORKSPACE)
        if job["function"]:
            os.closerange(RESULT_FD + 1, tell + 1)  # the ends of our own pipes; nothing is open above the last of them
            os._exit(worker.run(job["function"], job["arguments"], RESULT_FD))
        os.execvpe(job["argv"][0], job["argv"], job["environment"])
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(tell, f"{type(error).__name__}: {error}".encode()[:4000])
    os._exit(EXIT_NOT_STARTED)


def _set_limits(rlimits: dict[str, list[int]]) -> None:
    for name, (soft, hard) in rlimits.items():
        number = getattr(resource, name)
        _, highest = resource.getrlimit(number)
        ceiling = hard if highest == resource.RLIM_INFINITY else min(hard, highest)
        resource.setrlimit(number, (min(soft, ceiling), ceiling))


def _place_file(control: socket.socket, path: str, size: int) -> None:
    """Write one input file beneath the workspace; nothing has run here yet, so no link can be in the way."""
    target = os.path.join(WORKSPACE, path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        wire.copy_to_file(control, descriptor, size)
    finally:
        os.close(descriptor)


def _full_places(places: list[str]) -> list[str]:
    """Return those of *places* that have no block or no inode left."""
    full = []
    for place in places:
        facts = os.statvfs(place)
        if facts.f_bavail == 0 or facts.f_ffree == 0:
            full.append(place)
    return full


def _open_out() -> int | None:
    try:
        return os.open(f"{WORKSPACE}/out", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None  # the job left no such directory


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    # _exit: an orderly end of the interpreter has nothing to do here, and process 1 must not fail on the way out.
    os._exit(main())
