"""What every probe has at hand inside. Its text stands before the probe's own, so it is standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json  # noqa: F401  # the line that fills FACTS needs it
import os
import platform
import signal
from collections.abc import Iterator
from typing import Any, NoReturn

FACTS: dict[str, Any] = {}

_NUMBERS = {  # name: (x86_64, aarch64)
    "acct": (163, 89), "mbind": (237, 235), "remap_file_pages": (216, 234), "set_mempolicy": (238, 237),
    "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280), "chroot": (161, 51),
    "clock_adjtime": (305, 266), "clock_settime": (227, 112), "clone": (56, 220), "clone3": (435, 435),
    "delete_module": (176, 106), "fanotify_init": (300, 262), "fanotify_mark": (301, 263), "finit_module": (313, 273),
    "fsopen": (430, 430), "fspick": (433, 433), "init_module": (175, 105), "io_setup": (206, 0),
    "io_uring_setup": (425, 425), "ioperm": (173, -1), "iopl": (172, -1), "ioprio_set": (251, 30),
    "kcmp": (312, 272), "kexec_file_load": (320, 294), "kexec_load": (246, 104), "keyctl": (250, 219),
    "listmount": (458, 458), "lsm_list_modules": (461, 461), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "migrate_pages": (256, 238), "mknodat": (259, 33), "modify_ldt": (154, -1), "mount": (165, 40),
    "mount_setattr": (442, 442), "move_mount": (429, 429), "move_pages": (279, 239), "mq_open": (240, 180),
    "mq_timedreceive": (243, 183), "mq_timedsend": (242, 182), "msgget": (68, 186), "msgrcv": (70, 188),
    "msgsnd": (69, 189), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "open_tree": (428, 428),
    "open_tree_attr": (467, 467), "perf_event_open": (298, 241), "personality": (135, 92), "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41), "prctl": (157, 167), "prlimit64": (302, 261), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "ptrace": (101, 117), "quotactl": (179, 60), "reboot": (169, 142), "request_key": (249, 218),
    "sched_setattr": (314, 274), "seccomp": (317, 277), "semget": (64, 190), "setdomainname": (171, 162),
    "sethostname": (170, 161), "setns": (308, 268), "settimeofday": (164, 170), "setxattrat": (463, 463),
    "shmat": (30, 196), "shmget": (29, 194), "statmount": (457, 457), "swapoff": (168, 225), "swapon": (167, 224),
    "sysfs": (139, -1), "syslog": (103, 116), "umount2": (166, 39), "unshare": (272, 97), "userfaultfd": (323, 282),
    "ustat": (136, -1), "vhangup": (153, 58), "vmsplice": (278, 75),
}  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_reasons: list[str] = []


def secret() -> str:
    """What only the other side knows. It stands here backwards, so that finding one's own code is no finding."""
    return str(FACTS["terces"])[::-1]


def call(name: str | int, *arguments: int | bytes | ctypes.Array[Any] | None) -> int:
    """Make a system call by name or number. Raises OSError as the kernel says."""
    number = name if isinstance(name, int) else _NUMBERS[name][platform.machine() != "x86_64"]
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    ctypes.set_errno(0)
    result = int(_libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, errno.errorcode.get(code, str(code)))
    return result


def escaped(what: object) -> NoReturn:
    print(f"ESCAPED: {what}", flush=True)
    os._exit(0)


def stopped(why: object = "") -> NoReturn:
    print(f"STOPPED: {why or '; '.join(_reasons)}", flush=True)
    os._exit(0)


def tried() -> None:
    """Say that the attempt was made; what came of it is seen from outside."""
    print("TRIED", flush=True)


@contextlib.contextmanager
def attempt(what: str) -> Iterator[None]:
    """Go on if the body is refused, and remember why."""
    try:
        yield
    except OSError as error:
        _reasons.append(f"{what}: {errno.errorcode.get(error.errno or 0, error)}")


def reaches(name: str | int, *arguments: int | bytes | ctypes.Array[Any] | None) -> NoReturn:
    """Escaped if the kernel carries out the call, or refuses it only after a look at its arguments."""
    try:
        call(name, *arguments)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS, errno.EACCES):
            stopped(errno.errorcode[error.errno])
        escaped(f"the kernel looked at the arguments: {errno.errorcode.get(error.errno or 0, error)}")
    escaped("the kernel did it")


def opens(*names: str, flags: int = os.O_RDONLY) -> None:
    """Escaped if any of *names* can be opened."""
    for name in names:
        with attempt(name):
            os.close(os.open(name, flags))
            escaped(f"opened {name}")


def processes() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def hold() -> None:
    """Open the fifo that only a live process can keep open, and say that we are here."""
    os.write(os.open(FACTS["fifo"], os.O_WRONLY), b"here\n")


def ready() -> None:
    """Let the other job start, and stay."""
    hold()
    print("LEFT", flush=True)


def in_child(number: int = 1) -> bool:
    """Fork so many children; whether we are one of them."""
    return any(os.fork() == 0 for _ in range(number))


def wait() -> NoReturn:
    while True:
        signal.pause()


def keep_for_a_while() -> None:
    """Keep what was taken for as long as a watch may need to see it."""
    import time

    time.sleep(FACTS["hold_s"])
