"""The system calls that no job may make, as BPF bytes for x86_64 and aarch64.

A deny list: namespaces already keep a job from other processes and files; this narrows what is left of the kernel.
Calls newer than `LAST_OFFERED` answer ENOSYS, so that programs fall back to an older one.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
# mseal; numbers from 424 on are the same on both architectures. Looked at and not offered, because nothing needs them:
# 463-466 setxattrat and kin, 467 open_tree_attr, 468 file_getattr, 469 file_setattr, 470 listns, 471 rseq_slice_yield.
LAST_OFFERED = 462

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_X32_BIT = 0x40000000
_TERMINAL_TRICKS = (0x5412, 0x541C, 0x5423)  # TIOCSTI, TIOCLINUX; TIOCSETD would load a line discipline
_PERSONALITIES = (0, 0xFFFFFFFF)  # reset to the default, ask what it is
_PRCTL_REFUSED = (35, 62)  # PR_SET_MM; PR_SCHED_CORE, which can idle the other half of a core
_SCHEDULERS = (0, 3, 5)  # SCHED_OTHER, SCHED_BATCH, SCHED_IDLE
_RESET_ON_FORK = 0x40000000
_SET_USER_ID = 0o4000  # S_ISUID: on the host such a file lends its owner's rights to whoever finds it
_CREATES_A_FILE = 0x40 | 0x400000  # O_CREAT, __O_TMPFILE; without them the kernel does not look at the mode
_PRIO_USER, _IOPRIO_WHO_USER = 2, 3
_WATCHES_READERS = 0x1 | 0x10 | 0x20  # IN_ACCESS, IN_CLOSE_NOWRITE, IN_OPEN: on files of the host, who runs what there
_TELLS_OF_OTHERS = (1024, 1026)  # F_SETLEASE can hold up whoever opens the file; F_NOTIFY tells who reads it
_F_SETPIPE_SZ = 1031  # pipes of a size of their own: memory that only a memory cgroup counts
_MAP_SHARED, _MAP_ANONYMOUS = 0x1, 0x20  # together: pages that stay without being anybody's
_MAP_HUGETLB, _MFD_HUGETLB = 0x40000, 0x4  # reserved huge pages: no memory cgroup counts them
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE = 0
_INTERNET_PROTOCOLS = (0, 6, 17)  # the default, TCP, UDP; not SCTP, DCCP, UDP-Lite, MPTCP, ping
_LANDLOCK = ("landlock_create_ruleset", "landlock_add_rule")  # rules are memory that only a memory cgroup counts
_SOL_SOCKET, _SOL_TCP, _SOL_UDP = 1, 6, 17
_BUFFER_SIZES = (7, 8)  # SO_SNDBUF, SO_RCVBUF: a cgroup does not count them for every kind of socket
_FORCED_SIZES = (32, 33)  # the same as the machine's administrator
_OPTIONS_REFUSED = {
    # SO_ATTACH_FILTER, SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_CBPF, the same with EBPF; SO_TIMESTAMPING, old and new, which
    # keeps copies of what was sent
    _SOL_SOCKET: (26, 50, 51, 52, 37, 65),
    _SOL_TCP: (31,),  # TCP_ULP: TLS in the kernel
    _SOL_UDP: (100,),  # UDP_ENCAP: IPsec
}

_LOAD, _JEQ, _JGT, _JGE, _JSET, _GO_ON, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x05, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_AT_NUMBER, _AT_ARCHITECTURE, _AT_ARGUMENTS = 0, 4, 16

_COMPARED_ONE_BY_ONE = 6

# name: (x86_64, aarch64); None where the architecture has no such call
Numbers = dict[str, tuple[int | None, int | None]]
DENIED: Numbers = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "sched_setattr": (314, 274),
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
    "io_setup": (206, 0), "remap_file_pages": (216, 234), "mbind": (237, 235), "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450), "cachestat": (451, 451), "lsm_get_self_attr": (459, 459),
    "lsm_set_self_attr": (460, 460), "lsm_list_modules": (461, 461),
    # the machine itself
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "syslog": (103, 116), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "uselib": (134, None), "ustat": (136, None),
    "sysfs": (139, None), "_sysctl": (156, None), "lookup_dcookie": (212, 18), "nfsservctl": (180, 42),
}  # fmt: skip
# Memory that neither RLIMIT_DATA nor a size of tmpfs counts: refused where no memory cgroup counts it either.
UNCOUNTED_MEMORY: Numbers = {
    "memfd_create": (319, 279), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190),
    "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "vmsplice": (278, 75),
}  # fmt: skip
CONDITIONAL: Numbers = {
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445),
    "mmap": (9, 222), "open": (2, None), "openat": (257, 56), "openat2": (437, 437), "creat": (85, None),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "mknod": (133, None),
    "mknodat": (259, 33), "memfd_create": (319, 279), "clone": (56, 220), "clone3": (435, 435), "ioctl": (16, 29),
    "prctl": (157, 167), "prlimit64": (302, 261), "sched_setscheduler": (144, 119), "personality": (135, 92),
    "socket": (41, 198), "socketpair": (53, 199), "setsockopt": (54, 208), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "sched_setparam": (142, 118), "sched_setaffinity": (203, 122), "fcntl": (72, 25),
    "inotify_add_watch": (254, 27),
}  # fmt: skip


def build_filter(machine: str, *, unix_sockets: bool, count_memory: bool, sockets: bool = True) -> bytes:
    """Return the filter for *machine* (`platform.machine()`).

    Args:
        unix_sockets: also allow sockets of family AF_UNIX. Without, `socketpair` still gives connected pairs.
        count_memory: also refuse memory that only a memory cgroup could count.
        sockets: False refuses every socket of every family; such pairs stay. For jobs without a network namespace.

    Raises:
        ValueError: there is no filter for this machine.
    """
    if machine not in ARCHITECTURES:
        raise ValueError(f"no system call filter for {machine}")
    column = 0 if machine == "x86_64" else 1
    refused = {**DENIED, **(UNCOUNTED_MEMORY if count_memory else {})}
    answers = {pair[column]: _refuse(errno.EPERM) for pair in refused.values()}
    conditions = _conditions(unix_sockets=unix_sockets, sockets=sockets, count_memory=count_memory)
    for name, body in conditions.items():
        if name not in refused:
            answers[CONDITIONAL[name][column]] = body + _instruction(_RETURN, _ALLOW)
    here = {number: answer for number, answer in answers.items() if number is not None}
    return _preamble(machine) + _search(sorted(here), here)


def _conditions(*, unix_sockets: bool, sockets: bool, count_memory: bool) -> dict[str, bytes]:
    """Return for each conditional call the instructions that refuse it or fall through."""
    orders = (*_TELLS_OF_OTHERS, *((_F_SETPIPE_SZ,) if count_memory else ()))
    schedulers = (*_SCHEDULERS, *(policy | _RESET_ON_FORK for policy in _SCHEDULERS))
    return {
        "mmap": _argument(3) + _refuse_bits(_MAP_HUGETLB, errno.ENOMEM) + (_nothing_shared() if count_memory else b""),
        "openat": _open(flags=2, mode=3),
        "open": _open(flags=1, mode=2),
        "ioctl": _argument(1) + _refuse_if(_TERMINAL_TRICKS, errno.EPERM),
        "prctl": _argument(0) + _refuse_if(_PRCTL_REFUSED, errno.EPERM),
        "clone": _argument(0) + _refuse_bits(_NEW_NAMESPACES, errno.EPERM),
        "clone3": _refuse(errno.ENOSYS),  # its flags are in memory, out of a filter's reach
        "openat2": _refuse(errno.ENOSYS),  # likewise
        "creat": _no_set_user_id(1),
        "chmod": _no_set_user_id(1),
        "fchmod": _no_set_user_id(1),
        "fchmodat": _no_set_user_id(2),
        "fchmodat2": _no_set_user_id(2),
        "mknod": _no_set_user_id(1),
        "mknodat": _no_set_user_id(2),
        "prlimit64": _argument(0) + _demand((0,), errno.EPERM),  # the limits of others, process 1 among them
        "sched_setscheduler": _not_process_1(0) + _argument(1) + _demand(schedulers, errno.EPERM),
        "sched_setparam": _not_process_1(0),
        "sched_setaffinity": _not_process_1(0),
        "inotify_add_watch": _argument(2) + _refuse_bits(_WATCHES_READERS, errno.EPERM),
        "setpriority": _of_own_processes(_PRIO_USER),
        "ioprio_set": _of_own_processes(_IOPRIO_WHO_USER),
        "fcntl": _argument(1) + _refuse_if(orders, errno.EPERM),
        "personality": _argument(0) + _demand(_PERSONALITIES, errno.EPERM),
        "memfd_create": _argument(1) + _refuse_bits(_MFD_HUGETLB, errno.EPERM),
        "socket": _socket(unix_sockets) if sockets else _refuse(errno.EAFNOSUPPORT),
        "socketpair": _socketpair(any_type=unix_sockets and sockets),
        "setsockopt": _sizes_as_they_are() + _setsockopt(_OPTIONS_REFUSED),
        **(dict.fromkeys(_LANDLOCK, _refuse(errno.ENOSYS)) if count_memory and sockets else {}),
    }


def _nothing_shared() -> bytes:
    """Of the flags in the accumulator: a file's own pages are counted where the file is, and these nowhere."""
    return _when_bits(_MAP_ANONYMOUS, _refuse_bits(_MAP_SHARED, errno.ENOMEM))


def _not_process_1(pid: int) -> bytes:
    """It guards the cell under the same user: no job may slow it down."""
    return _argument(pid) + _refuse_if((1,), errno.EPERM)


def _of_own_processes(every_process_of_a_user: int) -> bytes:
    return _argument(0) + _refuse_if((every_process_of_a_user,), errno.EPERM) + _not_process_1(1)


def _no_set_user_id(mode: int) -> bytes:
    return _argument(mode) + _refuse_bits(_SET_USER_ID, errno.EPERM)


def _open(*, flags: int, mode: int) -> bytes:
    return _argument(flags) + _when_bits(_CREATES_A_FILE, _no_set_user_id(mode))


def _socket(unix_sockets: bool) -> bytes:
    families = (_AF_INET, _AF_INET6, _AF_NETLINK, *((_AF_UNIX,) if unix_sockets else ()))
    streams_and_datagrams = _refuse_bits(0xC, errno.EPROTONOSUPPORT) + _when_bits(
        0x1, _refuse_bits(0x2, errno.EPROTONOSUPPORT)
    )  # SOCK_STREAM is 1, SOCK_DGRAM 2, SOCK_RAW 3; SOCK_NONBLOCK and SOCK_CLOEXEC are higher bits
    internet = _argument(1) + streams_and_datagrams + _argument(2) + _demand(_INTERNET_PROTOCOLS, errno.EPROTONOSUPPORT)
    netlink = _argument(2) + _demand((_NETLINK_ROUTE,), errno.EAFNOSUPPORT)
    return (
        _argument(0) + _demand(families, errno.EAFNOSUPPORT)
        + _when((_AF_INET, _AF_INET6), internet)
        + _argument(0) + _when((_AF_NETLINK,), netlink)
    )  # fmt: skip


def _socketpair(*, any_type: bool) -> bytes:
    """Only AF_UNIX: the kernel makes sockets of the family asked for before it says that they come in no pairs.

    A datagram pair is an AF_UNIX socket like any other: it sends to every name that it can reach. SOCK_RAW is the same.
    """
    body = _argument(0) + _demand((_AF_UNIX,), errno.EAFNOSUPPORT)
    return body if any_type else body + _argument(1) + _refuse_bits(0xA, errno.EPROTONOSUPPORT)


def _sizes_as_they_are() -> bytes:
    """A size that is asked for is a wish: programs that cannot have it go on, and those that are refused may not."""
    wishes = _when(_BUFFER_SIZES, _refuse(0)) + _refuse_if(_FORCED_SIZES, errno.EPERM)
    return _argument(1) + _when((_SOL_SOCKET,), _argument(2) + wishes)


def _setsockopt(refused: Mapping[int, Sequence[int]]) -> bytes:
    body = b""
    for level, options in refused.items():
        body += _argument(1) + _when((level,), _argument(2) + _refuse_if(options, errno.ENOPROTOOPT))
    return body


def _search(numbers: Sequence[int], answers: Mapping[int, bytes]) -> bytes:
    """Return the instructions that give the answer for the number in the accumulator, one of *numbers*, or allow it.

    A search and not a list: the kernel tries each call that there is when a filter is installed, for each cell.
    """
    if len(numbers) > _COMPARED_ONE_BY_ONE:
        middle = len(numbers) // 2
        below = _search(numbers[:middle], answers)
        return (
            _jump(_JGE, numbers[middle], 0, 1) + _instruction(_GO_ON, len(below) // 8)
            + below + _search(numbers[middle:], answers)
        )  # fmt: skip
    program = b""
    for answer in dict.fromkeys(answers[number] for number in numbers):
        program += _when([number for number in numbers if answers[number] == answer], answer)
    return program + _instruction(_RETURN, _ALLOW)


def _preamble(machine: str) -> bytes:
    program = _load(_AT_ARCHITECTURE) + _jump(_JEQ, ARCHITECTURES[machine], 1, 0) + _instruction(_RETURN, _KILL)
    program += _load(_AT_NUMBER)
    if machine == "x86_64":
        program += _jump(_JGE, _X32_BIT, 0, 1) + _refuse(errno.ENOSYS)
    return program + _jump(_JGT, LAST_OFFERED, 0, 1) + _refuse(errno.ENOSYS)


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


def _refuse_if(values: Sequence[int], number: int) -> bytes:
    return b"".join(_jump(_JEQ, value, 0, 1) + _refuse(number) for value in values)


def _refuse_bits(mask: int, number: int) -> bytes:
    return _when_bits(mask, _refuse(number))


def _demand(values: Sequence[int], number: int) -> bytes:
    """Refuse what is none of *values*."""
    return b"".join(_jump(_JEQ, value, len(values) - index, 0) for index, value in enumerate(values)) + _refuse(number)


def _when(values: Sequence[int], body: bytes) -> bytes:
    """Run *body*, which may change the accumulator, if that is one of *values*."""
    *others, last = values
    tests = b"".join(_jump(_JEQ, value, len(others) - index, 0) for index, value in enumerate(others))
    return tests + _jump(_JEQ, last, 0, len(body) // 8) + body


def _when_bits(mask: int, body: bytes) -> bytes:
    return _jump(_JSET, mask, 0, len(body) // 8) + body
