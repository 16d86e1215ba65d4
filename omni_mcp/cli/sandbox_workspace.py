"""`--workspace DIR`: a directory of the caller at /workspace. Mounted as it is; under root, copied in and back out.

Root's directories are not mounted, because a job that may change modes there could leave a program that runs as root.
Nor is any directory given away that we load programs or settings from.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from omni_mcp.cli.sandbox_copy import TooLarge, WorkspaceCopy
from omni_mcp.cli.sandbox_files import DIRECTORY
from omni_mcp.cli.sandbox_return import Brought
from omni_mcp.contracts.manifest import Limits
from omni_mcp.contracts.sandbox import Mount
from omni_mcp.engines.sandbox.launcher import WORKSPACE
from omni_mcp.engines.sandbox.tree import measure_tree
from omni_mcp.host_places import HostPlaces, general_fault
from omni_mcp.paths import find_home

_UNBOUNDED = 1 << 62
_OWN_BITS = 0o700


class WorkspaceRefused(Exception):
    """The directory cannot be used; the text says why."""


class WorkspaceUnsafe(Exception):
    """The directory is the system's or ours: whoever may write there decides what we run. The text says why."""


class GivenWorkspace:
    """A directory for one job. `mount` is what the job gets; `bring_back` belongs after its end, `close` after that.

    Raises:
        WorkspaceRefused: it is no directory of the caller, or holds more than the job may.
        WorkspaceUnsafe: it is the system's or ours, lies in such a directory, or such a directory lies in it.
        CannotCopy: it would have to be copied, and cannot be.
    """

    def __init__(self, directory: Path, limits: Limits) -> None:
        place = _checked(directory)
        self._given = open_as_checked(place)
        self._own_bits = stat.S_IMODE(os.fstat(self._given).st_mode) & _OWN_BITS
        self._copy: WorkspaceCopy | None = None
        if os.geteuid() == 0:
            try:
                self._copy = WorkspaceCopy(self._given, limits)
            except TooLarge as error:
                raise WorkspaceRefused(str(error)) from error
            self.mount = Mount(source=self._copy.place, inside=WORKSPACE, writable=True, copy=True)
        else:
            fill = measure_tree(place, most_bytes=_UNBOUNDED, most_entries=_UNBOUNDED)
            self.mount = Mount(
                source=place, inside=WORKSPACE, writable=True,
                most_bytes=fill.held_bytes + (limits.disk_mib << 20) if fill.whole else None,
                most_entries=fill.entries + limits.inodes if fill.whole else None,
            )  # fmt: skip

    def bring_back(self) -> Brought:
        """Copy new and changed regular files back, nothing else. Where the directory itself was mounted: nothing."""
        return self._copy.bring_back() if self._copy is not None else Brought()

    def stop(self) -> None:
        """Have `bring_back`, which runs in another thread, end where it is."""
        if self._copy is not None:
            self._copy.stop()

    def close(self) -> None:
        """Take the copy away, or open the directory to its owner again if the job closed it."""
        if self._copy is not None:
            self._copy.close()
        else:
            mode = stat.S_IMODE(os.fstat(self._given).st_mode)
            if mode & self._own_bits != self._own_bits:
                os.fchmod(self._given, mode | self._own_bits)
        os.close(self._given)


def open_as_checked(place: Path) -> int:
    """Open the directory that *place* names, and see that it is the one: a link may have come in above it meanwhile.

    Raises:
        WorkspaceRefused: it cannot be opened, or lies elsewhere.
    """
    try:
        given = os.open(place, DIRECTORY)
    except OSError as error:
        raise WorkspaceRefused(f"{place}: {error.strerror}") from error
    try:
        opened = os.readlink(f"/proc/self/fd/{given}")
    except OSError as error:
        os.close(given)
        raise WorkspaceRefused(f"{place} cannot be checked without /proc") from error
    if opened != str(place):
        os.close(given)
        raise WorkspaceRefused(f"{place} has been moved, or replaced by a link, at this moment")
    return given


def _checked(directory: Path) -> Path:
    try:
        place = Path(os.path.realpath(directory))
    except OSError as error:  # where we stand was removed
        raise WorkspaceRefused(f"{directory}: {error.strerror}") from error
    try:
        str(place).encode()
        facts = place.lstat()
    except UnicodeEncodeError as error:
        raise WorkspaceRefused(f"{ascii(str(place))[1:-1]} is not UTF-8") from error
    except OSError as error:
        raise WorkspaceRefused(f"{directory}: {error.strerror}") from error
    if not stat.S_ISDIR(facts.st_mode):
        raise WorkspaceRefused(f"{directory} is no directory")
    if fault := HostPlaces(find_home()).danger(str(place)):
        raise WorkspaceUnsafe(f"{place} {fault}")
    if os.geteuid() not in (0, facts.st_uid):
        raise WorkspaceRefused(f"{place} belongs to user {facts.st_uid}; a workspace must be yours")
    if fault := general_fault(str(place)):
        raise WorkspaceRefused(fault)
    return place
