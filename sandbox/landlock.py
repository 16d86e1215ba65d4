"""Landlock: gives up, for this process and its children, all files, TCP and UDP ports, sockets and signals but a list.

A second lock inside a cell, and the first one where no namespaces can be had. It cannot be undone; a program may only
narrow it further. Only the calling thread is restricted, so the process must have one thread. Standard library only.

Source: Linux, Documentation/userspace-api/landlock.rst; versions 1 (Linux 5.13) to 10 (7.2).
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import sys
from collections.abc import Sequence

import kernel

NEWEST_KNOWN = 10

_CREATE_RULESET = kernel.number_of("landlock_create_ruleset")
_ADD_RULE = kernel.number_of("landlock_add_rule")
_RESTRICT_SELF = kernel.number_of("landlock_restrict_self")
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
_NO_NEW_PRIVILEGES = (kernel.no_new_privileges(),)
_NAMES_SINCE = {1: "files", 2: "links", 3: "truncate", 5: "device-ioctl", 6: "scopes", 9: "unix-sockets"}
_PORT_NAMES_SINCE = {4: "tcp", 10: "udp"}


def abi() -> int:
    """Return the newest version of Landlock that the running kernel has; 0: none, or switched off at boot."""
    try:
        return kernel.called("landlock_create_ruleset", _CREATE_RULESET, 0, 0, _ASK_FOR_VERSION)
    except OSError:
        return 0


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

    def __init__(self, attributes: bytes, rules: tuple[tuple[bytes, bytes], ...]) -> None:
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
    rules: dict[str, int] = {}
    for paths, rights in ((read, _READ), (write, _READ | _CHANGE), (execute, _EXECUTE)):
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                mask = files if stat.S_ISDIR(os.stat(path).st_mode) else files & _ON_A_FILE
                rules[path] = rules.get(path, 0) | (rights & mask)
    packed = tuple((os.fsencode(path), struct.pack("=Q", rights)) for path, rights in rules.items())
    return Plan(_attributes(files, 0 if network else ports, scopes), packed)


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
        kernel.carry_out(_NO_NEW_PRIVILEGES)
        kernel.called("landlock_restrict_self", _RESTRICT_SELF, ruleset, 0)
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
    _allow_beneath(ruleset, b"/", struct.pack("=Q", _REFER))
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
    return kernel.called("landlock_create_ruleset", _CREATE_RULESET, attributes, len(attributes), 0)


def _allow_beneath(ruleset: int, path: bytes, rights: bytes) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rule = rights + place.to_bytes(4, sys.byteorder)
        kernel.called("landlock_add_rule", _ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(place)
