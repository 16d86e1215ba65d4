"""The wall of one cell, put up from the inside by its process 1, which was forked into the cell's namespaces.

Nothing else runs in it meanwhile. Process 1 holds capabilities in the cell's own user namespace and nowhere else, and
`seal` gives them up for good. Standard library only.
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
    Steps = list[kernel.Step]

INSIDE_UID = 1000
_NAMESPACES = (
    kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWUTS
)  # fmt: skip
_HARMLESS = kernel.MS_NOSUID | kernel.MS_NODEV
_SMALL_BUFFERS = "4096 16384 32768"  # bytes of a socket: least, usual, most; no cgroup counts them
_MOST_WAITING = "/proc/sys/net/core/somaxconn"
_WAITING = "32"  # connections that nobody has taken: each keeps what was sent, and its sender no descriptor
_INOTIFY_INSTANCES = "32"  # of the 128 or so that the kernel gives a user

_OLDEST_LANDLOCK = 2  # the one before forbids every move between directories
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
_TERMINALS = "/dev/pts"
_MOST_TERMINALS = 16  # pairs, each with up to 60 KiB of the kernel's memory
_EMPTY = "/etc/fstab"  # of the template: nobody can write to it
_HIDDEN = ("/proc/keys", "/proc/key-users")  # would name the keys of the user that all cells of an ordinary user have
_ZERO = "/dev/zero"  # whoever may write to it can map it shared: memory that only a memory cgroup counts


class Prepared:
    """What all cells of a template have in common: made once, because a cell pays for each page that it writes.

    `layers` are in force in every cell of which `furnish` and `seal` have returned. The rest is theirs, as steps;
    `beneath` are the places that `furnish` has to bind again because an empty directory hides them.
    """

    __slots__ = (
        "beneath", "bounds", "filter", "furnishing", "giving_up", "layers", "lock", "restricting", "sealing",
        "terminals", "why_no_filter",
    )  # fmt: skip

    def __init__(
        self, *, layers: tuple[str, ...], furnishing: Steps, beneath: list[str], terminals: Steps, restricting: Steps,
        sealing: Steps, bounds: Steps, giving_up: Steps, filter: kernel.Step | None, why_no_filter: str,
        lock: landlock.Plan | None,
    ) -> None:  # fmt: skip
        self.layers = layers
        self.furnishing, self.beneath, self.restricting = furnishing, beneath, restricting
        self.terminals = terminals
        self.sealing, self.bounds, self.giving_up = sealing, bounds, giving_up
        self.filter, self.why_no_filter, self.lock = filter, why_no_filter, lock


def prepare(setup: Setup) -> Prepared:
    """Return what the cells of *setup* need, as their template."""
    program, why = None, ""
    try:
        program = kernel.filtering(
            seccomp.build_filter(
                os.uname().machine, unix_sockets=setup["unix_sockets"], count_memory=setup["count_memory"]
            )
        )
    except ValueError as error:  # no filter for this machine: the first cell says so
        why = str(error)
    locked = landlock.abi() >= _OLDEST_LANDLOCK
    return Prepared(
        layers=(
            *(("own-namespaces", "loopback") if setup["proc"] else ()),
            "tmpfs-limits",
            *(("userns-limit",) if setup["proc"] else ()),
            "capabilities",
            "no-new-privileges",
            "seccomp",
            *(landlock.layers(network=True) if locked else ()),
        ),
        furnishing=_furnishing(setup),
        beneath=_beneath(setup),
        terminals=[_mounting_terminals()],
        restricting=_restricting(setup),
        sealing=_sealing(setup, locked=locked),
        bounds=kernel.bounds_of_capabilities(),
        giving_up=[kernel.no_capabilities(), kernel.no_new_privileges(), kernel.dumpable(False)],
        filter=program,
        why_no_filter=why,
        lock=landlock.plan(["/"], _places_to_write(setup), ["/"], network=True) if locked else None,
    )


def _places_to_write(setup: Setup) -> list[str]:
    devices = [device for device in _DEVICES if device != _ZERO or not setup["count_memory"]]
    return [*setup["tmpfs"], *setup["writable"], *devices, _TERMINALS]


def _furnishing(setup: Setup) -> Steps:
    """Return the steps to a /proc, a user and empty directories of the cell's own.

    Its /proc comes first: what is looked up in the template's is remembered there, for one cell after the other.
    """
    return [
        kernel.mounting("proc", "/proc", "proc", _HARMLESS | kernel.MS_NOEXEC),
        *(kernel.mounting(_EMPTY, path, "none", kernel.MS_BIND) for path in _HIDDEN if os.path.exists(path)),
        kernel.dumpable(True),  # else /proc/self is root's
        kernel.writing("/proc/self/setgroups", "deny"),
        kernel.writing("/proc/self/uid_map", f"{INSIDE_UID} {INSIDE_UID} 1"),
        kernel.writing("/proc/self/gid_map", f"{INSIDE_UID} {INSIDE_UID} 1"),
        *(
            kernel.mounting("tmpfs", path, "tmpfs", _HARMLESS, f"{_sizes(setup)},mode={_mode(path)}")
            for path in setup["tmpfs"]
        ),
    ]


def _mounting_terminals() -> kernel.Step:
    """Return the step to pseudo-terminals that only the cell itself sees."""
    options = f"newinstance,ptmxmode=0666,mode=0620,max={_MOST_TERMINALS}"
    return kernel.mounting("devpts", _TERMINALS, "devpts", kernel.MS_NOSUID | kernel.MS_NOEXEC, options)


def _restricting(setup: Setup) -> Steps:
    buffers = ("tcp_rmem", "tcp_wmem") if setup["count_memory"] else ()
    waiting = setup["count_memory"] and os.path.exists(_MOST_WAITING)
    return [
        *([kernel.writing(_MOST_WAITING, _WAITING)] if waiting else []),
        *(kernel.writing(f"/proc/sys/net/ipv4/{name}", _SMALL_BUFFERS) for name in buffers),
        kernel.writing("/proc/sys/user/max_inotify_instances", _INOTIFY_INSTANCES),
    ]


def _sealing(setup: Setup, *, locked: bool) -> Steps:
    by_limit = [kernel.writing("/proc/sys/user/max_user_namespaces", "0")]
    by_mount = [  # the directories are bubblewrap's, which knows no inodes
        kernel.mounting("tmpfs", path, "tmpfs", kernel.MS_REMOUNT | _HARMLESS, _sizes(setup)) for path in setup["tmpfs"]
    ]
    # where no lock keeps it from being written to: the other device that reads as zeros, and cannot be mapped
    by_device = [kernel.mounting("/dev/full", _ZERO, "none", kernel.MS_BIND)]
    # by now the cell is in its cgroup, which becomes the root of what it sees
    return [
        kernel.leaving(kernel.CLONE_NEWCGROUP), *(by_limit if setup["proc"] else by_mount),
        *(by_device if setup["count_memory"] and not locked else ()),
    ]  # fmt: skip


def _beneath(setup: Setup) -> list[str]:
    """Return the mounts beneath one of the empty directories, without those beneath another: they come with it."""
    found = [place for place in setup["mounts"] if any(place.startswith(f"{path}/") for path in setup["tmpfs"])]
    return [place for place in dict.fromkeys(found) if not any(place.startswith(f"{other}/") for other in found)]


def fork() -> int:
    """As `os.fork`; the child is process 1 of a cell, in new namespaces. It calls `furnish`, then `seal`."""
    return kernel.fork_into(_NAMESPACES)


def furnish(prepared: Prepared) -> None:
    """In the new namespaces: their own /proc, user, empty directories and loopback.

    Raises:
        OSError: one of them cannot be had.
    """
    beneath = [(place, os.open(place, os.O_PATH | os.O_CLOEXEC)) for place in prepared.beneath]
    kernel.carry_out(prepared.furnishing)
    for place, handle in beneath:
        _bind_again(place, handle)
    give_terminals(prepared)
    kernel.bring_loopback_up()
    kernel.carry_out(prepared.restricting)


def give_terminals(prepared: Prepared) -> None:
    """Let programs in the cell make pseudo-terminals, where the kernel has such; `furnish` does it too."""
    kernel.attempt(prepared.terminals)


def _bind_again(place: str, handle: int) -> None:
    """Put what the template has at *place* and beneath there again: a new empty directory has just hidden it."""
    itself = f"/proc/self/fd/{handle}"
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if os.path.isdir(itself):
        os.mkdir(place)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))
    kernel.carry_out([kernel.mounting(itself, place, "none", kernel.MS_BIND | kernel.MS_REC)])
    os.close(handle)


def _sizes(setup: Setup) -> str:
    return f"size={setup['sizes']['disk_bytes']},nr_inodes={setup['sizes']['inodes']}"


def _mode(path: str) -> str:
    return "1777" if path in ("/tmp", "/dev/shm") else "0700"


def lock(prepared: Prepared) -> int | None:
    """Return what `seal` needs to lock files a second time, after the last mount; nothing where the kernel cannot."""
    return landlock.prepare(prepared.lock) if prepared.lock is not None else None


def seal(prepared: Prepared, lock: int | None) -> None:
    """Give up what a job must not have.

    Raises:
        OSError, ValueError: one of `prepared.layers` cannot be had.
    """
    kernel.carry_out(prepared.sealing)
    kernel.attempt(prepared.bounds)
    kernel.carry_out(prepared.giving_up)
    if prepared.filter is None:
        raise ValueError(prepared.why_no_filter)
    kernel.carry_out([prepared.filter])
    if lock is not None:
        landlock.enforce(lock)
