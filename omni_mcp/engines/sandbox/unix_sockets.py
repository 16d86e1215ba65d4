"""Whether jobs may have unix sockets with names: where no program of the host has one that they could reach.

Names without a file are of the cell's own network. A file is the way to whoever serves on it, also where it can only be
read, so what counts is whose files a cell sees: its own, the gateway's copies, the system's programs, or somebody's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from omni_mcp.contracts.sandbox import Mount
from omni_mcp.engines.sandbox.profiles import Profile

_BOUND = Path("/proc/net/unix")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/alternatives")
_PATH_COLUMN = 7
_WHOLE_NAMES = ("/", "@")  # of a file from the root on, or of no file; any other is below a directory that nobody tells


def why_refused(profile: Profile, mounts: Sequence[Mount], *, shown: Iterable[str], bound: Path = _BOUND) -> str:
    """Return why jobs of *profile* that see *mounts* get no unix socket with a name; nothing if they get them.

    Args:
        profile: its own word for or against goes before everything else.
        mounts: directories and files of the host.
        shown: directories of the host that every cell of the profile sees, beside the system's.
        bound: the kernel's list of the sockets that have names.
    """
    if profile.unix_sockets is not None:
        return "" if profile.unix_sockets else "the profile refuses them"
    if profile.read:
        return f"{profile.read[0]} of the host is seen"
    foreign = next((mount.inside for mount in mounts if _may_hold_a_socket(mount)), "")
    if foreign:
        return f"{foreign} is a directory of the host"
    served = _served_below([*_SYSTEM, *shown], bound)
    return f"a program of the host serves on {served}, which cells may see" if served else ""


def _may_hold_a_socket(mount: Mount) -> bool:
    if mount.copy:
        return False
    try:
        return not stat.S_ISREG(mount.source.lstat().st_mode)
    except OSError:
        return True


def _served_below(places: Iterable[str], bound: Path) -> str:
    """Return the file of one socket that is below *places*, or may be, if there is one."""
    beneath = tuple({f"{path.rstrip('/')}/" for place in places for path in (place, os.path.realpath(place))})
    try:
        lines = bound.read_bytes().decode(errors="replace").split("\n")
    except OSError:
        return "something that cannot be listed"
    for line in filter(None, lines[1:]):
        columns = line.split(maxsplit=_PATH_COLUMN)
        name = columns[_PATH_COLUMN] if len(columns) > _PATH_COLUMN else ""
        if name.startswith(beneath) or len(columns) < _PATH_COLUMN:
            return name or "something whose name has lines"
        if name and not name.startswith(_WHOLE_NAMES):
            return f"{name}, somewhere"
    return ""
