"""Process 1 of a template: prepares cells for the gateway, each a fork of this process behind a wall of its own.

It never runs foreign code and never sees what a job is given: it is told "one more cell" and handed that cell's control
socket, and the cell's own process 1 takes it from there. It lives as long as the gateway's end of its socket; when it
ends, all its cells end. Standard library only; `python3 -I -S -B init.py`. What a template imports costs each of its
cells time and memory: so here is no `typing` but for the type checker, and no `dataclasses`.

Descriptors on entry: 0, 1 nothing; 2 for last words; 3 the control socket.
"""

from __future__ import annotations

import _socket
import contextlib
import gc
import importlib
import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import jobs
import kernel
import parked
import rehearsal
import wall
import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Frame = dict[str, Any]

CONTROL_FD = 3

_DESCRIPTORS_OF_A_CELL = 5  # its control socket, and the doors of its cgroup, one for each hierarchy


def main() -> None:
    """Import ahead, then make cells until the gateway has gone."""
    # Signals from inside a namespace reach its process 1 only where it has a handler: Python's own for SIGINT must go.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(CONTROL_FD, False)
    control = _socket.socket(fileno=CONTROL_FD)
    with contextlib.suppress(wire.Gone, OSError):
        setup = wire.receive(control)
        prepared = _warm_up(setup)
        wire.send(control, {"kind": "ready"})
        if setup["proc"]:
            _make_cells(control, setup, prepared)
        else:
            _be_the_cell(control, setup, prepared)


class _Prepared:
    """What a cell has of its template. A cell that waits pays for each page that it has written: it only sends this."""

    __slots__ = ("ready", "wall")

    def __init__(self, prepared: wall.Prepared, ready: bytes) -> None:
        self.wall, self.ready = prepared, ready


class _Order:
    """One more cell: the control socket of its job, and what it joins its cgroup by. `ahead`: see `parked.py`."""

    __slots__ = ("ahead", "channel", "doors")

    def __init__(self, channel: _socket.socket, doors: list[int], *, ahead: bool) -> None:
        self.channel, self.doors, self.ahead = channel, doors, ahead


def _take_order(control: _socket.socket) -> _Order:
    body, (channel, *doors) = wire.receive_packed_with(control, _DESCRIPTORS_OF_A_CELL)
    return _Order(_socket.socket(fileno=channel), doors, ahead=b"ahead" in body)


def _join(doors: list[int]) -> None:
    """Join the cgroup of *doors*: by itself, a process with one thread stops no other meanwhile."""
    for door in doors:
        os.write(door, b"0")
        os.close(door)


def _warm_up(setup: Frame) -> _Prepared:
    """Import what jobs of this template will need, so that every cell shares it."""
    kernel.set_dumpable(False)
    sys.path.insert(0, os.path.join(sys.path[0], "tools"))
    for name in setup["preload"]:
        importlib.import_module(name)
    prepared = wall.prepare(setup)
    ready = wire.packed({"kind": "ready", "layers": prepared.layers})
    jobs.inherit(setup["environment"])
    gc.collect()
    gc.freeze()  # or the first collection in a cell would copy every page
    gc.disable()  # what process 1 of a cell does is over before it would pay; a function has it back
    return _Prepared(prepared, ready)


def _make_cells(control: _socket.socket, setup: Frame, prepared: _Prepared) -> None:
    """Fork a cell for each order that comes. The fork reads the order: what this process touches, no cell shares."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps: the forks below, and their cells later
    rehearsed = False
    while control.recv(1, _socket.MSG_PEEK):
        try:
            child = os.fork()
        except OSError as error:
            _refuse_cell(control, f"fork: {error.strerror}")
            continue
        if child == 0:
            _become_cell(control, setup, prepared)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)  # it has taken the order then
        if not rehearsed:  # now, because somebody waits for the first cell
            rehearsal.rehearse(setup, prepared.wall)
            rehearsed = True


def _refuse_cell(control: _socket.socket, why: str) -> None:
    """The system has no room for one more process: only this cell is refused, others of this template run."""
    order = _take_order(control)
    with contextlib.suppress(OSError):
        wire.send(order.channel, {"kind": "failed", "what": why})
    order.channel.close()
    for door in order.doors:
        os.close(door)


def _become_cell(control: _socket.socket, setup: Frame, prepared: _Prepared) -> None:
    """In the forked child: take the order, enter new namespaces, fork the process 1 of them, furnish. Never returns."""
    order = None
    try:
        order = _take_order(control)
        control.close()
        os.dup2(0, 2, inheritable=True)
        outside, inside = _socket.socketpair()
        wall.enter_namespaces()
        if os.fork() == 0:
            outside.close()
            _serve_one_job(order, setup, prepared, inside)
            os._exit(0)
        inside.close()
        wall.furnish(setup)
        lock = wall.lock(prepared.wall)
        wire.send(outside, {"kind": "furnished"}, (lock,) if lock is not None else ())
    except (wire.Gone, BrokenPipeError, ConnectionResetError):
        pass
    except BaseException as error:
        if order is not None:
            with contextlib.suppress(OSError):
                wire.send(order.channel, {"kind": "failed", "what": f"{type(error).__name__}: {error}"})
    os._exit(0)


def _be_the_cell(control: _socket.socket, setup: Frame, prepared: _Prepared) -> None:
    """Where /proc is masked no further user namespace can be set up: this process is its template's only cell."""
    order = _take_order(control)
    control.close()
    _serve_one_job(order, setup, prepared)


def _serve_one_job(cell: _Order, setup: Frame, prepared: _Prepared, furnisher: _socket.socket | None = None) -> None:
    """As process 1 of a cell: join its cgroup, finish the wall, see to the one job, wait to be released."""
    channel = cell.channel
    try:
        _join(cell.doors)
    except OSError as error:
        wire.send(channel, {"kind": "failed", "what": f"cgroup: {error}"})
        return
    if furnisher is None:
        lock = wall.lock(prepared.wall)
    else:
        lock = next(iter(wire.receive_packed_with(furnisher, 1)[1]), None)
        furnisher.close()
        wall.mount_proc()
    oom_score = jobs.open_oom_score()
    try:
        wall.seal(setup, prepared.wall, lock)
    except (OSError, ValueError) as error:
        wire.send(channel, {"kind": "failed", "what": str(error)})
        return
    layers, places, wakeups = list(prepared.wall.layers), setup["tmpfs"], jobs.wake_on_child_end()
    waiting = parked.park(channel, prepared.ready, wakeups, oom_score) if cell.ahead else None
    if waiting is not None:
        parked.see_to_its_end(channel, waiting, wakeups, layers=layers, places=places)
    else:
        if not cell.ahead:
            channel.sendall(prepared.ready)
        order, given = wire.receive_with(channel, parked.DESCRIPTORS_OF_AN_ORDER)
        jobs.run_one_job(channel, order, given, layers=layers, places=places, oom_score=oom_score, wakeups=wakeups)
    channel.recv(1)  # the gateway reads out/ through the descriptor it was given, then closes


if __name__ == "__main__":
    try:
        main()
    finally:
        # An orderly end of the interpreter has nothing to do here, and process 1 must not fail on the way out.
        os._exit(0)
