"""The system calls that Python does not wrap, for code on the far side of the wall: written down, then carried out.

A cell makes about a hundred of them, and pays for each line of Python and each page that this touches. So they are
written down once, in its template, and each cell goes through the list. Standard library only.
"""

from __future__ import annotations

import _socket
import ctypes
import fcntl
import os
import struct
from collections.abc import Iterable

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_NUMBERS = {  # x86_64, aarch64; any other machine has no filter, and so no cell
    "capset": (126, 91), "clone": (56, 220), "close": (3, 57), "dup3": (292, 24), "keyctl": (250, 219),
    "landlock_add_rule": (445, 445), "landlock_create_ruleset": (444, 444), "landlock_restrict_self": (446, 446),
    "mount": (165, 40),
    "openat": (257, 56), "prctl": (157, 167), "unshare": (272, 97), "write": (1, 64),
}  # fmt: skip
_COLUMN = {"x86_64": 0, "aarch64": 1}.get(os.uname().machine)
_NO_SUCH_CALL = -1  # the kernel answers ENOSYS

_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECCOMP_MODE_FILTER = 2
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SIOCSIFFLAGS = 0x8914
_LOOPBACK_UP = struct.pack("16sh14x", b"lo", 1)  # IFF_UP; the kernel keeps the rest as it is
_THIS_PROCESS = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, and 0 for ourselves
_NO_CAPABILITIES = bytes(24)
_LAST_CAPABILITY = 63
_SIGCHLD = 17
_ANYWHERE = 0  # instead of a directory: the paths here are absolute

_system_call = ctypes.PyDLL(None, use_errno=True).syscall  # keeps the interpreter's lock, which nobody else wants here
_system_call.restype = ctypes.c_long


class Step:
    """One system call, written down. Its numbers fit into 31 bits; bytes are passed as a pointer to them.

    With *text* the call is one that opens a file: it gets this text, and is closed again.
    """

    __slots__ = ("arguments", "kept", "text", "what")

    def __init__(
        self, what: str, name: str, *arguments: int | bytes, text: bytes | None = None, kept: object = None
    ) -> None:
        self.what, self.text, self.kept = what, text, kept
        self.arguments = (number_of(name), *arguments)


def number_of(name: str) -> int:
    """Return the number of a system call on this machine."""
    return _NUMBERS[name][_COLUMN] if _COLUMN is not None else _NO_SUCH_CALL


_CLOSE, _WRITE = number_of("close"), number_of("write")


def called(what: str, *arguments: int | bytes) -> int:
    """Make one system call, number first, and return its result.

    Raises:
        OSError: it failed; the text begins with *what*.
    """
    result: int = _system_call(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def carry_out(steps: Iterable[Step]) -> None:
    """Make those system calls, one after the other.

    Raises:
        OSError: one of them failed. Those after it were not made.
    """
    for step in steps:
        result = called(step.what, *step.arguments)
        if step.text is not None:
            called(step.what, _WRITE, result, step.text, len(step.text))
            _system_call(_CLOSE, result)


def attempt(steps: Iterable[Step]) -> None:
    """As `carry_out`, whatever fails."""
    for step in steps:
        _system_call(*step.arguments)


def mounting(source: str, target: str, kind: str, flags: int, options: str = "") -> Step:
    """Return the step that mounts, as mount(2)."""
    texts = (os.fsencode(source), os.fsencode(target), kind.encode())
    return Step(f"mount {target}", "mount", *texts, flags, options.encode())


def writing(path: str, text: str) -> Step:
    """Return the step that writes *text* to the file *path*, which is there."""
    return Step(f"write {path}", "openat", _ANYWHERE, path.encode(), os.O_WRONLY | os.O_CLOEXEC, 0, text=text.encode())


def leaving(namespaces: int) -> Step:
    """Return the step that leaves these namespaces (CLONE_NEW...) for new ones, as unshare(2)."""
    return Step("unshare", "unshare", namespaces)


def dumpable(on: bool) -> Step:
    """Return the step after which other processes of the same user may read this one through /proc, or may not."""
    return Step("PR_SET_DUMPABLE", "prctl", _PR_SET_DUMPABLE, int(on), 0, 0, 0)


def no_new_privileges() -> Step:
    """Return the step from which on no exec of this process or its children gains a privilege."""
    return Step("PR_SET_NO_NEW_PRIVS", "prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def new_key_ring() -> Step:
    """Return the step that leaves the session's ring of keys for an empty one without a name."""
    return Step("KEYCTL_JOIN_SESSION_KEYRING", "keyctl", _KEYCTL_JOIN_SESSION_KEYRING, 0)


def filtering(instructions: bytes) -> Step:
    """Return the step that puts *instructions* (8-byte BPF instructions) in force for this process and its children."""
    address = ctypes.cast(ctypes.c_char_p(instructions), ctypes.c_void_p).value
    program = struct.pack("@HP", len(instructions) // 8, address)
    return Step("PR_SET_SECCOMP", "prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0, kept=instructions)


def bounds_of_capabilities() -> list[Step]:
    """Return the steps that empty the bounding and the ambient set; for `attempt`, since not all are ours to drop."""
    known = [
        number for number in range(_LAST_CAPABILITY + 1)
        if _system_call(number_of("prctl"), _PR_CAPBSET_READ, number, 0, 0, 0) >= 0
    ]  # fmt: skip
    return [
        *(Step("PR_CAPBSET_DROP", "prctl", _PR_CAPBSET_DROP, number, 0, 0, 0) for number in known),
        Step("PR_CAP_AMBIENT", "prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0),
    ]


def no_capabilities() -> Step:
    """Return the step that empties the permitted, effective and inheritable set."""
    return Step("capset", "capset", _THIS_PROCESS, _NO_CAPABILITIES)


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own."""
    carry_out([Step("PR_SET_CHILD_SUBREAPER", "prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)])


def drop_capabilities() -> None:
    """Empty every capability set: bounding, ambient, permitted, effective, inheritable."""
    attempt(bounds_of_capabilities())
    carry_out([no_capabilities()])


def fork_into(namespaces: int) -> int:
    """As `os.fork`; the child is in new *namespaces*. The process must have one thread, and runs no hook of a fork.

    Raises:
        OSError: the system has no room for one more process or namespace.
    """
    return called("clone", number_of("clone"), namespaces | _SIGCHLD, 0, 0, 0, 0)


def bring_loopback_up() -> None:
    """Switch on `lo` of the network namespace that we are in."""
    any_socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)  # `socket`'s class costs each cell 100 KiB
    try:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _LOOPBACK_UP)
    finally:
        any_socket.close()
