"""The system call filter: its answers in a small interpreter on both architectures, then in the kernel itself."""

from __future__ import annotations

import errno
import importlib
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SANDBOX = Path(__file__).parents[2] / "sandbox"
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x50000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
FOREIGN = {"x86_64": (0x40000003, 0xC00000B7), "aarch64": (0x40000028, 0xC000003E)}
HIGH = 0xDEADBEEF_00000000
MACHINES = pytest.mark.parametrize("machine", list(ARCHITECTURES))

HEADERS = {
    "x86_64": (
        r"#define __NR_(\w+)\s+(\d+)",
        ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    ),
    "aarch64": (r"#define __NR(?:3264)?_(\w+)\s+(\d+)", ("/usr/include/asm-generic/unistd.h",)),
}
# Newer than the headers of old distributions; the same on both architectures. Source: Linux 7.0, scripts/syscall.tbl.
YOUNG = {
    "cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454, "futex_wait": 455,
    "futex_requeue": 456, "statmount": 457, "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460,
    "lsm_list_modules": 461, "mseal": 462, "setxattrat": 463, "getxattrat": 464, "listxattrat": 465,
    "removexattrat": 466, "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469, "listns": 470,
    "rseq_slice_yield": 471,
}  # fmt: skip
# What every job needs, so a later change of the filter must not take it away.
KEPT = (
    "read", "write", "openat", "close", "mkdirat", "close_range", "execve", "execveat", "wait4", "waitid",
    "kill", "tgkill", "pidfd_open", "pidfd_send_signal", "futex", "rseq", "set_robust_list", "splice", "tee",
    "vmsplice", "sendfile", "copy_file_range", "get_mempolicy", "getrandom", "statx", "landlock_create_ruleset",
    "landlock_add_rule", "landlock_restrict_self", "seccomp", "sched_setaffinity", "sched_yield", "setpriority",
    "epoll_pwait2", "faccessat2", "fchmodat2", "mseal", "map_shadow_stack", "futex_wait", "mprotect", "mremap",
    "madvise", "pkey_mprotect", "connect", "bind", "listen", "accept4", "sendmsg", "recvmsg", "getsockopt",
    "inotify_init1", "eventfd2", "signalfd4", "timerfd_create",
)  # fmt: skip


@pytest.fixture(scope="module")
def seccomp() -> Any:
    sys.path.insert(0, str(SANDBOX))
    try:
        return importlib.import_module("seccomp")
    finally:
        sys.path.pop(0)


def evaluate(program: bytes, *, architecture: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """Run a filter as the kernel would; a jump out of the program or an unknown instruction is an error."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    place, accumulator = 0, 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("=HBBI", program, 8 * place)
        place += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
            continue
        if code == 0x05:
            place += value
            continue
        holds = {
            0x15: accumulator == value, 0x25: accumulator > value, 0x35: accumulator >= value,
            0x45: accumulator & value != 0,
        }[code]  # fmt: skip
        place += if_true if holds else if_false


class Filter:
    """One filter, asked by the names of calls."""

    def __init__(self, seccomp: Any, machine: str, **options: Any) -> None:
        given = {"unix_sockets": False, "count_memory": False, **options}
        self.program = seccomp.build_filter(machine, **given)
        self._tables = {**seccomp.DENIED, **seccomp.UNCOUNTED_MEMORY, **seccomp.CONDITIONAL}
        self._machine = machine

    def number(self, name: str) -> int | None:
        if name in self._tables:
            column: int | None = self._tables[name][0 if self._machine == "x86_64" else 1]
            return column
        return numbers_of_the_kernel(self._machine).get(name)

    def __call__(self, name: str | int, *arguments: int, architecture: int | None = None) -> int:
        number = name if isinstance(name, int) else self.number(name)
        assert number is not None
        on = ARCHITECTURES[self._machine] if architecture is None else architecture
        return evaluate(self.program, architecture=on, number=number, arguments=arguments)


def numbers_of_the_kernel(machine: str) -> dict[str, int]:
    """Return the numbers that the installed headers of the kernel give, with the young ones that they may lack."""
    pattern, places = HEADERS[machine]
    text = "".join(Path(place).read_text() for place in places if Path(place).exists())
    if not text:
        pytest.skip("the kernel's headers are not installed (linux-libc-dev)")
    return {**YOUNG, **{name: int(number) for name, number in re.findall(pattern, text)}}


# the tables


@MACHINES
def test_the_numbers_are_those_of_the_kernels_headers(seccomp: Any, machine: str) -> None:
    known = numbers_of_the_kernel(machine)
    here = Filter(seccomp, machine)
    names = [*seccomp.DENIED, *seccomp.UNCOUNTED_MEMORY, *seccomp.CONDITIONAL]
    compared = {name: here.number(name) for name in names if here.number(name) is not None}

    assert {name: known.get(name) for name in compared} == compared
    assert not [name for name in names if here.number(name) is None and name in known]


@MACHINES
def test_every_denied_call_answers_eperm_and_ordinary_ones_pass(seccomp: Any, machine: str) -> None:
    here = Filter(seccomp, machine)
    denied = [name for name in seccomp.DENIED if here.number(name) is not None]

    assert {name: here(name) for name in denied} == dict.fromkeys(denied, REFUSE | errno.EPERM)
    assert {name: here(name) for name in KEPT if here.number(name) is not None} == {
        name: ALLOW for name in KEPT if here.number(name) is not None
    }


@MACHINES
def test_no_number_is_refused_by_accident(seccomp: Any, machine: str) -> None:
    here = Filter(seccomp, machine, count_memory=True)
    named = {here.number(name) for name in (*seccomp.DENIED, *seccomp.UNCOUNTED_MEMORY, *seccomp.CONDITIONAL)}
    others = set(range(seccomp.LAST_OFFERED + 1)) - named

    assert {here(number) for number in others} == {ALLOW}


@MACHINES
def test_calls_newer_than_the_last_offered_do_not_exist(seccomp: Any, machine: str) -> None:
    here = Filter(seccomp, machine)
    young = range(YOUNG["setxattrat"], YOUNG["rseq_slice_yield"] + 1)

    assert {here(number) for number in (*young, 472, 511, 512, 547, 999, 0x3FFFFFFF)} == {REFUSE | errno.ENOSYS}


@MACHINES
def test_another_architecture_kills_whatever_the_call(seccomp: Any, machine: str) -> None:
    here = Filter(seccomp, machine)

    assert {here(0, architecture=other) for other in (*FOREIGN[machine], 0)} == {KILL}


def test_x32_does_not_exist(seccomp: Any) -> None:
    here = Filter(seccomp, "x86_64")

    assert {here(0x40000000 | number) for number in (0, 39, 101, 520)} == {REFUSE | errno.ENOSYS}
    assert here(0xFFFFFFFF - (1 << 32)) == REFUSE | errno.ENOSYS


def test_a_machine_without_a_filter_is_refused(seccomp: Any) -> None:
    with pytest.raises(ValueError, match="riscv64"):
        seccomp.build_filter("riscv64", unix_sockets=False, count_memory=False)


@MACHINES
def test_memory_that_nothing_counts_is_refused_only_where_asked(seccomp: Any, machine: str) -> None:
    lenient, strict = Filter(seccomp, machine), Filter(seccomp, machine, count_memory=True)

    assert {lenient(name) for name in seccomp.UNCOUNTED_MEMORY} == {ALLOW}
    assert {strict(name) for name in seccomp.UNCOUNTED_MEMORY} == {REFUSE | errno.EPERM}


# arguments; HIGH stands in the half of a register that the kernel does not look at

PERM, NO_PROTOCOL, NO_FAMILY = REFUSE | errno.EPERM, REFUSE | errno.EPROTONOSUPPORT, REFUSE | errno.EAFNOSUPPORT
CLOEXEC_NONBLOCK = 0x80800
VERDICTS: list[tuple[str, tuple[int, ...], int]] = [
    ("clone", (17,), ALLOW),
    ("clone", (0x3D0F00,), ALLOW),  # a thread of glibc
    ("clone", (0x4111,), ALLOW),  # vfork, as posix_spawn does it
    *[("clone", (flag | 17,), PERM) for flag in (1 << 17, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30)],
    ("clone", (HIGH | 1 << 28,), PERM),
    ("clone", (HIGH | 17,), ALLOW),
    ("clone3", (0, 88), REFUSE | errno.ENOSYS),
    ("ioctl", (0, 0x5401), ALLOW),  # TCGETS
    ("ioctl", (0, 0x5413), ALLOW),  # TIOCGWINSZ
    ("ioctl", (0, 0x5421), ALLOW),  # FIONBIO
    ("ioctl", (0, 0x540E), ALLOW),  # TIOCSCTTY
    *[("ioctl", (0, high | request), PERM) for request in (0x5412, 0x541C, 0x5423) for high in (0, HIGH)],
    ("prctl", (15,), ALLOW),  # PR_SET_NAME
    ("prctl", (36, 1), ALLOW),
    ("prctl", (35, 14), PERM),
    ("prctl", (HIGH | 35, 14), PERM),
    ("prctl", (62, 1), PERM),
    ("prlimit64", (0, 7), ALLOW),
    ("prlimit64", (HIGH, 7), ALLOW),
    ("prlimit64", (1, 7), PERM),
    *[("sched_setscheduler", (0, policy), ALLOW) for policy in (0, 3, 5, 0x40000000, 0x40000003)],
    *[("sched_setscheduler", (0, policy), PERM) for policy in (1, 2, 6, 7, 0x40000001, HIGH | 1)],
    *[("personality", (value,), ALLOW) for value in (0, 0xFFFFFFFF, HIGH)],
    *[("personality", (value,), PERM) for value in (8, 0x40000, 0x400000, HIGH | 0x400000)],
    ("mmap", (0, 4096, 3, 0x22), ALLOW),
    ("mmap", (0, 4096, 3, 0x22 | 0x40000), REFUSE | errno.ENOMEM),
    ("mmap", (0, 4096, 3, HIGH | 0x15040022), REFUSE | errno.ENOMEM),
    *[("fcntl", (3, high | order), PERM) for order in (1024, 1026) for high in (0, HIGH)],  # F_SETLEASE, F_NOTIFY
    *[("fcntl", (3, order), ALLOW) for order in (*range(17), *range(36, 39), 1025, 1030, 1031, 1032, 1033, 1034)],
    ("mmap", (0, 4096, 3, 0x21), ALLOW),
    ("memfd_create", (0, 1), ALLOW),
    ("memfd_create", (0, HIGH | 5), PERM),
    *[("socket", (family, kind | CLOEXEC_NONBLOCK, 0), ALLOW) for family in (2, 10) for kind in (1, 2)],
    ("socket", (2, 1, 6), ALLOW),
    ("socket", (10, 2, 17), ALLOW),
    ("socket", (16, 3, 0), ALLOW),
    ("socket", (HIGH | 2, HIGH | 1, HIGH), ALLOW),
    *[("socket", (2, kind, 0), NO_PROTOCOL) for kind in (3, 4, 5, 6, 10, HIGH | 3)],
    *[("socket", (10, 1, protocol), NO_PROTOCOL) for protocol in (132, 262, 33, 256)],  # SCTP, MPTCP, DCCP, SMC
    *[("socket", (2, 2, protocol), NO_PROTOCOL) for protocol in (1, 136, 115, HIGH | 1)],  # ping, UDP-Lite, L2TP
    *[("socket", (family, 1, 0), NO_FAMILY) for family in (1, 0, 3, 17, 21, 30, 31, 38, 40, 43, 44, HIGH | 38)],
    *[("socket", (16, 3, protocol), NO_FAMILY) for protocol in (2, 4, 9, 12, 16)],
    *[("socketpair", (1, kind | CLOEXEC_NONBLOCK, 0), ALLOW) for kind in (1, 5)],
    *[("socketpair", (1, kind, 0), NO_PROTOCOL) for kind in (2, 3, HIGH | 2)],
    *[("socketpair", (family, 1, 0), NO_FAMILY) for family in (2, 10, 16, 30, 38, 40, HIGH | 38)],
    ("openat", (0xFFFFFF9C, 0, 0o0, 0o4755), ALLOW),  # what stands there without O_CREAT is not a mode
    ("openat", (0xFFFFFF9C, 0, HIGH | 0o2001, HIGH | 0o7777), ALLOW),
    ("openat", (0xFFFFFF9C, 0, 0o101, 0o755), ALLOW),
    ("openat", (0xFFFFFF9C, 0, 0o101, HIGH | 0o3755), ALLOW),  # the group's bit
    *[
        ("openat", (0xFFFFFF9C, 0, flags, mode), PERM)
        for flags in (0o101, HIGH | 0o100, 0o20200002, 0o20000000)
        for mode in (0o4000, 0o4755, HIGH | 0o6711)
    ],
    ("openat2", (0xFFFFFF9C, 0, 0, 24), REFUSE | errno.ENOSYS),
    *[("fchmod", (3, mode), ALLOW) for mode in (0o755, 0o3777, HIGH | 0o755)],
    *[("fchmod", (3, mode), PERM) for mode in (0o4755, 0o4000, HIGH | 0o7777)],
    *[(name, (0xFFFFFF9C, 0, 0o755), ALLOW) for name in ("fchmodat", "fchmodat2", "mknodat")],
    *[(name, (0xFFFFFF9C, 0, 0o104755), PERM) for name in ("fchmodat", "fchmodat2", "mknodat")],
    ("setsockopt", (3, 6, 1), ALLOW),  # TCP_NODELAY
    ("setsockopt", (3, 1, 2), ALLOW),  # SO_REUSEADDR
    ("setsockopt", (3, 41, 26), ALLOW),  # IPV6_V6ONLY; 26 means something else there
    ("setsockopt", (3, 1, 31), ALLOW),
    *[("setsockopt", (3, 1, name), REFUSE | errno.ENOPROTOOPT) for name in (26, 37, 50, 51, 52, 65, HIGH | 26)],
    *[("setsockopt", (3, 1, name), REFUSE | 0) for name in (7, 8, HIGH | 7)],  # sizes of buffers: as if it were done
    *[("setsockopt", (3, 1, name), PERM) for name in (32, 33)],
    *[("setsockopt", (3, 6, name), ALLOW) for name in (7, 8)],  # TCP_SYNCNT, TCP_LINGER2
    ("setsockopt", (3, HIGH | 6, 31), REFUSE | errno.ENOPROTOOPT),
    ("setsockopt", (3, 17, 100), REFUSE | errno.ENOPROTOOPT),
]


@MACHINES
def test_arguments_decide_and_their_high_halves_do_not(seccomp: Any, machine: str) -> None:
    here = Filter(seccomp, machine)
    wrong = [(name, hex_of(given), here(name, *given)) for name, given, want in VERDICTS if here(name, *given) != want]

    assert wrong == []


@MACHINES
def test_where_no_cgroup_counts_no_memory_is_shared_without_a_file(seccomp: Any, machine: str) -> None:
    here = Filter(seccomp, machine, count_memory=True)

    assert {here("mmap", 0, 4096, 3, flags) for flags in (0x21, 0x23, HIGH | 0x21, 0x108021)} == {REFUSE | errno.ENOMEM}
    assert {here("mmap", 0, 4096, 3, flags) for flags in (0x22, 0x1, 0x2, 0x3, 0x20022, HIGH | 0x22, 0x8001)} == {ALLOW}
    assert {here("fcntl", 3, order) for order in (1024, 1026, 1031)} == {PERM} and here("fcntl", 3, 1) == ALLOW


@MACHINES
def test_rules_of_landlock_are_memory_that_is_refused_in_a_cell_where_no_cgroup_counts_it(
    seccomp: Any, machine: str
) -> None:
    counted, cell = Filter(seccomp, machine), Filter(seccomp, machine, count_memory=True)
    plain = Filter(seccomp, machine, count_memory=True, sockets=False)

    assert {here(number) for here in (counted, plain) for number in (444, 445, 446)} == {ALLOW}
    assert [cell(number) for number in (444, 445, 446)] == [REFUSE | errno.ENOSYS, REFUSE | errno.ENOSYS, ALLOW]


def hex_of(arguments: tuple[int, ...]) -> list[str]:
    return [hex(argument) for argument in arguments]


def test_the_old_ways_to_make_a_set_user_id_file_are_closed_too(seccomp: Any) -> None:
    """Calls that only x86_64 has."""
    here = Filter(seccomp, "x86_64")

    assert {here("open", 0, 0o1, 0o4755), here("open", 0, 0o101, 0o755)} == {ALLOW}
    assert {here(name, 0, 0o755) for name in ("creat", "chmod", "mknod")} == {ALLOW}
    assert {here(name, 0, HIGH | 0o4755) for name in ("creat", "chmod", "mknod")} == {PERM}
    assert {here("open", 0, flags, 0o4755) for flags in (0o101, 0o20200002)} == {PERM}


@MACHINES
def test_a_grant_of_unix_sockets_opens_their_family_and_no_other(seccomp: Any, machine: str) -> None:
    here = Filter(seccomp, machine, unix_sockets=True)

    assert {here("socket", 1, kind, 0) for kind in (1, 2, 5)} == {ALLOW}
    assert {here("socketpair", 1, kind, 0) for kind in (1, 2, 5)} == {ALLOW}
    assert {here("socket", 38, 5, 0), here("socketpair", 38, 1, 0), here("socket", 16, 3, 9)} == {NO_FAMILY}


@MACHINES
@pytest.mark.parametrize("unix_sockets", [False, True])
def test_without_sockets_there_are_connected_pairs_and_nothing_else(
    seccomp: Any, machine: str, unix_sockets: bool
) -> None:
    here = Filter(seccomp, machine, sockets=False, unix_sockets=unix_sockets)

    assert {here("socket", family, 1, 0) for family in range(64)} == {NO_FAMILY}
    assert here("socketpair", 1, 1, 0) == ALLOW
    assert {here("socketpair", 1, 2, 0), here("socketpair", 1, 3, 0)} == {NO_PROTOCOL}


# in the kernel

LIVE = pytest.mark.skipif(platform.machine() not in ARCHITECTURES, reason="no filter for this machine")
INSTALL = f"""
import ctypes, json, os, sys
sys.path.insert(0, {str(SANDBOX)!r})
import kernel, seccomp
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(argument) for argument in arguments])
    return ctypes.get_errno() if result == -1 else 0
def install(**options):
    program = seccomp.build_filter(os.uname().machine, **{{"unix_sockets": False, "count_memory": False, **options}})
    kernel.carry_out([kernel.no_new_privileges(), kernel.filtering(program)])
"""


def in_filter(code: str, *, options: str = "", **fields: Any) -> Any:
    """Run *code* in a fresh interpreter behind the filter and return the JSON that it prints."""
    script = f"{INSTALL}\ninstall({options})\n{code}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", script], capture_output=True, text=True, timeout=60, check=False,
        **fields,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@LIVE
def test_every_denied_call_is_refused_by_the_filter_and_not_by_something_else() -> None:
    """The same program with another error number, one that the kernel never gives: it shows whose answer it is."""
    code = """
import errno, struct
column = 0 if os.uname().machine == "x86_64" else 1
tables = {**seccomp.DENIED, **seccomp.UNCOUNTED_MEMORY}
program = bytearray(seccomp.build_filter(os.uname().machine, unix_sockets=False, count_memory=True))
for place in range(0, len(program), 8):
    code, _, _, value = struct.unpack_from("=HBBI", program, place)
    if (code, value) == (6, 0x50000 | errno.EPERM):
        struct.pack_into("=I", program, place + 4, 0x50000 | 777)
kernel.carry_out([kernel.no_new_privileges(), kernel.filtering(bytes(program))])
numbers = {name: pair[column] for name, pair in tables.items() if pair[column] is not None}
print(json.dumps({name: call(number, -1, -1, -1, -1, -1, -1) for name, number in numbers.items()}))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", INSTALL + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)

    assert len(answers) > 80
    assert {name: answer for name, answer in answers.items() if answer != 777} == {}


@LIVE
def test_young_calls_are_answered_with_enosys_by_the_kernel_too() -> None:
    assert in_filter("print(json.dumps(sorted({call(n, -1, -1, -1, -1) for n in range(463, 475)})))") == [errno.ENOSYS]


CONNECT_BY_PAIR = """
import socket
pair, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
pair.sendto(b"out", sys.argv[1])
"""


@LIVE
def test_a_pair_of_sockets_is_no_way_to_a_socket_with_a_name(tmp_path: Path) -> None:
    """Datagram pairs can send to any name: with the control, a message arrives; behind the filter there is no pair."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        place = str(tmp_path / "daemon")
        daemon.bind(place)
        daemon.setblocking(False)
        subprocess.run([sys.executable, "-I", "-c", "import sys\n" + CONNECT_BY_PAIR, place], check=True, timeout=30)
        assert daemon.recv(16) == b"out"

        script = f"{INSTALL}\ninstall()\n{CONNECT_BY_PAIR}"
        done = subprocess.run([sys.executable, "-I", "-c", script, place], capture_output=True, timeout=30, check=False)
        with pytest.raises(BlockingIOError):
            daemon.recv(16)
    assert b"Protocol not supported" in done.stderr


@LIVE
def test_huge_pages_and_real_time_are_refused_and_the_rest_of_memory_and_scheduling_is_not() -> None:
    seen = in_filter("""
import mmap, os
def said(work):
    try: work(); return 0
    except OSError as error: return error.errno
print(json.dumps({
    "huge": said(lambda: mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | 0x40000)),
    "plain": said(lambda: mmap.mmap(-1, 2 << 20)),
    "fifo": said(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))),
    "batch": said(lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))),
    "affinity": said(lambda: os.sched_setaffinity(0, os.sched_getaffinity(0))),
    "nice": said(lambda: os.nice(1)),
}))""")

    assert seen == {"huge": errno.ENOMEM, "plain": 0, "fifo": errno.EPERM, "batch": 0, "affinity": 0, "nice": 0}


SET_USER_ID = """
import shutil, stat
def tried(work, *arguments, **named):
    try: return work(*arguments, **named) and 0
    except OSError as error: return error.errno
os.umask(0)
os.close(os.open("mine", os.O_CREAT | os.O_WRONLY, 0o755))
held = os.open("mine", os.O_RDONLY, 0o4755)  # a mode that nobody reads
print(json.dumps({
    "chmod": tried(os.chmod, "mine", 0o4755), "fchmod": tried(os.fchmod, held, 0o4755),
    "open": tried(os.open, "made", os.O_CREAT | os.O_WRONLY, 0o4755),
    "tmpfile": tried(os.open, ".", os.O_TMPFILE | os.O_WRONLY, 0o4755),
    "mknod": tried(os.mknod, "node", stat.S_IFREG | 0o4755), "copy": tried(shutil.copymode, sys.argv[1], "mine"),
    "fchmodat2": call(452, -100, ctypes.cast(b"mine", ctypes.c_void_p).value, 0o4755, 0),
    "openat2": call(437, -100, 0, 0, 24),
    "group": tried(os.chmod, "mine", 0o2755), "plain": tried(os.chmod, "mine", 0o711),
    "made": sorted(os.listdir("."))}))
"""


@LIVE
def test_no_way_to_make_a_set_user_id_file_is_left(tmp_path: Path) -> None:
    """The control: without the filter the same program makes them."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "filtered").mkdir()
    model = tmp_path / "model"
    model.touch()
    model.chmod(0o4755)
    if not model.stat().st_mode & 0o4000:
        pytest.skip("this directory takes no such files")
    seen = {}
    for name, install in (("bare", ""), ("filtered", "install()")):
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-B", "-c", f"{INSTALL}\n{install}\n{SET_USER_ID}", str(model)],
            capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path / name,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        seen[name] = json.loads(done.stdout)
    ways = ("chmod", "fchmod", "open", "mknod", "copy")

    assert {seen["bare"][way] for way in ways} <= {0, None}
    assert {seen["filtered"][way] for way in (*ways, "tmpfile", "fchmodat2")} == {errno.EPERM}
    assert seen["filtered"]["openat2"] == errno.ENOSYS
    assert {seen["filtered"][way] for way in ("group", "plain")} <= {0, None}
    assert seen["filtered"]["made"] == ["mine"]


UNPACK = """
set -e
mkdir -p package/bin package/lib && echo '#!/bin/sh' > package/bin/run && echo 'echo ran' >> package/bin/run
chmod 755 package/bin/run && chmod 2775 package/lib && install -m 0700 package/bin/run package/lib/helper
ln -s ../bin/run package/lib/link && tar czpf package.tgz package && cp -a package copy && rm -rf package
tar xzpf package.tgz && package/lib/link
stat -c %a package/bin/run package/lib/helper copy/lib && umask 077 && touch closed && stat -c %a closed
"""


@LIVE
def test_packages_are_unpacked_with_their_modes_behind_the_filter(tmp_path: Path) -> None:
    script = f"{INSTALL}\ninstall()\nos.execv('/bin/sh', ['sh', '-c', {UNPACK!r}])"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )

    assert done.stdout.split() == ["ran", "755", "700", "2775", "600"], done.stderr


@LIVE
@pytest.mark.skipif(platform.machine() != "x86_64", reason="32-bit calls are an affair of x86")
def test_a_32_bit_call_kills(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    source, program = tmp_path / "int80.c", tmp_path / "int80"
    source.write_text('int main(void) { int r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(20)); return r <= 0; }')
    subprocess.run(["gcc", "-o", str(program), str(source)], check=True, timeout=60)
    bare = subprocess.run([str(program)], timeout=30, check=False).returncode
    if bare != 0:
        pytest.skip("the kernel has no 32-bit calls")
    script = f"{INSTALL}\ninstall()\nos.execv({str(program)!r}, ['int80'])"
    filtered = subprocess.run([sys.executable, "-I", "-c", script], timeout=30, check=False).returncode

    assert filtered == -31  # SIGSYS


# ordinary programs

NODE = """
const { Worker } = require("worker_threads"), { execFileSync } = require("child_process"), http = require("http");
const said = execFileSync("/bin/echo", ["child"]).toString().trim();
const worker = new Worker("require('worker_threads').parentPort.postMessage('thread')", { eval: true });
worker.on("message", thread => {
  if (process.argv[1] === "alone") return console.log(said, thread, "alone");
  const server = http.createServer((q, r) => r.end("served")).listen(0, "127.0.0.1", () =>
    http.get({ port: server.address().port, host: "127.0.0.1" }, r => r.on("data", d => {
      console.log(said, thread, d.toString()); server.close(); process.exit(0); })));
});
"""
POOL = """
import asyncio, multiprocessing, subprocess, sys, threading
def square(n): return n * n
async def child():
    process = await asyncio.create_subprocess_exec("/bin/echo", "async", stdout=subprocess.PIPE)
    return (await process.communicate())[0].decode().strip()
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(pool.map(square, range(4)), asyncio.run(child()))
"""
GIT = """
set -e
git init -q one && cd one && git config user.email a@b && git config user.name n
for i in 1 2 3 4 5 6 7 8; do echo $i > $i; done
git add . && git commit -qm first && git gc -q && cd .. && git clone -q one two && git -C two log --format=%s
tar czf one.tgz one && mkdir three && tar xzf one.tgz -C three && ls three/one | wc -l
seq 200000 | sort -R | sort -n --parallel=2 -S 4M -T . | tail -1
mkfifo pipe && (echo through > pipe &) && cat pipe && cp -r one four && mv four five && rm -rf five
"""


@LIVE
@pytest.mark.parametrize("options", ["", "count_memory=True", "sockets=False, count_memory=True"])
def test_ordinary_programs_run_behind_the_filter(tmp_path: Path, options: str) -> None:
    (tmp_path / "pool.py").write_text(POOL)
    alone = "sockets=False" in options
    commands = {"sh": ["/bin/sh", "-c", GIT], "python": [sys.executable, str(tmp_path / "pool.py")]}
    if shutil.which("node"):
        commands["node"] = [str(shutil.which("node")), "-e", NODE, "alone" if alone else "served"]
    said = {}
    for name, command in commands.items():
        script = f"{INSTALL}\ninstall({options})\nos.execv({command[0]!r}, {command!r})"
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=90, check=False,
            cwd=tmp_path, env=environment,
        )  # fmt: skip
        said[name] = done.stdout.strip() if done.returncode == 0 else done.stderr

    assert said["sh"].split() == ["first", "8", "200000", "through"]
    assert said["python"] == "[0, 1, 4, 9] async"
    if "node" in said:
        assert said["node"] == ("child thread alone" if alone else "child thread served")
