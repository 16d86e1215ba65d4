"""Export: takes regular files out of a dead cell by directory descriptor, believing nothing that it finds there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from omni_mcp.contracts.sandbox import ExportedFile

MAX_FILES = 64
MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 8
MAX_ENTRIES = 4096  # looked at in all, exported or not
MAX_NAME_CHARACTERS = 255
_MAX_REJECTED = 32
_FOLLOW_NOTHING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


@dataclass(slots=True)
class Exported:
    """What came out, and what did not, with the reason (at most 32 of those)."""

    files: list[ExportedFile] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    bytes_taken: int = 0
    entries_seen: int = 0

    def reject(self, name: str, why: str) -> None:
        if len(self.rejected) < _MAX_REJECTED:
            self.rejected.append(f"{name}: {why}"[:512])


def export_files(root_fd: int, *, prefix: str = "out") -> Exported:
    """Read every regular file below *root_fd*, within the caps. Closes nothing of the caller's.

    Only after all processes of the cell are dead: then nothing moves while we look. Links are not followed, files
    with more than one name are left out (the other name may be somebody else's file), bytes are counted as read.
    """
    exported = Exported()
    _walk(root_fd, prefix, 1, exported)
    return exported


def export_and_close(root_fd: int) -> Exported:
    """Do `export_files` and close *root_fd*: whoever runs the walk owns the descriptor, also after being given up."""
    try:
        return export_files(root_fd)
    finally:
        os.close(root_fd)


def _walk(directory_fd: int, path: str, depth: int, exported: Exported) -> None:
    for name in _names(directory_fd, exported):
        inside = f"{path}/{name}"
        if not _is_plain(name):
            exported.reject(ascii(inside)[1:-1], "a name that is not plain text")
            continue
        try:
            descriptor = os.open(name, _FOLLOW_NOTHING, dir_fd=directory_fd)
        except OSError as error:
            exported.reject(inside, f"not opened ({error.strerror})")  # ELOOP: a link; ENXIO: a socket
            continue
        try:
            _take(descriptor, inside, depth, exported)
        finally:
            os.close(descriptor)


def _names(directory_fd: int, exported: Exported) -> Iterator[str]:
    with os.scandir(directory_fd) as entries:
        for entry in entries:
            exported.entries_seen += 1
            if exported.entries_seen > MAX_ENTRIES:
                exported.reject(entry.name, f"more than {MAX_ENTRIES} entries")
                return
            yield entry.name


def _is_plain(name: str) -> bool:
    """Printable also means: no byte that is not UTF-8, no control character, no mark that turns text around."""
    return len(name) <= MAX_NAME_CHARACTERS and name.isprintable()


def _take(descriptor: int, path: str, depth: int, exported: Exported) -> None:
    facts = os.fstat(descriptor)
    if stat.S_ISDIR(facts.st_mode):
        if depth >= MAX_DEPTH:
            exported.reject(path, f"deeper than {MAX_DEPTH}")
        else:
            _walk(descriptor, path, depth + 1, exported)
    elif not stat.S_ISREG(facts.st_mode):
        exported.reject(path, "not a regular file")
    elif facts.st_nlink != 1:
        exported.reject(path, "has another name")
    elif len(exported.files) >= MAX_FILES:
        exported.reject(path, f"more than {MAX_FILES} files")
    else:
        data = _read(descriptor, MAX_BYTES - exported.bytes_taken)
        if data is None:
            exported.reject(path, f"more than {MAX_BYTES} bytes in all")
            return
        exported.bytes_taken += len(data)
        exported.files.append(ExportedFile(name=path, data=data))


def _read(descriptor: int, most: int) -> bytes | None:
    """Return the whole file, or None if it is longer than *most*; `st_size` is not asked."""
    parts, total = [], 0
    while part := os.read(descriptor, min(1 << 20, most - total + 1)):
        total += len(part)
        if total > most:
            return None
        parts.append(part)
    return b"".join(parts)
