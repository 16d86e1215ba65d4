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

    __slots__ = ("last_pid", "ready", "wall")

    def __init__(self, prepared: wall.Prepared, ready: bytes, last_pid: int | None) -> None:
        self.wall, self.ready, self.last_pid = prepared, ready, last_pid


class _Order:
    """One more cell: the control socket of its job, and what it joins its cgroup by. `ahead`: see `parked.py`."""

    __slots__ = ("ahead", "channel", "doors")

    def __init__(self, channel: int, doors: list[int], *, ahead: bool) -> None:
        self.channel, self.doors, self.ahead = channel, doors, ahead

    def close(self) -> None:
        os.close(self.channel)
        for door in self.doors:
            os.close(door)


def _take_order(control: _socket.socket) -> _Order:
    body, (channel, *doors) = wire.receive_packed_with(control, _DESCRIPTORS_OF_A_CELL)
    return _Order(channel, doors, ahead=b"ahead" in body)


def _join(doors: list[int]) -> None:
    """Join the cgroup of *doors*: by itself, a process with one thread stops no other meanwhile."""
    for door in doors:
        os.write(door, b"0")
        os.close(door)


def _warm_up(setup: Frame) -> _Prepared:
    """Prepare what every cell of this template shares."""
    kernel.carry_out([kernel.dumpable(False)])
    sys.path.insert(0, os.path.join(sys.path[0], "tools"))
    prepared = wall.prepare(setup)
    ready = wire.packed({"kind": "ready", "layers": prepared.layers})
    jobs.inherit(setup["environment"])
    _keep_all()
    gc.disable()  # what process 1 of a cell does is over before it would pay; a function has it back
    return _Prepared(prepared, ready, _open_last_pid())


def _open_last_pid() -> int | None:
    """Return an open /proc/loadavg: who reads it is told of the pid namespace that he is in himself."""
    try:
        return os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None  # there may be no /proc


def _import_ahead(setup: Frame) -> None:
    """Import what functions of this template will need, so that every cell shares it."""
    for name in setup["preload"]:
        importlib.import_module(name)
    _keep_all()


def _keep_all() -> None:
    gc.collect()
    gc.freeze()  # or the first collection in a cell would copy every page


def _make_cells(control: _socket.socket, setup: Frame, prepared: _Prepared) -> None:
    """Fork a cell for each order that comes, until the gateway has gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the cells
    imported = rehearsed = False
    while True:
        try:
            order = _take_order(control)
        except OSError:
            continue  # its descriptors found no room here, and were closed: the gateway sees that
        if order.ahead and not imported:
            _import_ahead(setup)
            imported = True
        try:
            child = wall.fork()
        except OSError as error:  # the system has no room: only this cell is refused, others of this template run
            _tell(order, str(error))
        else:
            if child == 0:
                _be_a_cell(order, setup, prepared)
        order.close()
        if not rehearsed:  # now, because somebody waits for the first cell, and a command needs nothing of it
            if not imported:
                with contextlib.suppress(Exception):  # a cell may be at work already: who needs the module will say so
                    _import_ahead(setup)
            rehearsal.rehearse(setup, prepared.wall)
            imported = rehearsed = True


def _tell(order: _Order, why: str) -> None:
    """Tell the gateway why this cell will not be."""
    with contextlib.suppress(OSError):
        os.write(order.channel, wire.packed({"kind": "failed", "what": why}))


def _be_a_cell(order: _Order, setup: Frame, prepared: _Prepared) -> None:
    """In the forked child, which is process 1 of its namespaces. Never returns."""
    try:
        os.close(CONTROL_FD)
        os.dup2(0, 2)
        _serve_one_job(order, setup, prepared, furnishes=True)
    except (wire.Gone, BrokenPipeError, ConnectionResetError):
        pass
    except BaseException as error:
        _tell(order, f"{type(error).__name__}: {error}")
    os._exit(0)


def _be_the_cell(control: _socket.socket, setup: Frame, prepared: _Prepared) -> None:
    """Where /proc is masked no further user namespace can be set up: this process is its template's only cell."""
    order = _take_order(control)
    control.close()
    wall.give_terminals(prepared.wall)
    _serve_one_job(order, setup, prepared)


def _serve_one_job(cell: _Order, setup: Frame, prepared: _Prepared, *, furnishes: bool = False) -> None:
    """As process 1 of a cell: join its cgroup, put up the wall, see to the one job, wait to be released."""
    try:
        _join(cell.doors)
    except OSError as error:
        _tell(cell, f"cgroup: {error}")
        return
    if furnishes:
        wall.furnish(prepared.wall)
    lock = wall.lock(prepared.wall)
    oom_score = jobs.open_oom_score()
    try:
        wall.seal(prepared.wall, lock)
    except (OSError, ValueError) as error:
        _tell(cell, str(error))
        return
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, cell.channel)
    places, wakeups = setup["tmpfs"], jobs.wake_on_child_end()
    waiting = parked.park(channel, prepared.ready, wakeups, oom_score) if cell.ahead else None
    if waiting is not None:
        parked.see_to_its_end(channel, waiting, wakeups, places, prepared.last_pid)
    else:
        if not cell.ahead:
            channel.sendall(prepared.ready)
        order, given = wire.receive_with(channel, parked.DESCRIPTORS_OF_AN_ORDER)
        jobs.run_one_job(channel, order, given, places=places, oom_score=oom_score, wakeups=wakeups)
    channel.recv(1)  # the gateway reads out/ through the descriptor it was given, then closes


if __name__ == "__main__":
    try:
        main()
    finally:
        # An orderly end of the interpreter has nothing to do here, and process 1 must not fail on the way out.
        os._exit(0)
