"""Blobs that are too large for rows: a file for each, written beside the others' way and put in its place in one step.

Half a megabyte at a time reaches the disk, 100 MB in a second, and in between the disk is left to others. So whoever
else waits for it, the run log above all, waits for one of these and not for everything. One in a hundred commits of the
log took 13 ms beside a disk that was kept busy for half of the time, and 4 at this pace, as beside nothing.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.contracts.large import KeptFile
from omni_mcp.engines.artifacts.write_out import write_out
from omni_mcp.paths import make_private_dir, sync_directory

SLICE_BYTES = 512 * 1024
SLICE_S = SLICE_BYTES / 100_000_000  # for each of them at least, the pause behind it included
PAUSE_LIMIT_S = 0.005  # of a pause as long as its slice took; behind a quick one SLICE_S may ask for a little more
PART = ".part"


class BlobFiles:
    """The files of one store. Each method may wait for the disk, and raises OSError where it fails."""

    def __init__(self, directory: Path) -> None:
        self._directory = make_private_dir(directory)

    def path(self, sha256: str) -> Path:
        """Return where a blob lies."""
        return self._directory / sha256[:2] / sha256

    def is_whole(self, sha256: str, size_bytes: int) -> bool:
        """Whether a blob is there, to its last byte."""
        try:
            return self.path(sha256).stat().st_size == size_bytes
        except FileNotFoundError:
            return False

    def read(self, sha256: str) -> bytes:
        """Return a blob.

        Raises:
            LogCorrupt: it is gone.
        """
        try:
            return self.path(sha256).read_bytes()
        except FileNotFoundError:
            raise LogCorrupt("the artifact is damaged", detail=f"the file of {sha256} is gone") from None

    @contextmanager
    def written(self, sha256: str, data: bytes | KeptFile) -> Iterator[Path]:
        """Write a blob beside its place, to the disk; `put_in_place` it inside the block, or it is gone after that."""
        place = self.path(sha256)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        part = place.with_name(f"{sha256}.{threading.get_native_id()}{PART}")
        descriptor = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # says that somebody is at it
            _write(descriptor, data)
            yield part
        finally:
            part.unlink(missing_ok=True)
            os.close(descriptor)

    def put_in_place(self, sha256: str, part: Path) -> None:
        """Give what was written its name, to the disk: a power cut leaves the whole blob under it, or nothing."""
        place = self.path(sha256)
        part.rename(place)
        for directory in (place.parent, self._directory):
            sync_directory(directory)

    def remove(self, sha256: str) -> None:
        """Remove a blob that may be there."""
        self.path(sha256).unlink(missing_ok=True)

    def remove_leftovers(self, is_known: Callable[[str], bool]) -> None:
        """Remove what a crash left: half-written files, and whole ones that are not known."""
        for path in self._directory.glob("*/*"):
            if path.suffix == PART:
                _remove_if_nobody_writes(path)
            elif not is_known(path.name):
                path.unlink(missing_ok=True)


def _write(descriptor: int, data: bytes | KeptFile) -> None:
    size = len(data) if isinstance(data, bytes) else data.size_bytes
    for at in range(0, size, SLICE_BYTES):
        began_s = time.monotonic()
        end = min(at + SLICE_BYTES, size)
        if isinstance(data, bytes):
            _write_all(descriptor, memoryview(data)[at:end])
        else:
            _copy(data, at, end, descriptor)
        write_out(descriptor, at, end - at)
        if end < size:
            took_s = time.monotonic() - began_s
            time.sleep(max(min(took_s, PAUSE_LIMIT_S), SLICE_S - took_s))
    os.fsync(descriptor)


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]


def _copy(kept: KeptFile, at: int, end: int, out: int) -> None:
    while at < end:
        copied = os.sendfile(out, kept.file, kept.start + at, end - at)
        if copied == 0:
            raise OSError("the file is shorter than it was said to be")
        at += copied


def _remove_if_nobody_writes(part: Path) -> None:
    with suppress(FileNotFoundError, BlockingIOError):
        descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
