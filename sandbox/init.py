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
import signal
import socket
import sys
from typing import Any, NamedTuple

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import jobs
import kernel
import wall
import wire

CONTROL_FD = 3
_DESCRIPTORS_OF_AN_ORDER = 4

_READY = wire.packed({"kind": "ready"})

Frame = dict[str, Any]


def main() -> None:
    """Import ahead, then make cells until the gateway has gone."""
    # Signals from inside a namespace reach its process 1 only where it has a handler: Python's own for SIGINT must go.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(CONTROL_FD, False)
    control = socket.socket(fileno=CONTROL_FD)
    with contextlib.suppress(wire.Gone, OSError):
        setup = wire.receive(control)
        prepared = _warm_up(setup)
        wire.send(control, {"kind": "ready"})
        if setup["proc"]:
            _make_cells(control, setup, prepared)
        else:
            _be_the_cell(control, setup, prepared)


class _Prepared(NamedTuple):
    """What a cell has of its template. A cell that waits pays for each page that it has written: it only sends this."""

    wall: wall.Prepared
    sealed: bytes


def _warm_up(setup: Frame) -> _Prepared:
    """Import what jobs of this template will need, so that every cell shares it."""
    kernel.set_dumpable(False)
    sys.path.insert(0, os.path.join(sys.path[0], "tools"))
    for name in setup["preload"]:
        importlib.import_module(name)
    prepared = wall.prepare(setup)
    sealed = wire.packed({"kind": "sealed", "layers": prepared.layers})
    jobs.inherit(setup["environment"])
    gc.collect()
    gc.freeze()  # or the first collection in a cell would copy every page
    gc.disable()  # what process 1 of a cell does is over before it would pay; a function has it back
    return _Prepared(prepared, sealed)


def _make_cells(control: socket.socket, setup: Frame, prepared: _Prepared) -> None:
    """Fork a cell for each order that comes. The fork reads the order: what this process touches, no cell shares."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps: the forks below, and their cells later
    while control.recv(1, socket.MSG_PEEK):
        try:
            child = os.fork()
        except OSError as error:
            _refuse_cell(control, f"fork: {error.strerror}")
            continue
        if child == 0:
            _become_cell(control, setup, prepared)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)  # it has taken the order then


def _refuse_cell(control: socket.socket, why: str) -> None:
    """The system has no room for one more process: only this cell is refused, others of this template run."""
    channel = socket.socket(fileno=wire.receive_descriptors(control, 1)[0])
    with contextlib.suppress(OSError):
        wire.send(channel, {"kind": "failed", "what": why})
    channel.close()


def _become_cell(control: socket.socket, setup: Frame, prepared: _Prepared) -> None:
    """In the forked child: take the order, enter new namespaces, and fork the process 1 of them. Never returns."""
    channel = None
    try:
        channel = socket.socket(fileno=wire.receive_descriptors(control, 1)[0])
        control.close()
        os.dup2(0, 2, inheritable=True)
        wall.enter_namespaces()
        if os.fork() == 0:
            wall.furnish(setup)
            _serve_one_job(channel, setup, prepared)
    except (wire.Gone, BrokenPipeError, ConnectionResetError):
        pass
    except BaseException as error:
        if channel is not None:
            with contextlib.suppress(OSError):
                wire.send(channel, {"kind": "failed", "what": f"{type(error).__name__}: {error}"})
    os._exit(0)


def _be_the_cell(control: socket.socket, setup: Frame, prepared: _Prepared) -> None:
    """Where /proc is masked no further user namespace can be set up: this process is its template's only cell."""
    channel = socket.socket(fileno=wire.receive_descriptors(control, 1)[0])
    control.close()
    _serve_one_job(channel, setup, prepared)


def _serve_one_job(channel: socket.socket, setup: Frame, prepared: _Prepared) -> None:
    """As process 1 of a cell: finish the wall, wait for the one order, carry it out, wait to be released."""
    lock = wall.lock(prepared.wall)
    oom_score = jobs.open_oom_score()
    channel.sendall(_READY)  # from this the gateway knows which process to put into the cgroup
    wire.receive(channel)
    try:
        wall.seal(setup, prepared.wall, lock)
    except (OSError, ValueError) as error:
        wire.send(channel, {"kind": "failed", "what": str(error)})
        return
    wakeups = jobs.wake_on_child_end()
    channel.sendall(prepared.sealed)
    order, given = wire.receive_with(channel, _DESCRIPTORS_OF_AN_ORDER)
    jobs.run_one_job(
        channel, order, given, layers=list(prepared.wall.layers), places=setup["tmpfs"], oom_score=oom_score,
        wakeups=wakeups,
    )  # fmt: skip
    channel.recv(1)  # the gateway reads out/ through the descriptor it was given, then closes


if __name__ == "__main__":
    try:
        main()
    finally:
        # An orderly end of the interpreter has nothing to do here, and process 1 must not fail on the way out.
        os._exit(0)
