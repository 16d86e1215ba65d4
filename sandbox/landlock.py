"""Landlock: gives up, for this process and its children, all files, TCP and UDP ports, sockets and signals but a list.

A second lock inside a cell, and the first one where no namespaces can be had. It cannot be undone; a program may only
narrow it further. Only the calling thread is restricted, so the process must have one thread. Standard library only.

Source: Linux, Documentation/userspace-api/landlock.rst; versions 1 (Linux 5.13) to 10 (7.2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Sequence

import kernel

NEWEST_KNOWN = 10

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on all architectures
_ASK_FOR_VERSION = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_CHAR, _MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM = (1 << bit for bit in range(6, 13))
_REFER, _TRUNCATE, _IOCTL_DEV, _RESOLVE_UNIX = 1 << 13, 1 << 14, 1 << 15, 1 << 16
_FILE_RIGHTS_SINCE = {1: (1 << 13) - 1, 2: _REFER, 3: _TRUNCATE, 5: _IOCTL_DEV, 9: _RESOLVE_UNIX}
_PORT_RIGHTS_SINCE = {4: 0b11, 10: 0b1100}  # bind and connect: TCP, UDP
_SCOPES_SINCE = {6: 0b11}  # abstract unix sockets, signals

_READ = _READ_FILE | _READ_DIR
_CHANGE = (
    _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SOCK | _MAKE_FIFO | _MAKE_SYM
    | _REFER | _TRUNCATE | _IOCTL_DEV | _RESOLVE_UNIX
)  # fmt: skip
_ON_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV | _RESOLVE_UNIX
_NAMES_SINCE = {1: "files", 2: "links", 3: "truncate", 5: "device-ioctl", 6: "scopes", 9: "unix-sockets"}
_PORT_NAMES_SINCE = {4: "tcp", 10: "udp"}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def abi() -> int:
    """Return the newest version of Landlock that the running kernel has; 0: none, or switched off at boot."""
    version: int = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_FOR_VERSION))
    return max(0, version)


def layers(*, network: bool, most_abi: int = NEWEST_KNOWN) -> list[str]:
    """Return the names of what `restrict` puts in force here, such as `landlock-files`; the first has the version."""
    version = min(abi(), most_abi)
    names = {**_NAMES_SINCE, **({} if network else _PORT_NAMES_SINCE)}
    return [f"landlock-{version}", *(f"landlock-{names[since]}" for since in sorted(names) if since <= version)]


def restrict(
    read: Sequence[str],
    write: Sequence[str],
    execute: Sequence[str] = (),
    *,
    network: bool,
    most_abi: int = NEWEST_KNOWN,
) -> list[str]:
    """Give up everything that the running version can take away, except what is listed, as `plan` has it.

    Returns:
        What is in force now, as `layers` names it.

    Raises:
        OSError: as `prepare`.
    """
    enforce(prepare(plan(read, write, execute, network=network, most_abi=most_abi)))
    return layers(network=network, most_abi=most_abi)


class Plan:
    """What `prepare` asks the kernel for. One process can make it for all that are forked from it."""

    __slots__ = ("attributes", "rules")

    def __init__(self, attributes: bytes, rules: tuple[tuple[str, int], ...]) -> None:
        self.attributes, self.rules = attributes, rules


def plan(
    read: Sequence[str],
    write: Sequence[str],
    execute: Sequence[str] = (),
    *,
    network: bool,
    most_abi: int = NEWEST_KNOWN,
) -> Plan:
    """Return what to ask for.

    Args:
        read: files and directories to read, with all beneath them.
        write: the same, to read, write, create, rename and remove; also device files to use. Not to execute.
        execute: what may be executed, beneath these; whoever lists a script must also list it in *read*.
        network: True leaves TCP and UDP ports alone.
        most_abi: use no newer version than this.

    Paths that are not there are left out. No device file can be created anywhere. From version 6 on no signal and no
    connection to an abstract unix socket leaves the processes that share this restriction or are restricted further.
    """
    version = min(abi(), most_abi)
    files, ports, scopes = (_since(table, version) for table in (_FILE_RIGHTS_SINCE, _PORT_RIGHTS_SINCE, _SCOPES_SINCE))
    rules = []
    for paths, rights in ((read, _READ), (write, _READ | _CHANGE), (execute, _EXECUTE)):
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                mask = files if stat.S_ISDIR(os.stat(path).st_mode) else files & _ON_A_FILE
                rules.append((path, rights & mask))
    return Plan(_attributes(files, 0 if network else ports, scopes), tuple(rules))


def prepare(wanted: Plan) -> int:
    """Return a descriptor for `enforce`. It holds on to what the paths lead to now, whatever is mounted later.

    Raises:
        OSError: the kernel has no Landlock (ENOSYS, EOPNOTSUPP), or a path cannot be opened.
    """
    ruleset = _create_ruleset(wanted.attributes)
    try:
        for path, rights in wanted.rules:
            _allow_beneath(ruleset, path, rights)
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


def enforce(ruleset: int) -> None:
    """Put what `prepare` returned in force, for good, and close it. No mount can be made or changed from here on.

    Raises:
        OSError: sixteen such restrictions are in force already (E2BIG).
    """
    try:
        kernel.set_no_new_privileges()
        _checked(_libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def keep_signals_in() -> bool:
    """Let no signal of this process or its children leave them; whoever calls this may still signal its children.

    A child that restricts itself further cannot signal its parent. Returns whether the kernel can do it (version 6).
    """
    scopes = _since(_SCOPES_SINCE, abi())
    if not scopes:
        return False
    ruleset = _create_ruleset(_attributes(_REFER, 0, scopes))  # a ruleset without this right takes it away all the same
    _allow_beneath(ruleset, "/", _REFER)
    enforce(ruleset)
    return True


def _since(table: dict[int, int], version: int) -> int:
    return sum(rights for since, rights in table.items() if since <= version)


def _attributes(files: int, ports: int, scopes: int) -> bytes:
    attributes = struct.pack("=QQQ", files, ports, scopes)
    if scopes:
        return attributes
    return attributes[:16] if ports else attributes[:8]  # older kernels know a shorter structure


def _create_ruleset(attributes: bytes) -> int:
    descriptor = _libc.syscall(
        _CREATE_RULESET, ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)
    )
    return _checked(descriptor, "landlock_create_ruleset")


def _allow_beneath(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rule = ctypes.c_char_p(struct.pack("=Qi", rights, place))
        result = _libc.syscall(_ADD_RULE, ctypes.c_int(ruleset), _PATH_BENEATH, rule, ctypes.c_uint32(0))
        _checked(result, f"landlock_add_rule {path}")
    finally:
        os.close(place)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
