"""The wall of one cell, from the inside: first namespaces and mounts, then, once it is in its cgroup, all the rest.

Only process 1 runs in it meanwhile, which is ours. It holds capabilities in the cell's own user namespace and nowhere
else, and `seal` gives them up for good. Standard library only.
"""

from __future__ import annotations

import os

import kernel
import landlock
import seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Setup = dict[str, Any]

INSIDE_UID = 1000
_NAMESPACES = (
    kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWUTS
)  # fmt: skip
_HARMLESS = kernel.MS_NOSUID | kernel.MS_NODEV
_SMALL_BUFFERS = "4096 16384 32768"  # bytes of a socket: least, usual, most; no cgroup counts them
_INOTIFY_INSTANCES = "32"  # of the 128 or so that the kernel gives a user

_OLDEST_LANDLOCK = 2  # the one before forbids every move between directories
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


class Prepared:
    """What all cells of a template have in common: made once, because a cell pays for each page that it writes.

    `layers` are in force in every cell of which `furnish` and `seal` have returned.
    """

    __slots__ = ("filter", "layers", "lock", "why_no_filter")

    def __init__(
        self, *, filter: kernel.FilterProgram | None, why_no_filter: str, lock: landlock.Plan | None,
        layers: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.filter, self.why_no_filter, self.lock, self.layers = filter, why_no_filter, lock, layers


def prepare(setup: Setup) -> Prepared:
    """Return what the cells of *setup* need, as their template."""
    program, why = None, ""
    try:
        program = kernel.filter_program(
            seccomp.build_filter(
                os.uname().machine, unix_sockets=setup["unix_sockets"], count_memory=setup["count_memory"]
            )
        )
    except ValueError as error:  # no filter for this machine: the first cell says so
        why = str(error)
    locked = landlock.abi() >= _OLDEST_LANDLOCK
    return Prepared(
        filter=program,
        why_no_filter=why,
        lock=landlock.plan(["/"], [*setup["tmpfs"], *setup["writable"], *_DEVICES], ["/"], network=True)
        if locked
        else None,
        layers=(
            *(("own-namespaces", "loopback") if setup["proc"] else ()),
            "tmpfs-limits",
            *(("userns-limit",) if setup["proc"] else ()),
            "capabilities",
            "no-new-privileges",
            "seccomp",
            *(landlock.layers(network=True) if locked else ()),
        ),
    )


def enter_namespaces() -> None:
    """Leave every namespace of the template for a new one; the next fork is process 1 of the cell."""
    kernel.unshare(_NAMESPACES)


def mount_proc() -> None:
    """As process 1 of the new namespaces: they have a /proc of their own, which nobody else can mount."""
    kernel.mount("proc", "/proc", "proc", _HARMLESS | kernel.MS_NOEXEC)


def furnish(setup: Setup) -> None:
    """In the new namespaces: their user, own empty directories, own loopback.

    Not process 1 does this but the one that made the namespaces: what it writes into its memory goes with it.
    """
    kernel.set_dumpable(True)  # else /proc/self is root's
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"{INSIDE_UID} {INSIDE_UID} 1")
    write("/proc/self/gid_map", f"{INSIDE_UID} {INSIDE_UID} 1")
    for path in setup["tmpfs"]:
        beneath = [_held(place) for place in _outermost(setup["mounts"]) if place.startswith(f"{path}/")]
        mode = "1777" if path in ("/tmp", "/dev/shm") else "0700"
        kernel.mount("tmpfs", path, "tmpfs", _HARMLESS, f"{_sizes(setup)},mode={mode}")
        for place, handle in beneath:
            _bind_again(place, handle)
    kernel.bring_loopback_up()
    if setup["count_memory"]:
        for name in ("tcp_rmem", "tcp_wmem"):
            write(f"/proc/sys/net/ipv4/{name}", _SMALL_BUFFERS)
    write("/proc/sys/user/max_inotify_instances", _INOTIFY_INSTANCES)


def _outermost(places: list[str]) -> list[str]:
    """Return those of *places* that are beneath no other: whoever has those has the others with them."""
    return [place for place in dict.fromkeys(places) if not any(place.startswith(f"{other}/") for other in places)]


def _held(place: str) -> tuple[str, int]:
    return place, os.open(place, os.O_PATH | os.O_CLOEXEC)


def _bind_again(place: str, handle: int) -> None:
    """Put what the template has at *place* and beneath there again: a new empty directory has just hidden it."""
    itself = f"/proc/self/fd/{handle}"
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if os.path.isdir(itself):
        os.mkdir(place)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))
    kernel.mount(itself, place, "none", kernel.MS_BIND | kernel.MS_REC)
    os.close(handle)


def _sizes(setup: Setup) -> str:
    return f"size={setup['sizes']['disk_bytes']},nr_inodes={setup['sizes']['inodes']}"


def lock(prepared: Prepared) -> int | None:
    """Return what `seal` needs to lock files a second time, after the last mount; nothing where the kernel cannot."""
    return landlock.prepare(prepared.lock) if prepared.lock is not None else None


def seal(setup: Setup, prepared: Prepared, lock: int | None) -> None:
    """Give up what a job must not have.

    Raises:
        OSError, ValueError: one of `prepared.layers` cannot be had.
    """
    kernel.unshare(kernel.CLONE_NEWCGROUP)  # by now the cell is in its cgroup, which becomes the root of what it sees
    if setup["proc"]:
        write("/proc/sys/user/max_user_namespaces", "0")
    else:  # the directories are bubblewrap's, which knows no inodes
        for path in setup["tmpfs"]:
            kernel.mount("tmpfs", path, "tmpfs", kernel.MS_REMOUNT | _HARMLESS, _sizes(setup))
    kernel.drop_capabilities()
    kernel.set_no_new_privileges()
    kernel.set_dumpable(False)
    if prepared.filter is None:
        raise ValueError(prepared.why_no_filter)
    kernel.install_filter(prepared.filter)
    if lock is not None:
        landlock.enforce(lock)


def write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
