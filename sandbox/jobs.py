"""Runs one job as a child of process 1: gives it descriptors and limits, reaps, kills the rest, says how it ended.

The gateway's end of the control socket is its life line: when that closes, also in the middle of a job, every process
of the cell dies. `plain.py` runs its jobs through here too. Standard library only.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import fcntl
import gc
import importlib
import os
import resource
import select
import signal
from collections.abc import Callable

import ground
import kernel
import wire
import worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Frame = dict[str, Any]

WORKSPACE = "/workspace"
EXIT_NOT_STARTED = 127
_STANDARD = 3  # descriptors 0, 1, 2
_RESULT = 3  # where a function writes what it returns; the order brings it after the three
_RUN_AS_USUAL = tuple(
    map(int, (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM))
)  # we changed these
_CHILD_ENDED = int(signal.SIGCHLD)
_AS_USUAL = int(signal.SIG_DFL)
_handle: Callable[[int, Any], object] = importlib.import_module("_signal").signal  # `signal.signal` looks up enums
_FREE = 10  # received descriptors are moved to this number and above
WORDS_LIMIT_BYTES = 4096
_DUMPABLE, _NOT_DUMPABLE = (kernel.dumpable(True),), (kernel.dumpable(False),)


_inherited: dict[str, str] = {}


def inherit(environment: dict[str, str]) -> None:
    """Make *environment* that of this process and of its jobs: an order brings only what it adds."""
    os.environ.clear()
    os.environ.update(environment)
    _inherited.update(environment)


class NotStarted(Exception):
    """The job cannot be started as described; the text says why, for people."""


def run_one_job(
    control: _socket.socket,
    order: Frame,
    given: list[int],
    *,
    layers: list[str] | None = None,
    places: list[str],
    oom_score: int | None = None,
    wakeups: int | None = None,
    workspace: str = WORKSPACE,
    before_start: Callable[[], None] | None = None,
    kill: Callable[[], int] | None = None,
) -> None:
    """Run what *order* says with the descriptors *given* (stdin, stdout, stderr, result), and report on *control*.

    Args:
        control: the socket to the gateway.
        order: see `omni_mcp/engines/sandbox/jobrun.py`, `_order`.
        given: this process's copies, closed here.
        layers: what is in force, for the report; left out where it was said before.
        places: the directories whose being full is reported.
        oom_score: from `open_oom_score`.
        wakeups: from `wake_on_child_end`, where that was called ahead.
        workspace: the directory that the job starts in.
        before_start: what the job's own process does last before it becomes the job, limits included. Without it the
            limits become ours too, and a command is started without a copy of this process.
        kill: ends whatever the job has started, and returns how many that were; default: everything in this pid
            namespace but us.

    Raises:
        Gone: the gateway wants no more of it.
    """
    kill = kill or kill_everything
    ground.prepare(control, order, workspace)
    wakeups = wake_on_child_end() if wakeups is None else wakeups
    end: Frame = {"kind": "ended", "status": 0, "not_started": ""}
    if layers is not None:
        end["layers"] = layers
    try:
        child = _start(control, order, given, oom_score, workspace, before_start)
    except (NotStarted, OSError, ValueError) as error:
        end["not_started"] = str(error)
    else:
        end.update(_wait_for_end(control, wakeups, child, kill))
    ground.report(control, end, places, workspace if order["exports"] else None)


def wake_on_child_end() -> int:
    """Return a descriptor that becomes readable whenever a child ends."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _handle(_CHILD_ENDED, _note_nothing)
    return reader


def _note_nothing(number: int, frame: object) -> None:
    pass


def _wait_for_end(control: _socket.socket, wakeups: int, child: int, kill: Callable[[], int]) -> Frame:
    """Reap until *child* has ended, kill whatever else lives, and return its status and what all of them used.

    Raises:
        Gone: the gateway wants no more of this job (it closed the socket, or sent anything at all).
    """
    status = None
    news = select.poll()
    news.register(control, select.POLLIN)
    news.register(wakeups, select.POLLIN)
    while status is None:
        for descriptor, _ in news.poll():
            if descriptor != wakeups:
                kill()
                raise wire.Gone
        with contextlib.suppress(BlockingIOError):
            os.read(wakeups, 4096)
        status = reap(child, os.WNOHANG)
    left = kill()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "status": status, "left": left, "cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024,
    }  # fmt: skip


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


def kill_everything() -> int:
    """Kill every process of this pid namespace but us; returns how many there were when none is left.

    SIGSTOP does not help.
    """
    left = 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
            left += 1
    return left


def _start(
    control: _socket.socket,
    order: Frame,
    given: list[int],
    oom_score: int | None,
    workspace: str,
    before_start: Callable[[], None] | None,
) -> int:
    """Start the job and return its pid. A command, and a function that is not ours, becomes a program of its own.

    Raises:
        NotStarted, OSError, ValueError: it cannot be started.
    """
    argv, descriptors = command_and_descriptors(order, given, workspace)
    if before_start is None:
        set_limits(order["rlimits"])
        be_first_to_go(oom_score, 1000)  # if memory runs out, the job goes, and not process 1
        child = _spawn(argv, _environment_of(order), descriptors) if argv else os.fork()
        if child == 0:
            _become_job(control, order, argv, descriptors)
        be_first_to_go(oom_score, 0)
    else:
        child = _fork(control, order, argv, descriptors, before_start)
    for descriptor in descriptors:
        os.close(descriptor)
    return child


def command_and_descriptors(order: Frame, given: list[int], workspace: str) -> tuple[list[str], list[int]]:
    """Enter *workspace*, and return what to start (see `_command`) and the descriptors that it has from 0 on.

    Raises:
        OSError: there is no such directory, or no file for the arguments can be made.
    """
    given = _moved_up(given)
    argv, held = _command(order, workspace)
    os.chdir(workspace)
    if not argv:
        return argv, given
    for unused in given[_RESULT if not held else _RESULT + 1 :]:
        os.close(unused)
    return argv, [*given[:_STANDARD], *([given[_RESULT], held] if held else [])]


def _moved_up(descriptors: list[int]) -> list[int]:
    """Move *descriptors* above the numbers that they will have in the job."""
    if min(descriptors) > _RESULT + 1:
        return descriptors
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FREE) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    return moved


def _command(order: Frame, workspace: str) -> tuple[list[str], int]:
    """Return what to start, and an open file with its arguments; nothing for a function that may run here."""
    if not order["function"]:
        if not order["argv"][0]:
            raise NotStarted("there is no command '' in the cell")
        return order["argv"], 0
    if order["bundled"]:
        return [], 0
    place = "/tmp" if workspace == WORKSPACE else workspace  # a cell's workspace may be read-only
    held = _moved_up([worker.hold(order["arguments"], place)])[0]
    return worker.command(order["function"], arguments_fd=_RESULT + 1, result_fd=_RESULT), held


def _environment_of(order: Frame) -> dict[str, str]:
    return {**_inherited, **order["environment"]}


def _spawn(argv: list[str], environment: dict[str, str], descriptors: list[int]) -> int:
    if "/" not in argv[0]:
        os.environ["PATH"] = environment.get("PATH", os.defpath)  # where the command is looked for
    try:
        return os.posix_spawnp(
            argv[0], argv, environment, setsid=True, setsigdef=_RUN_AS_USUAL,
            file_actions=[(os.POSIX_SPAWN_DUP2, descriptor, number) for number, descriptor in enumerate(descriptors)],
        )  # fmt: skip
    except OSError as error:
        raise NotStarted(_why_not(argv[0], os.environ.get("PATH", ""), error)) from error


def _fork(
    control: _socket.socket, order: Frame, argv: list[str], descriptors: list[int], before_start: Callable[[], None]
) -> int:
    """Do as `_spawn`, with *before_start* in between; returns when the job's process is about to be the job."""
    refused, tell = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _become_job(control, order, argv, descriptors, before_start, tell)
    os.close(tell)
    with open(refused, "rb") as pipe:
        why = pipe.read(WORDS_LIMIT_BYTES).decode(errors="replace")
    if why:
        reap(child, 0)
        raise NotStarted(why)
    return child


def _become_job(
    control: _socket.socket,
    order: Frame,
    argv: list[str],
    descriptors: list[int],
    before_start: Callable[[], None] | None = None,
    tell: int | None = None,
) -> None:
    """In the forked child: as `become`, from process 1's state."""
    try:
        control.close()
        leave_process_1()
        become(order, argv, descriptors, tell, before_start)
    finally:
        os._exit(EXIT_NOT_STARTED)


def leave_process_1() -> None:
    """In a fork of process 1: a session of its own, and signals and /proc entries as any program expects them."""
    os.setsid()
    kernel.carry_out(_DUMPABLE)
    signal.set_wakeup_fd(-1)
    for usual in _RUN_AS_USUAL:
        _handle(usual, _AS_USUAL)


def become(
    order: Frame,
    argv: list[str],
    descriptors: list[int],
    tell: int | None,
    before_start: Callable[[], None] | None,
    done: int | None = None,
    at_the_end: Callable[[int, int], None] | None = None,
) -> None:
    """Be the command or the function; *tell* is told why it cannot be. Never returns.

    A function that has returned calls *at_the_end* with *done*, which stays open until then, and with its exit code.
    """
    status = EXIT_NOT_STARTED
    try:
        tell = fcntl.fcntl(tell, fcntl.F_DUPFD_CLOEXEC, _FREE) if tell is not None else None
        done = fcntl.fcntl(done, fcntl.F_DUPFD_CLOEXEC, _FREE) if done is not None else None
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number, inheritable=bool(argv) or number < _STANDARD)
        gc.enable()
        if order["environment"]:
            environment = _environment_of(order)
            os.environ.clear()
            os.environ.update(environment)
        if before_start is not None:
            before_start()
        if argv:
            os.execvpe(argv[0], argv, os.environ)
        last = _RESULT if done is None else os.dup2(done, _RESULT + 1, inheritable=False)
        os.closerange(last + 1, max(*descriptors, tell or 0, done or 0) + 256)
        status = worker.run(order["function"], order["arguments"], _RESULT)
        if at_the_end is not None:
            at_the_end(last, status)
    except Exception as error:
        if tell is not None:
            os.write(tell, _why_not(argv[0] if argv else "", os.environ.get("PATH", ""), error).encode())
    finally:
        os._exit(status)


def _why_not(command: str, path: str, error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOENT, errno.ENOTDIR):
        places = [""] if "/" in command else path.split(":")
        if not any(os.path.exists(os.path.join(place, command)) for place in places):
            return f"there is no command {command!r} in the cell"
        return f"the command {command!r} asks for an interpreter that is not in the cell"
    if number == errno.EACCES:
        return f"the command {command!r} may not be executed in the cell"
    if number == errno.ENOEXEC:
        return f"the command {command!r} is not a program that this machine can run"
    if number == errno.E2BIG:
        return "the command's arguments and variables are too long together"
    return f"the job cannot be started: {error}"


def open_oom_score() -> int | None:
    """Return a descriptor of our own score, as process 1 that nothing foreign has joined yet.

    It can be opened only while we are dumpable, and not once the wall stands.
    """
    kernel.carry_out(_DUMPABLE)
    try:
        return os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return None  # there may be no /proc
    finally:
        kernel.carry_out(_NOT_DUMPABLE)


def be_first_to_go(oom_score: int | None, score: int) -> None:
    if oom_score is not None:
        os.pwrite(oom_score, b"%d" % score, 0)


def set_limits(rlimits: dict[str, list[int]]) -> None:
    """Set our limits, as (soft, hard), or to what we may have at most."""
    for name, (soft, hard) in rlimits.items():
        number = getattr(resource, name)
        try:
            resource.setrlimit(number, (soft, hard))
        except ValueError:  # more than we may have
            _, highest = resource.getrlimit(number)
            ceiling = hard if highest == resource.RLIM_INFINITY else min(hard, highest)
            resource.setrlimit(number, (min(soft, ceiling), ceiling))
