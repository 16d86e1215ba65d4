"""The reserve: room on the disk that is held so that texts can still be erased when the disk is full."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RESERVE_FILE = "reserve"
RESERVE_BYTES = 4 * 1024 * 1024


class Reserve:
    """A file of zeros in *directory* with blocks of its own."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / RESERVE_FILE

    @property
    def held(self) -> bool:
        """Whether the room is there."""
        try:
            return self._file.stat().st_size >= RESERVE_BYTES
        except FileNotFoundError:
            return False

    def hold(self) -> str:
        """Take the room if it is not held already; returns why that was not possible, or nothing."""
        try:
            if self.held:
                return ""
            descriptor = os.open(self._file, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._file.unlink(missing_ok=True)  # half a reserve would be taken for one later
            return f"no room could be reserved for erasures on a full disk: {error}"
        return ""

    @contextmanager
    def released(self) -> Iterator[None]:
        """Give the room free for the block. Afterwards it is taken again, if not at once then by the next start."""
        self._file.unlink(missing_ok=True)
        try:
            yield
        finally:
            self.hold()
