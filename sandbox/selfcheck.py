"""What a cell sees of its own wall: the gateway runs this once at start and believes nothing that it has not seen."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import socket
from typing import Any

_CLONE_NEWUSER = 0x10000000
_PR_GET_SECCOMP, _PR_GET_NO_NEW_PRIVS = 21, 39
_CAPABILITY_VERSION_3 = 0x20080522
_LIMITS = ("RLIMIT_NPROC", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_RTPRIO", "RLIMIT_NICE", "RLIMIT_CORE")


def report(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return facts about this cell. `arguments["secret_paths"]` are host files that must not be there."""
    status = _process_status()
    return {
        "uid": os.getuid(),
        "pid": os.getppid(),
        "capabilities": status.get("CapEff", "?"),
        "bounding": status.get("CapBnd", "?"),
        "no_new_privileges": status.get("NoNewPrivs", "?"),
        "seccomp": status.get("Seccomp", "?"),
        "new_user_namespace": _errno_of_unshare(),
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "outer_environment_readable": _readable("/proc/1/environ"),
        "root_writable": os.access("/", os.W_OK) or os.access("/usr", os.W_OK),
        "visible": [path for path in arguments.get("secret_paths", []) if os.path.lexists(path)],
        "workspace_bytes": _size_of("/workspace"),
        "processes": resource.getrlimit(resource.RLIMIT_NPROC)[1],
        "descriptors": _open_descriptors(),
    }


def report_plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return facts about this plain process tree. `arguments["closed_paths"]` are host files that must not open."""
    return {
        "uids": sorted(set(os.getresuid())),
        "capabilities": _capabilities(),
        "no_new_privileges": _prctl(_PR_GET_NO_NEW_PRIVS),
        "seccomp": _prctl(_PR_GET_SECCOMP),
        "new_user_namespace": _errno_of_unshare(),
        "readable": [path for path in arguments["closed_paths"] if _opens(path, os.O_RDONLY)],
        "writable": [path for path in ("/tmp", "/var/tmp", "/dev/shm") if _can_make_a_file(path)],
        "workspace_writable": _can_make_a_file("."),
        "sockets": [family.name for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6) if _has(family)],
        "limits": {name: resource.getrlimit(getattr(resource, name))[1] for name in _LIMITS},
        "descriptors": _open_descriptors(),
    }


def _capabilities() -> int:
    """Return our effective, permitted and inheritable capabilities, or-ed; /proc cannot be read here."""
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None).capget(header, sets) != 0:
        return -1
    low, high = sets[0] | sets[1] | sets[2], sets[3] | sets[4] | sets[5]
    return high << 32 | low


def _prctl(option: int) -> int:
    return int(ctypes.CDLL(None).prctl(option, 0, 0, 0, 0))


def _opens(path: str, flags: int) -> bool:
    try:
        os.close(os.open(path, flags | os.O_CLOEXEC, 0o600))
    except OSError:
        return False
    return True


def _can_make_a_file(directory: str) -> bool:
    place = os.path.join(directory, f"omni-look-{os.getpid()}")
    if not _opens(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL):
        return False
    os.unlink(place)
    return True


def _has(family: socket.AddressFamily) -> bool:
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _process_status() -> dict[str, str]:
    try:
        with open("/proc/self/status") as file:
            return {line.partition(":")[0]: line.partition(":")[2].strip() for line in file}
    except OSError:
        return {}


def _errno_of_unshare() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER) == 0:
        return "allowed"
    return errno.errorcode.get(ctypes.get_errno(), "?")


def _readable(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return bool(file.read(1))
    except OSError:
        return False


def _size_of(path: str) -> int:
    facts = os.statvfs(path)
    return facts.f_blocks * facts.f_frsize


def _open_descriptors() -> list[int]:
    found = []
    for number in range(64):
        try:
            os.fstat(number)
        except OSError:
            continue
        found.append(number)
    return found
