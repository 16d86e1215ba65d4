"""What a cell sees of its own wall: the gateway runs this once at start and believes nothing that it has not seen."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import socket
from typing import Any

_CLONE_NEWUSER = 0x10000000


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
