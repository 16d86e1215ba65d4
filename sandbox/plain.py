"""Where no namespaces can be had: runs one job as a plain process tree under Landlock and the system call filter.

The counterpart of `init.py`, with the same frames, for profiles that say `posture = "landlock"`. It is weaker than a
cell, and `not_stopped.toml` says where. This process supervises: whatever the job leaves behind becomes its child, and
it kills until it has none. It lives as long as the gateway's end of either socket, and SIGTERM ends it in the same way;
SIGKILL leaves grandchildren alive. Standard library only; `python3 -I -S -B plain.py`.

Descriptors on entry: 0, 1 nothing; 2 for last words; 3 the control socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
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

CONTROL_FD = 3
_HERE = os.path.dirname(os.path.abspath(__file__))
_DESCRIPTORS_OF_AN_ORDER = 4
_PR_SET_PDEATHSIG = 1
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SETTINGS = (
    "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives",
    "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf",  # node ends where it may not read a file that is there
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/full", "/dev/random", "/dev/urandom")
_ZERO = "/dev/zero"  # to be read only: whoever may write to it can map it shared, and nothing counts that memory
_OWN_VARIABLES = {"GIT_CONFIG_NOSYSTEM": "1"}  # so does git
_LOOK_AGAIN_S = 0.002

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4

Frame = dict[str, Any]


def main() -> None:
    """Say that we are here, take the one job, run it, end with everything that it started.

    The setup frame: `workspace`, a private directory made by the caller; `read`, `write`, `execute`, host paths besides
    the system's; `alone`, whether no other process of the gateway runs as our user, so the limit of processes is ours.
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
    signal.signal(signal.SIGTERM, functools.partial(_hang_up, channel))
    wire.send(channel, {"kind": "ready"})
    order, given = wire.receive_with(channel, _DESCRIPTORS_OF_AN_ORDER)
    try:
        layers, kept_in = _seal(order)
    except (OSError, ValueError) as error:
        wire.send(channel, {"kind": "failed", "what": str(error)})
        return
    kill = functools.partial(kill_descendants, at_once=kept_in)
    order["environment"] |= {**_OWN_VARIABLES, "HOME": setup["workspace"], "TMPDIR": setup["workspace"]}
    before_start = functools.partial(_give_up_the_rest, setup, order["rlimits"], os.getpid())
    try:
        jobs.run_one_job(
            channel, order, given, layers=layers, places=[], workspace=setup["workspace"], before_start=before_start,
            kill=kill,
        )  # fmt: skip
        channel.recv(1)  # the gateway reads out/ through the descriptor it was given, then closes
    finally:
        kill()


def _hang_up(channel: socket.socket, number: int, frame: object) -> None:
    """Told to end: from now on the gateway seems to have gone."""
    with contextlib.suppress(OSError):
        channel.shutdown(socket.SHUT_RDWR)


def _seal(order: Frame) -> tuple[list[str], bool]:
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
    kernel.adopt_orphans()
    kernel.drop_capabilities()
    kernel.carry_out([kernel.no_new_privileges(), kernel.dumpable(False)])
    kept_in = landlock.keep_signals_in()
    # count_memory also keeps it from the host's SysV objects and message queues
    program = seccomp.build_filter(os.uname().machine, unix_sockets=False, count_memory=True, sockets=False)
    kernel.carry_out([kernel.filtering(program)])
    layers = [*landlock.layers(network=False), "capabilities", "no-new-privileges", "seccomp", "no-sockets", "rlimits"]
    return layers, kept_in


def _give_up_the_rest(setup: Frame, rlimits: dict[str, list[int]], supervisor: int) -> None:
    """In the job's own process, just before it becomes the job: limits, and Landlock.

    Raises:
        OSError, ValueError: one of them cannot be had.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        raise ValueError("the supervisor has gone")
    if not setup["alone"] and "RLIMIT_NPROC" in rlimits:
        others = _tasks_of_our_user()
        rlimits = {**rlimits, "RLIMIT_NPROC": [limit + others for limit in rlimits["RLIMIT_NPROC"]]}
    jobs.set_limits(rlimits)
    programs = [*_SYSTEM, sys.base_prefix, sys.base_exec_prefix, _HERE]
    landlock.restrict(
        [*programs, *_SETTINGS, _ZERO, *setup["read"]],
        [setup["workspace"], *_DEVICES, *setup["write"]],
        [*programs, setup["workspace"], *setup["execute"]],
        network=False,
    )


def kill_descendants(*, at_once: bool) -> int:
    """Kill and reap until we have no child; what lost its parent became ours. Returns how many were killed.

    Args:
        at_once: no signal of ours reaches a process that is not ours, so all can be killed with one call.
    """
    seen: set[int] = set()
    while _reap_has_more():
        if at_once:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        for pid in _descendants():
            seen.add(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_AGAIN_S)
    return len(seen)


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


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


if __name__ == "__main__":
    try:
        main()
    finally:
        os._exit(0)
