"""The job's own process, made ahead: it waits in its sealed cell for the one order, and then becomes the job.

A fork of this interpreter costs more than a short function, so it is made while nobody waits. Nothing foreign has run
in the process before its order comes, and it takes no second one. Its end costs as much again, most of it for memory
that it gives back: a function that has returned says so before, and nobody waits for that either.
Standard library only.
"""

from __future__ import annotations

import _socket
import contextlib
import functools
import os
import resource
import select
import signal
import time

import ground
import jobs
import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Frame = dict[str, Any]

DESCRIPTORS_OF_AN_ORDER = 4
_TAKEN, _TAKEN_AND_EXPORTS = b".", b"e"
_CODES = 256  # exit codes that there are
_LOAD_BYTES = 128  # more than that file has
_ALL_ITS_THREADS = 2  # with the number of a process before it: the clock of its processor time, clock_getcpuclockid(3)
_HUNG_UP = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class Parked:
    """The waiting process, as process 1 has it.

    `told` is the pipe on which it says that it has taken its order, and then why it could not be carried out, if so;
    `done` the counter in which its function leaves word that it has returned.
    """

    __slots__ = ("done", "news", "pid", "told")

    def __init__(self, pid: int, told: int, done: int, news: select.poll) -> None:
        self.pid, self.told, self.done, self.news = pid, told, done, news


def park(channel: _socket.socket, ready: bytes, wakeups: int, oom_score: int | None) -> Parked | None:
    """Fork the process that waits on *channel* for the order; call it when the wall stands.

    *ready* is what the gateway is told of it. It goes out first: what this process does after the fork no longer shares
    its memory with the other. Returns nothing where the system has no room for one more process now.
    """
    told, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    news = select.poll()
    news.register(channel, _HUNG_UP)  # what the gateway says is for the other process
    news.register(wakeups, select.POLLIN)
    news.register(done, select.POLLIN)
    jobs.be_first_to_go(oom_score, 1000)  # if memory runs out, the job goes, and not process 1
    channel.sendall(ready)
    try:
        pid = os.fork()
    except OSError:
        pid = -1
    if pid == 0:
        _take_the_order(channel, tell, done)
    jobs.be_first_to_go(oom_score, 0)
    os.close(tell)
    return Parked(pid, told, done, news) if pid > 0 else None


def see_to_its_end(
    channel: _socket.socket, parked: Parked, wakeups: int, places: list[str], last_pid: int | None
) -> None:
    """As process 1: wait for the end of the job that *parked* becomes, kill the rest, and report on *channel*.

    *last_pid* is an open /proc/loadavg, which ends with the number of the youngest process here.

    Raises:
        Gone: the gateway wants no more of it, or the process ended before it had an order.
    """
    status = None
    while status is None:
        for descriptor, _ in parked.news.poll():
            if descriptor == parked.done:
                word = _word_left(parked.done)
                if word and last_pid is not None and was_alone(parked.pid, last_pid):
                    _report_before_its_end(channel, parked, word, places)
                    return
                parked.news.unregister(descriptor)
            elif descriptor != wakeups:
                jobs.kill_everything()
                raise wire.Gone
        with contextlib.suppress(BlockingIOError):
            os.read(wakeups, 4096)
        status = jobs.reap(parked.pid, os.WNOHANG)
    left = jobs.kill_everything()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = _what_was_told(parked.told)
    if not told.startswith((_TAKEN, _TAKEN_AND_EXPORTS)):
        raise wire.Gone
    end = {
        "kind": "ended", "status": status, "left": left, "not_started": told[1:].decode(errors="replace"),
        "cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024,
    }  # fmt: skip
    ground.report(channel, end, places, jobs.WORKSPACE if told.startswith(_TAKEN_AND_EXPORTS) else None)


def was_alone(pid: int, last_pid: int) -> bool:
    """Whether there never was a process or a thread here but us and *pid*, by *last_pid*, an open /proc/loadavg."""
    return os.pread(last_pid, _LOAD_BYTES, 0).split()[-1] == b"%d" % pid


def _word_left(done: int) -> int:
    """Return what the function left in the counter *done*; 0 if something of the job took it away again."""
    try:
        return os.eventfd_read(done)
    except BlockingIOError:
        return 0


def _report_before_its_end(channel: _socket.socket, parked: Parked, word: int, places: list[str]) -> None:
    """Report on *channel* that the function of *parked* has returned and left *word*, while its process ends.

    That has nothing left to do but to end. If it were not so, it is killed: it never runs a line of its own again.
    """
    os.kill(-1, signal.SIGKILL)
    end = end_of(parked.pid, word)
    exports = _what_was_told(parked.told).startswith(_TAKEN_AND_EXPORTS)
    ground.report(channel, end, places, jobs.WORKSPACE if exports else None)


def end_of(pid: int, word: int) -> Frame:
    """Return the report on the function of *pid*, which has left *word* that it has returned."""
    peak_kib, code = divmod(word - 1, _CODES)
    return {
        "kind": "ended", "status": code << 8, "left": 0, "not_started": "",
        "cpu_s": time.clock_gettime(~pid << 3 | _ALL_ITS_THREADS), "peak_bytes": peak_kib * 1024,
    }  # fmt: skip


def _what_was_told(pipe: int) -> bytes:
    try:
        return os.read(pipe, 1 + jobs.WORDS_LIMIT_BYTES)
    except BlockingIOError:
        return b""


def tell_of_the_end(done: int, code: int) -> None:
    """As the job's own process, whose function has returned: leave word of its exit *code* and its peak of memory."""
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    os.eventfd_write(done, peak_kib * _CODES + code + 1)


def _take_the_order(channel: _socket.socket, tell: int, done: int) -> None:
    """In the forked child: wait, then become the job. Never returns."""
    try:
        jobs.leave_process_1()
        order, given = wire.receive_with(channel, DESCRIPTORS_OF_AN_ORDER)
        os.write(tell, _TAKEN_AND_EXPORTS if order["exports"] else _TAKEN)
        ground.prepare(channel, order, jobs.WORKSPACE)
        channel.close()
        argv, descriptors = jobs.command_and_descriptors(order, given, jobs.WORKSPACE)
        before_start = functools.partial(jobs.set_limits, order["rlimits"])
        jobs.become(order, argv, descriptors, tell, before_start, done, tell_of_the_end)
    except Exception as error:
        with contextlib.suppress(OSError):
            os.write(tell, f"the job cannot be started: {error}".encode(errors="replace"))
    finally:
        os._exit(jobs.EXIT_NOT_STARTED)
