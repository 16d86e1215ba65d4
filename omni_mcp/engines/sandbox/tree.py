"""What a directory that jobs write to holds, measured without believing or following anything in it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

DEPTH_LIMIT = 64  # one descriptor a level is open at a time; what lies deeper counts as not to be measured
_BLOCK_BYTES = 512  # unit of st_blocks
_HANDLE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Listing = tuple[int, list[os.DirEntry[str]]]


@dataclass(frozen=True, slots=True)
class Fill:
    """What was found. Where `whole` is False there may be more: it was too deep, or closed to us."""

    held_bytes: int
    entries: int
    whole: bool

    def exceeds(self, most_bytes: int, most_entries: int) -> bool:
        """Whether it is more than that; what cannot be measured is."""
        return not self.whole or self.held_bytes > most_bytes or self.entries > most_entries


def measure_tree(place: Path, *, most_bytes: int, most_entries: int) -> Fill:
    """Add up the blocks of everything below *place*, and stop as soon as it is over one of the two.

    Never raises for what a job did inside, nor for anything else: then the result is not `whole`. Looks at one entry
    more than *most_entries* at most, and changes nothing but the mode of directories that their own owner closed.
    """
    walk = _Walk(most_bytes, most_entries)
    try:
        walk.enter(open_directory(place))
        while walk.levels and not walk.over:
            walk.step()
        return Fill(walk.held_bytes, walk.entries, walk.whole)
    except OSError:
        return Fill(walk.held_bytes, walk.entries, False)
    finally:
        for descriptor, _ in walk.levels:
            os.close(descriptor)


def open_directory(name: Path | str, *, inside: int | None = None, mode: int = 0o500) -> int:
    """Open a directory, no link; where its mode lacks *mode* for its owner, it is given that first if we may.

    Raises:
        OSError: it is gone, no directory, or closed to us for good.
    """
    handle = os.open(name, _HANDLE, dir_fd=inside)
    try:
        itself = f"/proc/self/fd/{handle}"
        facts = os.fstat(handle)
        if facts.st_mode & mode != mode and os.geteuid() in (0, facts.st_uid):
            os.chmod(itself, stat.S_IMODE(facts.st_mode) | mode)
        return os.open(f"{itself}/.", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(handle)


class _Walk:
    """The levels that are open, each with what is still to be looked at, and the sum so far."""

    def __init__(self, most_bytes: int, most_entries: int) -> None:
        self._most_bytes = most_bytes
        self._most_entries = most_entries
        self.levels: list[Listing] = []
        self.held_bytes = 0
        self.entries = 0
        self.whole = True

    @property
    def over(self) -> bool:
        return self.held_bytes > self._most_bytes or self.entries > self._most_entries

    def enter(self, descriptor: int) -> None:
        """Go a level down; owns *descriptor* from now on."""
        self.levels.append((descriptor, []))
        with os.scandir(descriptor) as found:
            self.levels[-1][1].extend(islice(found, self._most_entries + 1 - self.entries))
        self.entries += len(self.levels[-1][1])

    def step(self) -> None:
        """Look at one entry, or go back up where there is none left."""
        descriptor, left = self.levels[-1]
        if not left:
            os.close(self.levels.pop()[0])
            return
        entry = left.pop()
        try:
            facts = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return  # a job of the project removed it meanwhile
        self.held_bytes += facts.st_blocks * _BLOCK_BYTES
        if stat.S_ISDIR(facts.st_mode):
            self._enter_child(descriptor, entry.name)

    def _enter_child(self, descriptor: int, name: str) -> None:
        if len(self.levels) >= DEPTH_LIMIT:
            self.whole = False
            return
        try:
            self.enter(open_directory(name, inside=descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return  # gone or replaced meanwhile: nothing that we could count
