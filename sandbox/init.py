"""Process 1 of a template: prepares cells for the gateway, each a fork of this process behind a wall of its own.

It never runs foreign code and never sees what a job is given: it is told "one more cell" and handed that cell's control
socket, and the cell's own process 1 takes it from there. It lives as long as the gateway's end of its socket; when it
ends, all its cells end. Standard library only; `python3 -I -S -B init.py`.

Descriptors on entry: 0, 1 nothing; 2 for last words; 3 the control socket.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import jobs
import kernel
import wall
import wire

CONTROL_FD = 3
_DESCRIPTORS_OF_AN_ORDER = 4

Frame = dict[str, Any]


def main() -> None:
    """Import ahead, then make cells until the gateway has gone."""
    # Signals from inside a namespace reach its process 1 only where it has a handler: Python's own for SIGINT must go.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(CONTROL_FD, False)
    control = socket.socket(fileno=CONTROL_FD)
    with contextlib.suppress(wire.Gone, OSError):
        setup = wire.receive(control)
        _warm_up(setup)
        wire.send(control, {"kind": "ready"})
        if setup["proc"]:
            _make_cells(control, setup)
        else:
            _be_the_cell(control, setup)


def _warm_up(setup: Frame) -> None:
    """Import what jobs of this template will need, so that every cell shares it."""
    kernel.set_dumpable(False)
    sys.path.insert(0, os.path.join(sys.path[0], "tools"))
    for name in setup["preload"]:
        importlib.import_module(name)
    wall.prepare_filter(setup)
    jobs.inherit(setup["environment"])
    gc.collect()
    gc.freeze()  # or the first collection in a cell would copy every page
    gc.disable()  # what process 1 of a cell does is over before it would pay; a function has it back


def _make_cells(control: socket.socket, setup: Frame) -> None:
    wakeups, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    while True:
        readable, _, _ = select.select([CONTROL_FD, wakeups], [], [])
        if wakeups in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(wakeups, 4096)
            jobs.reap(-1, os.WNOHANG)
        if CONTROL_FD in readable:
            _, descriptors = wire.receive_with(control, 1)
            _make_cell(socket.socket(fileno=descriptors[0]), setup)


def _make_cell(channel: socket.socket, setup: Frame) -> None:
    """Fork one cell. If the system has no room for it, only this cell is refused: others of this template run."""
    try:
        if os.fork() == 0:
            _become_cell(channel, setup)
    except OSError as error:
        with contextlib.suppress(OSError):
            wire.send(channel, {"kind": "failed", "what": f"fork: {error.strerror}"})
    channel.close()


def _become_cell(channel: socket.socket, setup: Frame) -> None:
    """In the forked child: enter new namespaces, and fork the process 1 of them. Never returns."""
    try:
        signal.set_wakeup_fd(-1)
        os.closerange(CONTROL_FD, channel.fileno())
        os.dup2(0, 2, inheritable=True)
        wall.enter_namespaces()
        if os.fork() == 0:
            layers = wall.furnish(setup)
            _serve_one_job(channel, setup, layers)
    except (wire.Gone, BrokenPipeError, ConnectionResetError):
        pass
    except BaseException as error:
        with contextlib.suppress(OSError):
            wire.send(channel, {"kind": "failed", "what": f"{type(error).__name__}: {error}"})
    os._exit(0)


def _be_the_cell(control: socket.socket, setup: Frame) -> None:
    """Where /proc is masked no further user namespace can be set up: this process is its template's only cell."""
    _, descriptors = wire.receive_with(control, 1)
    channel = socket.socket(fileno=descriptors[0])
    control.close()
    _serve_one_job(channel, setup, [])


def _serve_one_job(channel: socket.socket, setup: Frame, layers: list[str]) -> None:
    """As process 1 of a cell: finish the wall, wait for the one order, carry it out, wait to be released."""
    lock = wall.prepare_lock(setup)
    oom_score = jobs.open_oom_score()
    wire.send(channel, {"kind": "ready"})  # from this the gateway knows which process to put into the cgroup
    wire.receive(channel)
    try:
        layers = [*layers, *wall.seal(setup, lock)]
    except (OSError, ValueError) as error:
        wire.send(channel, {"kind": "failed", "what": str(error)})
        return
    wakeups = jobs.wake_on_child_end()
    wire.send(channel, {"kind": "sealed", "layers": layers})
    order, given = wire.receive_with(channel, _DESCRIPTORS_OF_AN_ORDER)
    jobs.run_one_job(
        channel, order, given, layers=layers, places=setup["tmpfs"], oom_score=oom_score, wakeups=wakeups
    )  # fmt: skip
    channel.recv(1)  # the gateway reads out/ through the descriptor it was given, then closes


if __name__ == "__main__":
    try:
        main()
    finally:
        # An orderly end of the interpreter has nothing to do here, and process 1 must not fail on the way out.
        os._exit(0)
