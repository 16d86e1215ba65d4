"""A sheet: 256 events of one run in order, as their own caller sees them, in a file of its own.

Events of a run lie far apart in the log, because many runs write in turns. A sheet has them side by side, ready to be
passed on. It is a copy and no evidence: the table `sheets` says which there are and the sha256 of each, and whoever
finds no such file, or another one, reads the rows. A file beside the database, because it goes with its erasure: what
SQLite leaves of a row that it moved does not. Salted, so that a digest that stays behind lets nobody guess a text.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from omni_mcp.paths import make_private_dir

DIRECTORY = "sheets"  # beside the log
SHEET_EVENTS = 256
SALT_BYTES = 16
SHEET_LIMIT_BYTES = 1024 * 1024  # events so large that they exceed it are few in a page, and quickly read as rows
NO_SHEET = b""  # in place of a digest: there is none, and none is to be made
_ENDS = struct.Struct(f">{SHEET_EVENTS}I")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Events of one run that follow each other, as JSON objects with a comma between any two.

    `ends[i]` is the offset in `text` behind the event `seqs[i]`; the first begins at `start`.
    """

    seqs: Sequence[int]
    ends: Sequence[int]
    text: bytes
    start: int = 0

    def lines(self) -> Iterable[tuple[int, bytes]]:
        """Yield (seq, JSON object) of each event."""
        at = self.start
        for seq, end in zip(self.seqs, self.ends, strict=True):
            yield seq, self.text[at:end]
            at = end + 1

    def behind(self, seq: int) -> Stretch:
        """Return the events behind *seq*, which is one of them or just ahead of the first."""
        passed = seq + 1 - self.seqs[0]
        if passed <= 0:
            return self
        return Stretch(self.seqs[passed:], self.ends[passed:], self.text, self.ends[passed - 1] + 1)


def stretch_of(seqs: Sequence[int], lines: Sequence[bytes]) -> Stretch:
    """Return the stretch of *lines*."""
    return Stretch(seqs, _ends(lines, 0), b",".join(lines))


def sheet_of(seq: int) -> int:
    """Return the number of the sheet that the event *seq* of a run is in."""
    return (seq - 1) // SHEET_EVENTS


def packed(run: str, number: int, lines: Sequence[bytes], salt: bytes) -> bytes:
    """Return the bytes of a sheet."""
    ahead = _head(run, number) + salt
    return ahead + _ENDS.pack(*_ends(lines, len(ahead) + _ENDS.size)) + b",".join(lines)


def salt_of(data: bytes) -> bytes:
    """Return the salt of a sheet, or something else of as many bytes if it is none."""
    at = data.find(b"\n") + 1
    return data[at : at + SALT_BYTES].ljust(SALT_BYTES, b"\0")


class SheetFiles:
    """The files, named by the key of the run and the number of the sheet."""

    def __init__(self, log_file: Path) -> None:
        self._directory = log_file.parent / DIRECTORY

    def write(self, run_key: int, number: int, data: bytes) -> None:
        """Write, then rename. Not synced: a file that a power cut spoiled is not the one that the table names.

        Raises:
            OSError: it cannot be written.
        """
        make_private_dir(self._directory)
        path = self._path(run_key, number)
        part = path.with_suffix(".part")
        descriptor = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
        part.rename(path)

    def read(self, run_key: int, number: int, *, run: str, digest: bytes) -> Stretch | None:
        """Return a sheet; None if there is none with this digest, or it is another run's."""
        data = self.stored(run_key, number)
        head = _head(run, number)
        if data is None or hashlib.sha256(data).digest() != digest or not data.startswith(head):
            return None
        first = number * SHEET_EVENTS + 1
        at = len(head) + SALT_BYTES
        return Stretch(range(first, first + SHEET_EVENTS), _ENDS.unpack_from(data, at), data, at + _ENDS.size)

    def expect(self, run_key: int, numbers: Sequence[int]) -> None:
        """Have the system read sheets that will be read next, where it does not hold them; for one it is no use."""
        for number in numbers if len(numbers) > 1 else ():
            with suppress(OSError):
                descriptor = os.open(self._path(run_key, number), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(descriptor)

    def stored(self, run_key: int, number: int) -> bytes | None:
        """Return what is in a file; None if it cannot be read."""
        try:
            return self._path(run_key, number).read_bytes()
        except OSError:
            return None

    def remove(self, run_key: int, numbers: Iterable[int]) -> None:
        """Overwrite and unlink what holds texts that are to be erased, and what a crash may have left of it.

        Raises:
            OSError: one is still there.
        """
        for number in numbers:
            path = self._path(run_key, number)
            for name in (path, path.with_suffix(".part")):
                _overwrite(name)

    def sweep(self, connection: sqlite3.Connection) -> None:
        """Remove files that the table does not name, and rows whose file is gone, so that it is made again.

        Only for whoever alone writes to the log.
        """
        found = {path.name for path in self._directory.glob("*")} if self._directory.is_dir() else set()
        named = connection.execute("SELECT run, number FROM sheets WHERE digest != ?", (NO_SHEET,)).fetchall()
        lost = [place for place in named if self._path(*place).name not in found]
        for name in found - {self._path(*place).name for place in named}:
            _overwrite(self._directory / name)
        if not lost:
            return
        with suppress(sqlite3.OperationalError):  # the log is locked: their rows stay, and rows of events are read
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.executemany("DELETE FROM sheets WHERE run = ? AND number = ?", lost)
            finally:
                connection.execute("COMMIT")

    def _path(self, run_key: int, number: int) -> Path:
        return self._directory / f"{run_key}-{number}.sheet"


def _ends(lines: Sequence[bytes], start: int) -> list[int]:
    ends, at = [], start - 1
    for line in lines:
        at += 1 + len(line)
        ends.append(at)
    return ends


def _head(run: str, number: int) -> bytes:
    return b"omni-mcp sheet 1 %b %d\n" % (run.encode(), number)


def _overwrite(path: Path) -> None:
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.write(descriptor, bytes(os.fstat(descriptor).st_size))
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        path.unlink()
