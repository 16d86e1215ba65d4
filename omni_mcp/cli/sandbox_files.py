"""Files by their name in an open directory, and copies of them with their holes: what lies above cannot be swapped."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def opened(name: str, flags: int, inside: int) -> Iterator[int]:
    descriptor = os.open(name, flags, dir_fd=inside)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def created(name: str, inside: int) -> contextlib.AbstractContextManager[int]:
    return opened(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, inside)


def poured(old: int, new: int, facts: os.stat_result) -> Iterator[int]:
    """Write what *old* holds into *new*, piece by piece; yields the bytes of each piece after it is read.

    Holes stay holes: they are not read, and take no room in *new*.
    """
    for begin, end in _pieces(old, facts.st_size):
        place = begin
        while place < end and (data := os.pread(old, min(_CHUNK_BYTES, end - place), place)):
            yield len(data)
            view = memoryview(data)
            while view:
                written = os.pwrite(new, view, place)
                view, place = view[written:], place + written
    os.ftruncate(new, facts.st_size)
    os.fchmod(new, stat.S_IMODE(facts.st_mode) & 0o777)  # neither set-user-ID nor the like comes along
    os.utime(new, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def digest_of(file: int, size: int) -> bytes:
    """Return what its first *size* bytes are known by: writes through a shared mapping need not change its times."""
    known = hashlib.blake2b(digest_size=16)
    for begin, end in _pieces(file, size):
        place = begin
        while place < end and (data := os.pread(file, min(_CHUNK_BYTES, end - place), place)):
            known.update(place.to_bytes(8, "big") + data)
            place += len(data)
    return known.digest()


def _pieces(file: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where there is data in the first *size* bytes, from the first to the last."""
    end = 0
    while end < size:
        try:
            begin = os.lseek(file, end, os.SEEK_DATA)
            end = os.lseek(file, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # else there is none from here on
                raise
            return
        if begin < size:
            yield begin, min(end, size)
