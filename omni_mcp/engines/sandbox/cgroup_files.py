"""Files and directories of cgroups: their words and numbers, and the names of cells' own, which tell whose they are."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

PREFIX = "omni-cell-"
_NAME = re.compile(rf"^{PREFIX}(\d+)-(\d+)-[0-9a-f]+-\d+$")
_PART_BYTES = 1 << 16


class Entrances:
    """The doors of one group, opened when they are wanted first: each cell of the group is given them."""

    def __init__(self) -> None:
        self._open: list[int] = []

    def of(self, doors: list[str]) -> list[int]:
        """Return descriptors of *doors*.

        Raises:
            OSError: one cannot be opened; then none is.
        """
        if not self._open:
            try:
                for door in doors:
                    self._open.append(os.open(door, os.O_WRONLY | os.O_CLOEXEC))
            except OSError:
                self.close()
                raise
        return self._open

    def close(self) -> None:
        opened, self._open = self._open, []
        for descriptor in opened:
            os.close(descriptor)


def write(file: str | int, text: str) -> None:
    """Write *text* to *file*, which may be open already."""
    if isinstance(file, int):
        os.pwrite(file, text.encode(), 0)
        return
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def words(file: str | int) -> list[str]:
    """Return the words of *file*, which may be open already and is short then; none if it cannot be read."""
    try:
        if isinstance(file, int):
            return os.pread(file, _PART_BYTES, 0).decode().split()
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    parts = []
    try:
        while part := os.read(descriptor, _PART_BYTES):  # a long list of processes comes in pages
            parts.append(part)
    except OSError:  # the directory has been removed meanwhile
        return []
    finally:
        os.close(descriptor)
    return b"".join(parts).decode().split()


def counter(file: str | int, key: str | None = None) -> int | None:
    """Return the number in a file, or the one after *key* in a flat keyed file."""
    found = words(file)
    if key is None:
        return int(found[0]) if found and found[0].isdigit() else None
    pairs = dict(zip(found[::2], found[1::2], strict=False))
    return int(pairs[key]) if key in pairs else None


def file_cache_bytes(place: str) -> int:
    """Return how much of the memory of the cgroup *place* is copies of files, which the kernel drops when it must.

    Files of a tmpfs are not among them: they have no other place.
    """
    found = words(f"{place}/memory.stat")
    pairs = dict(zip(found[::2], found[1::2], strict=False))
    total = "total_" if "total_active_file" in pairs else ""  # version 1 tells those of its children apart
    return sum(int(pairs.get(f"{total}{kind}_file", "0")) for kind in ("active", "inactive"))


def name_of_ours() -> str:
    """Return what the names of one hierarchy's cells begin with: unlike any other's, also in the same process."""
    return f"{PREFIX}{os.getpid()}-{_start_time(os.getpid())}-{os.urandom(4).hex()}"


def kill_all(place: str) -> None:
    for word in words(f"{place}/cgroup.procs"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(int(word), signal.SIGKILL)


def removed(place: str) -> bool:
    """Remove the directory *place*; False while something in it is still dying."""
    try:
        os.rmdir(place)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def sweep(place: Path) -> None:
    """Remove the cells' directories below *place* whose gateways have ended."""
    for left in place.glob(f"{PREFIX}*"):
        parts = _NAME.match(left.name)
        if parts is not None and _start_time(int(parts.group(1))) != parts.group(2):
            kill_all(str(left))
            removed(str(left))


def _start_time(pid: int) -> str | None:
    """Return when *pid* started, in clock ticks: with the pid it names a process for ever; None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
