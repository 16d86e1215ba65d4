"""JobDirectories: the private, empty directories of the host that plain process trees have for a workspace."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path

from omni_mcp.engines.sandbox.tree import open_directory


class JobDirectories:
    """One directory for each job, all in one place of ours, which `close` removes."""

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="omni-jobs-"))
        self.place.chmod(0o711)  # its users go through it, and cannot list it

    def make(self, number: int, uid: int | None) -> Path:
        """Return the new directory of job *number*, open to *uid* alone.

        Raises:
            OSError: it cannot be made.
        """
        made = self.place / str(number)
        made.mkdir(mode=0o700)
        if uid is not None:
            os.chown(made, uid, uid)
        return made

    async def remove(self, made: Path) -> None:
        """Remove the directory of a job that has ended.

        Raises:
            OSError: something in it cannot be removed.
        """
        await asyncio.to_thread(remove_tree, made)

    def close(self) -> None:
        """Remove the place. A directory that could not be removed stays, and keeps it."""
        with contextlib.suppress(OSError):
            self.place.rmdir()


def remove_tree(place: Path) -> None:
    """Remove *place* and everything in it, however deep and whatever its modes. Nobody may change it meanwhile.

    Raises:
        OSError: something cannot be removed.
    """
    with contextlib.suppress(FileNotFoundError):
        root = open_directory(place, mode=0o700)
        try:
            while names := os.listdir(root):
                for name in names:
                    _remove(name, root)
        finally:
            os.close(root)
        place.rmdir()


def _remove(name: str, root: int) -> None:
    """Remove an entry of *root*; directories in it are brought up to *root* first, so no path is ever a long one."""
    if _unlinked(name, root):
        return
    itself = open_directory(name, inside=root, mode=0o700)
    try:
        for child in os.listdir(itself):
            if not _unlinked(child, itself):
                os.close(open_directory(child, inside=itself, mode=0o700))  # one that is closed cannot be moved
                os.rename(child, f".moved-{os.urandom(16).hex()}", src_dir_fd=itself, dst_dir_fd=root)
    finally:
        os.close(itself)
    os.rmdir(name, dir_fd=root)


def _unlinked(name: str, directory: int) -> bool:
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    return True
