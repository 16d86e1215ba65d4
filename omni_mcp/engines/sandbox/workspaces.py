"""Workspaces: the directories of a project that survive its calls, owned by whoever its jobs run as."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Literal

from omni_mcp.engines.sandbox.uids import DEFAULT_RANGE, owners_part, running_as_root

QUOTA_BYTES = 1 << 30
QUOTA_ENTRIES = 100_000
_PLAIN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


class WorkspaceRefused(Exception):
    """The directory cannot be used as it stands; the text says why."""


class Workspaces:
    """Makes and finds `<root>/<project>/files` and `<root>/<project>/state`.

    Under a root gateway each project has a uid of its own, from the upper half of *uid_range*: the owner of its
    directory is the record of which.
    """

    def __init__(
        self,
        root: Path,
        *,
        uid_range: range = DEFAULT_RANGE,
        quota_bytes: int = QUOTA_BYTES,
        quota_entries: int = QUOTA_ENTRIES,
    ) -> None:
        self._root = root
        self._uids = owners_part(uid_range) if running_as_root() else None
        self._lock = threading.Lock()
        self._quota_bytes = quota_bytes
        self._quota_entries = quota_entries

    def directory(self, project: str, kind: Literal["files", "state"]) -> Path:
        """Return the directory, made if it is missing, mode 0700.

        Raises:
            WorkspaceRefused: it is a link, or somebody else's, or there is no uid left for a new project.
        """
        with self._lock:  # two new projects at once must not choose the same uid
            return self._directory(project, kind)

    def _directory(self, project: str, kind: str) -> Path:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        home = self._root / directory_name(project)
        home.mkdir(mode=0o700, exist_ok=True)
        place = home / kind
        owner = self._owner(home)
        if not place.is_symlink() and not place.exists():
            place.mkdir(mode=0o700)
            if owner is not None:
                os.chown(place, owner, owner)
        facts = place.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != (os.geteuid() if owner is None else owner):
            raise WorkspaceRefused(f"{place} is not a directory of the project's own user")
        return place

    def over_quota(self, place: Path) -> bool:
        """Whether *place* holds more than a project may keep. Looks at sizes only, and stops when it knows."""
        total, seen, todo = 0, 0, [place]
        while todo:
            for entry in _entries(todo.pop()):
                with suppress(FileNotFoundError):  # another call of the project removed it meanwhile
                    facts = entry.stat(follow_symlinks=False)
                    total += facts.st_blocks * 512
                    seen += 1
                    if stat.S_ISDIR(facts.st_mode):
                        todo.append(Path(entry.path))
                if total > self._quota_bytes or seen > self._quota_entries:
                    return True
        return False

    def _owner(self, home: Path) -> int | None:
        """Return the project's uid under a root gateway, chosen now if it has none; None for an ordinary user."""
        if self._uids is None:
            return None
        mine = home.lstat().st_uid
        if mine in self._uids:
            return mine
        taken = {entry.stat(follow_symlinks=False).st_uid for entry in os.scandir(self._root)}
        free = next((uid for uid in self._uids if uid not in taken), None)
        if free is None:
            raise WorkspaceRefused(f"all {len(self._uids)} uids for projects are taken; widen the sandbox's uid range")
        os.chown(home, free, free)
        return free


def _entries(place: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(place) as entries:
            return list(islice(entries, QUOTA_ENTRIES + 1))
    except OSError:
        return []  # gone, replaced by a link, or closed to us: nothing that we could count


def directory_name(project: str) -> str:
    """Return the name under which *project* is kept: its own where that is a plain file name, else a digest of it."""
    if _PLAIN.match(project):
        return project
    return "~" + hashlib.sha256(project.encode()).hexdigest()[:32]
