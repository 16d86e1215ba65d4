"""Workspaces: the directories of a project that survive its calls, owned by whoever its jobs run as."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import re
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omni_mcp.engines.sandbox.tree import Fill, measure_tree, open_directory
from omni_mcp.engines.sandbox.uids import DEFAULT_RANGE, owners_part, running_as_root

QUOTA_BYTES = 1 << 30
QUOTA_ENTRIES = 100_000
FULL_FOR_S = 5.0  # then a full workspace is measured again: a person may have made room from outside
_PLAIN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


class WorkspaceRefused(Exception):
    """The directory cannot be used as it stands; the text says why."""


@dataclass(frozen=True, slots=True)
class Room:
    """A workspace as a job finds it, or leaves it."""

    place: Path
    fill: Fill
    full: bool


@dataclass(slots=True)
class _Known:
    """What is known of one workspace. `ended` counts its jobs; a measuring counts for those that had ended before."""

    ended: int = 0
    measured: int = -1
    fill: Fill | None = None
    until_s: float = math.inf
    work: asyncio.Task[None] | None = None


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
        self._known: dict[Path, _Known] = {}
        self._quota_bytes = quota_bytes
        self._quota_entries = quota_entries

    @property
    def code(self) -> Path:
        """Where the executor keeps copies of operators' modules: beside the projects, under no project's name."""
        return self._root / "~code"

    @property
    def quota(self) -> tuple[int, int]:
        """Bytes and entries that one workspace may hold."""
        return self._quota_bytes, self._quota_entries

    def directory(self, project: str, kind: str, *, owner: int | None = None) -> Path:
        """Return the directory, made if it is missing, open to its owner.

        Args:
            project: whose.
            kind: which of theirs: `files`, `state`, …
            owner: whom a new one is to belong to, under a root gateway; None: to a uid of the project's own.

        Raises:
            WorkspaceRefused: it is a link, or somebody else's, or there is no uid left for a new project.
        """
        with self._lock:  # two new projects at once must not choose the same uid
            return self._directory(project, kind, owner)

    def _directory(self, project: str, kind: str, wanted: int | None) -> Path:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        home = self._root / directory_name(project)
        home.mkdir(mode=0o700, exist_ok=True)
        place = home / kind
        owner = self._owner(home, wanted)
        if not place.is_symlink() and not place.exists():
            place.mkdir(mode=0o700)
            if owner is not None:
                os.chown(place, owner, owner)
        facts = place.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != (os.geteuid() if owner is None else owner):
            raise WorkspaceRefused(f"{place} is not a directory of the project's own user")
        if stat.S_IMODE(facts.st_mode) & 0o700 != 0o700:  # a job may close its own workspace; the next one opens it
            os.close(open_directory(place, mode=0o700))
        return place

    async def room(self, project: str, kind: Literal["files", "state"]) -> Room:
        """Return the workspace with what it holds now.

        Raises:
            WorkspaceRefused, OSError: as `directory`.
        """
        place = await asyncio.to_thread(self.directory, project, kind)
        return await self.look(place)

    async def look(self, place: Path) -> Room:
        """Return what *place* holds, measured after the last job that could write there ended.

        Callers at the same time share one measuring, which goes on if they are cancelled.
        """
        known = self._known.setdefault(place, _Known())
        wanted = known.ended
        while known.fill is None or known.measured < wanted or time.monotonic() > known.until_s:
            if known.work is None or known.work.done():
                known.work = asyncio.create_task(self._measure(place, known))
            await asyncio.shield(known.work)
        return Room(place, known.fill, self._is_full(known.fill))

    def job_ended(self, place: Path) -> None:
        """Forget what *place* held: a job that could write there has ended."""
        self._known.setdefault(place, _Known()).ended += 1

    async def _measure(self, place: Path, known: _Known) -> None:
        before = known.ended
        fill = await asyncio.to_thread(
            measure_tree, place, most_bytes=self._quota_bytes, most_entries=self._quota_entries
        )
        known.fill, known.measured = fill, before
        known.until_s = time.monotonic() + FULL_FOR_S if self._is_full(fill) else math.inf

    def _is_full(self, fill: Fill) -> bool:
        return fill.exceeds(self._quota_bytes, self._quota_entries)

    def _owner(self, home: Path, wanted: int | None) -> int | None:
        """Return the project's uid under a root gateway, chosen now if it has none; None for an ordinary user."""
        if self._uids is None:
            return None
        mine = home.lstat().st_uid
        if wanted is not None:
            if mine not in (0, wanted):
                raise WorkspaceRefused(f"{home} belongs to uid {mine} and not to {wanted}; remove it to start afresh")
            os.chown(home, wanted, wanted)
            return wanted
        if mine != 0:
            return mine
        taken = {entry.stat(follow_symlinks=False).st_uid for entry in os.scandir(self._root)}
        free = next((uid for uid in self._uids if uid not in taken), None)
        if free is None:
            raise WorkspaceRefused(f"all {len(self._uids)} uids for projects are taken; widen the sandbox's uid range")
        os.chown(home, free, free)
        return free


def directory_name(project: str) -> str:
    """Return the name under which *project* is kept: its own where that is a plain file name, else a digest of it."""
    if _PLAIN.match(project):
        return project
    return "~" + hashlib.sha256(project.encode()).hexdigest()[:32]
