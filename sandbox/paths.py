"""A path is opened without following any link, and is the very directory that was meant. Standard library only."""

from __future__ import annotations

import os
import stat

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def opened(path: str, identity: list[int] | None = None) -> int:
    """Return a descriptor (O_PATH) for the absolute *path*, opened name by name.

    Raises:
        OSError: it is missing, or there is a link on the way.
        ValueError: it has not the device and inode of *identity*.
    """
    start = os.open("/", _LOOK)
    try:
        descriptor = opened_beneath(start, path.lstrip("/"))
    finally:
        os.close(start)
    facts = os.fstat(descriptor)
    if identity is not None and [facts.st_dev, facts.st_ino] != identity:
        os.close(descriptor)
        raise ValueError(f"the directory was replaced: {path}")
    return descriptor


def opened_beneath(start: int, path: str) -> int:
    """Return a descriptor (O_PATH) for *path* below the directory *start*.

    Raises:
        OSError: it is missing, or there is a link on the way, or it leads upwards.
    """
    here = os.dup(start)
    for name in path.split("/"):
        if name in ("", "."):
            continue
        try:
            there = _next(here, name, path)
        finally:
            os.close(here)
        here = there
    return here


def _next(here: int, name: str, path: str) -> int:
    if name == "..":
        raise OSError(f"a path leads upwards: {path}")
    there = os.open(name, _LOOK, dir_fd=here)
    if stat.S_ISLNK(os.fstat(there).st_mode):
        os.close(there)
        raise OSError(f"the directory was replaced: there is a link on the way to {path}")
    return there
