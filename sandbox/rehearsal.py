"""Goes through what a cell does, in its template: what the interpreter notes meanwhile, no cell has to note again.

A cell is a fork that pays for each page which it writes. Without this each of them fills the interpreter's caches of
types and of instructions once more: 170 KiB of its memory, and 0.2 ms of a short function. Nothing here has an effect
outside this process. Standard library only.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import resource
import select

import ground
import jobs
import kernel
import landlock
import parked
import wall
import wire
import worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Frame = dict[str, Any]

_ROUNDS = 3  # ten save no more
_LIMITS = ("RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_NOFILE", "RLIMIT_MSGQUEUE", "RLIMIT_RTPRIO", "RLIMIT_NICE")


def rehearse(setup: Frame, prepared: wall.Prepared) -> bool:
    """Do in this process, harmlessly, what its cells will do; False if that failed, and they pay as without it."""
    try:
        for _ in range(_ROUNDS):
            _make_a_cell(prepared)
            _take_an_order(setup["environment"])
            _report()
    except OSError:
        return False
    finally:
        kernel.carry_out([kernel.dumpable(False)])
    return True


def echo(arguments: Frame) -> Frame:
    """Return *arguments*: the function of a rehearsed job."""
    return arguments


def _make_a_cell(prepared: wall.Prepared) -> None:
    ours, theirs = _socket.socketpair()
    wire.send(ours, {"kind": "cell"}, (theirs.fileno(),))
    _, (number, *_) = wire.receive_packed_with(theirs, 1)
    channel = _socket.socket(fileno=number)
    for used in (ours, theirs, channel):
        used.close()
    child = os.fork()
    if child == 0:
        os._exit(0)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)
    kernel.carry_out([kernel.leaving(0), kernel.writing(os.devnull, "1")] * 20)
    kernel.attempt([kernel.leaving(0)] * 20)
    if prepared.lock is not None:
        os.close(landlock.prepare(prepared.lock))
    oom_score = jobs.open_oom_score()
    if oom_score is not None:
        jobs.be_first_to_go(oom_score, 0)
        os.close(oom_score)


def _take_an_order(environment: dict[str, str]) -> None:
    ours, theirs = _socket.socketpair()
    with open(os.devnull, "wb") as nothing:
        order: Frame = {
            "argv": [], "function": "rehearsal:echo", "arguments": {"text": "x"}, "bundled": True, "files": [],
            "environment": environment, "rlimits": _limits_as_they_are(), "exports": False, "listen": False,
        }  # fmt: skip
        wire.send(ours, order, (nothing.fileno(),) * 4)
        order, given = wire.receive_with(theirs, 4)
        ground.prepare(theirs, order, ".")
        _, descriptors = jobs.command_and_descriptors(order, given, ".")
        jobs.set_limits(order["rlimits"])
        worker.run(order["function"], order["arguments"], nothing.fileno())
        for descriptor in descriptors:
            os.close(descriptor)
    ours.close()
    theirs.close()


def _limits_as_they_are() -> dict[str, tuple[int, int]]:
    limits = {name: resource.getrlimit(getattr(resource, name)) for name in _LIMITS}
    return {name: limit for name, limit in limits.items() if resource.RLIM_INFINITY not in limit}


def _report() -> None:
    ours, theirs = _socket.socketpair()
    told, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    news = select.poll()
    news.register(theirs, select.POLLIN)
    news.register(told, select.POLLIN)
    os.write(tell, b".")
    for descriptor, _ in news.poll():
        os.read(descriptor, 1)
    with contextlib.suppress(BlockingIOError):
        os.read(told, 1)
    done = os.eventfd(0, os.EFD_CLOEXEC)
    parked.tell_of_the_end(done, 0)
    loads = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
    parked.was_alone(os.getpid(), loads)
    end = parked.end_of(os.getpid(), os.eventfd_read(done))
    ground.report(theirs, end, ["/"], None)
    for used in (told, tell, done, loads):
        os.close(used)
    ours.close()
    theirs.close()
