"""Which files are manifests, and reading one: what defines what runs must be the operator's own.

So the operator's files and directories belong to the gateway's own user or to root, and nobody else can write to them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from omni_mcp.contracts.errors import Problem
from omni_mcp.engines.catalog.documents import SIZE_LIMIT_BYTES
from omni_mcp.engines.catalog.names import is_server_name

DEFAULT_SERVER = "tools"
RESERVED_SERVERS = frozenset({"runs", "memory", "catalog"})  # the gateway's own; no manifest may speak for them
FILE_LIMIT = 1_000
SUFFIXES = (".yaml", ".yml")


def manifest_files(directory: Path, *, trusted: bool, problems: list[Problem]) -> list[tuple[str, Path]]:
    """Return (server, file) of every manifest below *directory*, one level deep, in a fixed order.

    Args:
        trusted: nobody's owner and mode is looked at, and the directory must exist.
        problems: gets what is wrong.
    """
    if not trusted and not directory.exists():
        return []
    found: list[tuple[str, Path]] = []
    folders = [(DEFAULT_SERVER, directory)]
    for server, folder in folders:  # grows by the subdirectories of the first one
        if not trusted and not _is_private(folder, problems):
            continue
        for item in sorted(folder.iterdir()):
            if item.name.startswith("."):
                continue
            if item.suffix in SUFFIXES:
                found.append((server, item))
            elif item.is_dir() and folder is directory and any(one.suffix in SUFFIXES for one in item.iterdir()):
                if is_server_name(item.name) and item.name not in RESERVED_SERVERS:
                    folders.append((item.name, item))
                else:
                    problems.append(file_fault(item, "is not the name of a server that manifests may have"))
    if len(found) > FILE_LIMIT:
        problems.append(file_fault(directory, f"holds more than {FILE_LIMIT} manifests"))
        return []
    return found


def read_manifest(file: Path, *, trusted: bool, problems: list[Problem]) -> bytes | None:
    """Read a regular file through one descriptor, so that what was checked is what is read; None after a problem."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = "must be a file, not a link" if file.is_symlink() else f"cannot be read: {error.strerror}"
        problems.append(file_fault(file, reason))
        return None
    with open(descriptor, "rb") as stream:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            problems.append(file_fault(file, "must be a regular file"))
            return None
        if not trusted and not _is_owned(facts, file, problems):
            return None
        return stream.read(SIZE_LIMIT_BYTES + 1)


def file_fault(file: Path, message: str, *, path: str = "") -> Problem:
    """Return a fault of *file* that stands on no line of it."""
    return Problem(file=str(file), line=0, path=path, message=message)


def _is_private(folder: Path, problems: list[Problem]) -> bool:
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        problems.append(file_fault(folder, "must be a directory, not a link"))
        return False
    return _is_owned(facts, folder, problems)


def _is_owned(facts: os.stat_result, path: Path, problems: list[Problem]) -> bool:
    """Whether only the gateway's own user, or root, can have written *path*."""
    if facts.st_uid not in (os.geteuid(), 0):
        problems.append(file_fault(path, f"belongs to uid {facts.st_uid}; it defines what runs, so it must be yours"))
        return False
    if facts.st_mode & 0o022:
        problems.append(file_fault(path, f"others can write to it; it defines what runs: chmod go-w {path}"))
        return False
    return True
