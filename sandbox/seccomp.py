"""The system calls that no job may make, as BPF bytes for x86_64 and aarch64.

A deny list: namespaces already keep a job from other processes and files; this narrows what is left of the kernel.
Numbers that are newer than the last one reviewed answer ENOSYS, so that programs fall back to an older call.
"""

from __future__ import annotations

import errno
import struct

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
LAST_REVIEWED = 462  # mseal; numbers from 424 on are the same on both architectures

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_X32_BIT = 0x40000000
_TERMINAL_INJECTIONS = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE = 0

_LOAD, _JEQ, _JGT, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_AT_NUMBER, _AT_ARCHITECTURE, _AT_ARGUMENTS = 0, 4, 16

# name: (x86_64, aarch64); None where the architecture has no such call
Numbers = dict[str, tuple[int | None, int | None]]
DENIED: Numbers = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "migrate_pages": (256, 238), "move_pages": (279, 239),
    # mounts, roots and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "statmount": (457, 457), "listmount": (458, 458),
    # files by number instead of by name, quotas, swap
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "swapon": (167, 224), "swapoff": (168, 225), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    # keys
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # large or young parts of the kernel
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "memfd_secret": (447, 447),
    "lsm_get_self_attr": (459, 459), "lsm_set_self_attr": (460, 460), "lsm_list_modules": (461, 461),
    # the machine itself
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "syslog": (103, 116), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "uselib": (134, None), "ustat": (136, None),
    "sysfs": (139, None), "lookup_dcookie": (212, 18), "nfsservctl": (180, 42),
}  # fmt: skip
# Memory that neither RLIMIT_DATA nor a size of tmpfs counts: refused where no memory cgroup counts it either.
UNCOUNTED_MEMORY: Numbers = {
    "memfd_create": (319, 279), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190),
    "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
}  # fmt: skip
CONDITIONAL: Numbers = {
    "clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "ioctl": (16, 29), "personality": (135, 92),
}  # fmt: skip


def build_filter(machine: str, *, unix_sockets: bool, count_memory: bool) -> bytes:
    """Return the filter for *machine* (`platform.machine()`).

    Args:
        unix_sockets: also allow sockets of family AF_UNIX (`socketpair` is always allowed).
        count_memory: also refuse memory that only a memory cgroup could count.

    Raises:
        ValueError: there is no filter for this machine.
    """
    if machine not in ARCHITECTURES:
        raise ValueError(f"no system call filter for {machine}")
    column = 0 if machine == "x86_64" else 1
    refused = {**DENIED, **(UNCOUNTED_MEMORY if count_memory else {})}
    numbers = sorted(pair[column] or -1 for pair in refused.values() if pair[column] is not None)
    program = _preamble(machine)
    program += _conditional({name: pair[column] or -1 for name, pair in CONDITIONAL.items()}, unix_sockets)
    for number in numbers:
        program += _jump(_JEQ, number, 0, 1) + _refuse(errno.EPERM)
    return program + _instruction(_RETURN, _ALLOW)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, offset)


def _argument(index: int) -> bytes:
    """Load the low half of an argument: all that the kernel looks at for an int (little-endian machines)."""
    return _load(_AT_ARGUMENTS + 8 * index)


def _jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    return _instruction(code, value, if_true, if_false)


def _refuse(number: int) -> bytes:
    return _instruction(_RETURN, _ERRNO | number)


def _preamble(machine: str) -> bytes:
    program = _load(_AT_ARCHITECTURE) + _jump(_JEQ, ARCHITECTURES[machine], 1, 0) + _instruction(_RETURN, _KILL)
    program += _load(_AT_NUMBER)
    if machine == "x86_64":
        program += _jump(_JGE, _X32_BIT, 0, 1) + _refuse(errno.ENOSYS)
    return program + _jump(_JGT, LAST_REVIEWED, 0, 1) + _refuse(errno.ENOSYS)


def _guarded(number: int, body: bytes) -> bytes:
    """Run *body* for one call number only; the accumulator holds the number before and after."""
    body += _load(_AT_NUMBER)
    return _jump(_JEQ, number, 0, len(body) // 8) + body


def _conditional(numbers: dict[str, int], unix_sockets: bool) -> bytes:
    program = _guarded(numbers["clone3"], _refuse(errno.ENOSYS))  # its flags are in memory, out of a filter's reach
    program += _guarded(numbers["clone"], _argument(0) + _jump(_JSET, _NEW_NAMESPACES, 0, 1) + _refuse(errno.EPERM))
    injections = b"".join(_jump(_JEQ, request, 0, 1) + _refuse(errno.EPERM) for request in _TERMINAL_INJECTIONS)
    program += _guarded(numbers["ioctl"], _argument(1) + injections)
    allowed = _jump(_JEQ, 0, 2, 0) + _jump(_JEQ, 0xFFFFFFFF, 1, 0)  # reset to the default, ask what it is
    program += _guarded(numbers["personality"], _argument(0) + allowed + _refuse(errno.EPERM))
    return program + _guarded(numbers["socket"], _sockets(unix_sockets))


def _sockets(unix_sockets: bool) -> bytes:
    families = (_AF_INET, _AF_INET6, *((_AF_UNIX,) if unix_sockets else ()))
    netlink = _jump(_JEQ, _AF_NETLINK, 0, 2) + _argument(2) + _jump(_JEQ, _NETLINK_ROUTE, 1, 0)
    tail = netlink + _refuse(errno.EAFNOSUPPORT)
    body = _argument(0)
    for index, family in enumerate(families):
        still_to_come = len(families) - index - 1 + len(tail) // 8
        body += _jump(_JEQ, family, still_to_come, 0)
    return body + tail
