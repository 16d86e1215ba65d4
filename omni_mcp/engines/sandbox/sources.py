"""Source: where a directory of the host is once every link on the way has been followed, and which one it is."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from omni_mcp.contracts.sandbox import Mount
from omni_mcp.engines.sandbox.failures import StartFailed
from omni_mcp.engines.sandbox.uids import running_as_root

_LINKS_LIMIT = 40  # as the kernel's
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A path without any link in it, and what has to be there when it is opened."""

    path: str
    device: int
    inode: int


class Sources:
    """Finds sources. It remembers the operator's directories that jobs could write: no link in them is followed."""

    def __init__(self) -> None:
        self._given: set[tuple[int, int]] = set()

    def find(self, path: str) -> Source:
        """Follow the links on the way to *path*.

        Raises:
            StartFailed: it is missing, or one of the links may be the work of a job. Under a root gateway that is
                every link that somebody else than root could have made.
        """
        try:
            return self._found(path)
        except OSError as error:
            raise StartFailed(f"a directory of the job is missing: {error.strerror}") from error

    def find_mount(self, mount: Mount) -> Source:
        """Like `find`, for the source of *mount*; what is writable and the operator's is remembered.

        Raises:
            StartFailed: as `find`; or something else is there than was judged.
        """
        source = self.find(str(mount.source))
        if mount.identity not in (None, (source.device, source.inode)):
            raise StartFailed(f"{source.path} was replaced at this moment")
        if mount.writable and mount.as_owner:
            self._given.add((source.device, source.inode))
        return source

    def _found(self, path: str) -> Source:
        place, links = "/", 0
        rest = path.split("/")[::-1]
        while rest:
            name = rest.pop()
            if name in ("", "."):
                continue
            there = os.path.normpath(os.path.join(place, name))
            facts = os.lstat(there)
            if not stat.S_ISLNK(facts.st_mode):
                place = there
                continue
            links += 1
            if links > _LINKS_LIMIT:
                raise StartFailed(f"there are too many links on the way to {path}")
            if not self._is_trusted(place, facts):
                raise StartFailed(f"{there} is a link that a job could have made: name the directory it leads to")
            target = os.readlink(there)
            place = "/" if target.startswith("/") else place
            rest += target.split("/")[::-1]
        facts = os.lstat(place)
        return Source(path=place, device=facts.st_dev, inode=facts.st_ino)

    def _is_trusted(self, directory: str, link: os.stat_result) -> bool:
        """Whether a link in *directory* can be followed: whether no job can have put it there."""
        above = [os.lstat(place) for place in (Path(directory), *Path(directory).parents)]
        if any((facts.st_dev, facts.st_ino) in self._given for facts in above):
            return False
        return not running_as_root() or (link.st_uid == 0 and all(map(_only_root_writes, above)))


def _only_root_writes(directory: os.stat_result) -> bool:
    """Whether nobody else can replace what root has in *directory*."""
    return directory.st_uid == 0 and (not directory.st_mode & _OTHERS_WRITE or bool(directory.st_mode & stat.S_ISVTX))
