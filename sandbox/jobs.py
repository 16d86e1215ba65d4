"""Runs one job as a child of process 1: gives it descriptors and limits, reaps, kills the rest, says how it ended.

The gateway's end of the control socket is its life line: when that closes, also in the middle of a job, every process
of the cell dies. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
from typing import Any

import kernel
import wire
import worker

WORKSPACE = "/workspace"
EXIT_NOT_STARTED = 127
PROXY_PORT = 3128
PROXY_BACKLOG = 64
_STANDARD = 3  # descriptors 0, 1, 2
_RESULT = 3  # where a function writes what it returns; the order brings it after the three
_RUN_AS_USUAL = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)  # we changed these
_FREE = 10  # received descriptors are moved to this number and above

Frame = dict[str, Any]


def run_one_job(
    control: socket.socket,
    order: Frame,
    given: list[int],
    *,
    layers: list[str],
    places: list[str],
    oom_score: int | None,
) -> None:
    """Run what *order* says with the descriptors *given* (stdin, stdout, stderr, result), and report on *control*.

    Args:
        control: the socket to the gateway.
        order: see `omni_mcp/engines/sandbox/jobrun.py`, `_order`.
        given: this process's copies, closed here.
        layers: what is in force, for the report.
        places: the directories whose being full is reported.
        oom_score: from `open_oom_score`.

    Raises:
        Gone: the gateway wants no more of it.
    """
    for file in order["files"]:
        _place_file(control, file["path"], file["size"])
    if order["listen"]:
        _hand_out_listener(control)
    wakeups = _wake_on_child_end()
    end: Frame = {"kind": "ended", "status": 0, "not_started": "", "layers": layers}
    try:
        child = _start(control, order, given, oom_score)
    except (OSError, ValueError) as error:
        end["not_started"] = f"{type(error).__name__}: {error}"
    else:
        end.update(_wait_for_end(control, wakeups, child))
    end["full"] = _full_places(places)
    exported = _open_out() if order["exports"] else None
    wire.send(control, {**end, "exported": exported is not None}, (exported,) if exported is not None else ())


def _hand_out_listener(control: socket.socket) -> None:
    """Make the socket on which the gateway serves its proxy: only this cell can reach it, so it needs no password."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", PROXY_PORT))
        listener.listen(PROXY_BACKLOG)
        wire.send(control, {"kind": "listening"}, (listener.fileno(),))


def _wake_on_child_end() -> int:
    """Return a descriptor that becomes readable whenever a child ends."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return reader


def _wait_for_end(control: socket.socket, wakeups: int, child: int) -> Frame:
    """Reap until *child* has ended, kill whatever else lives, and return its status and what all of them used.

    Raises:
        Gone: the gateway wants no more of this job (it closed the socket, or sent anything at all).
    """
    status = None
    while status is None:
        readable, _, _ = select.select([control.fileno(), wakeups], [], [])
        if control.fileno() in readable:
            kill_everything()
            raise wire.Gone
        with contextlib.suppress(BlockingIOError):
            os.read(wakeups, 4096)
        status = reap(child, os.WNOHANG)
    kill_everything()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"status": status, "cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}


def reap(child: int, options: int) -> int | None:
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


def kill_everything() -> None:
    """Kill every process of this pid namespace but us, and wait until none is left. SIGSTOP does not help."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    reap(-1, 0)


def _start(control: socket.socket, order: Frame, given: list[int], oom_score: int | None) -> int:
    """Start the job and return its pid. The limits become our own too: nothing that we still do comes near them.

    A command, and a function that is not ours, is started as a program of its own without a copy of this process.
    """
    given = _moved_up(given)
    argv, held = _command(order)
    _set_limits(order["rlimits"])
    os.chdir(WORKSPACE)
    _be_first_to_go(oom_score, 1000)  # if memory runs out, the job goes, and not process 1
    if argv:
        child = _spawn(argv, order["environment"], [*given[:_STANDARD], *([given[_RESULT], held] if held else [])])
    else:
        child = os.fork()
        if child == 0:
            _become_function(control, order, given)
    _be_first_to_go(oom_score, 0)
    for descriptor in (*given, *([held] if held else [])):
        os.close(descriptor)
    return child


def _moved_up(descriptors: list[int]) -> list[int]:
    """Move *descriptors* above the numbers that they will have in the job."""
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FREE) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    return moved


def _command(order: Frame) -> tuple[list[str], int]:
    """Return what to start, and an open file with its arguments; nothing for a function that may run here."""
    if not order["function"]:
        return order["argv"], 0
    if order["bundled"]:
        return [], 0
    held = _moved_up([worker.hold(order["arguments"])])[0]
    return worker.command(order["function"], arguments_fd=_RESULT + 1, result_fd=_RESULT), held


def _spawn(argv: list[str], environment: dict[str, str], descriptors: list[int]) -> int:
    os.environ["PATH"] = environment.get("PATH", os.defpath)  # where the command is looked for
    return os.posix_spawnp(
        argv[0], argv, environment, setsid=True, setsigdef=_RUN_AS_USUAL,
        file_actions=[(os.POSIX_SPAWN_DUP2, descriptor, number) for number, descriptor in enumerate(descriptors)],
    )  # fmt: skip


def _become_function(control: socket.socket, order: Frame, given: list[int]) -> None:
    """In the forked child: a clean state, then the function. Never returns."""
    status = EXIT_NOT_STARTED
    try:
        control.close()
        os.setsid()
        signal.set_wakeup_fd(-1)
        for usual in _RUN_AS_USUAL:
            signal.signal(usual, signal.SIG_DFL)
        kernel.set_dumpable(True)  # ordinary programs look at their own /proc entries
        for number, descriptor in enumerate(given):
            os.dup2(descriptor, number, inheritable=number < _STANDARD)
        os.closerange(_RESULT + 1, max(given) + 256)
        os.environ.clear()
        os.environ.update(order["environment"])
        status = worker.run(order["function"], order["arguments"], _RESULT)
    finally:
        os._exit(status)


def open_oom_score() -> int | None:
    """Return a descriptor of our own score, as process 1 that nothing foreign has joined yet.

    It can be opened only while we are dumpable, and not once the wall stands.
    """
    kernel.set_dumpable(True)
    try:
        return os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return None  # there may be no /proc
    finally:
        kernel.set_dumpable(False)


def _be_first_to_go(oom_score: int | None, score: int) -> None:
    if oom_score is not None:
        os.pwrite(oom_score, b"%d" % score, 0)


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
