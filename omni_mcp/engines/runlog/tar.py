"""A tar archive in exactly one spelling: plain files, no times, no owners, nothing packed. Any `tar` can list it.

The reader takes only what the writer writes, byte for byte: every byte of an archive is either content, which is hashed
elsewhere, or has one value that it may have. Nothing is ever unpacked to disk, so a name is a key and not a path, and
nothing in it is longer than the file is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from omni_mcp.contracts.errors import LogCorrupt

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
MEMBERS_LIMIT = 1_000_000
SIZE_LIMIT_BYTES = 8**11 - 1  # of one member: eleven octal digits
_NAME_BYTES = 100


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive: its name, where its content begins, and how long that is."""

    name: str
    offset: int
    size: int


def header(name: str, size: int) -> bytes:
    """Return the block before a file's content (POSIX.1-1988, ustar)."""
    fields = b"%s0000600\0%s%s%011o\0%011o\0%s0" % (
        name.encode("ascii").ljust(_NAME_BYTES, b"\0"), b"0000000\0", b"0000000\0", size, 0, b" " * 8,
    )  # fmt: skip
    block = (fields.ljust(257, b"\0") + b"ustar\00000").ljust(329, b"\0") + b"0000000\0" * 2
    block = block.ljust(BLOCK_BYTES, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


class TarWriter:
    """Writes members one after the other; the size of one is filled in when it is complete."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._began = 0
        self._name = ""

    def begin(self, name: str) -> None:
        """Begin a member; what is written to `out` until `end` is its content."""
        self._name, self._began = name, self._out.tell()
        self._out.write(bytes(BLOCK_BYTES))

    def end(self) -> int:
        """End the member and return its size.

        Raises:
            OSError: it is larger than a member can be.
        """
        at = self._out.tell()
        size = at - self._began - BLOCK_BYTES
        if size > SIZE_LIMIT_BYTES:
            raise OSError(f"{self._name} would have {size} bytes, and {SIZE_LIMIT_BYTES} is the most it may have")
        self._out.write(bytes(-size % BLOCK_BYTES))
        after = self._out.tell()
        self._out.seek(self._began)
        self._out.write(header(self._name, size))
        self._out.seek(after)
        return size

    def close(self) -> None:
        """End the archive."""
        self._out.write(END)


def members_of(source: BinaryIO) -> Iterator[Member]:
    """Yield the members of an archive that is open for reading, having checked everything but their contents.

    Raises:
        LogCorrupt: a byte of it is not as the writer writes it, it is cut off, or a name is there twice.
    """
    end = source.seek(0, os.SEEK_END)
    seen: set[str] = set()
    at = 0
    while True:
        source.seek(at)
        block = source.read(BLOCK_BYTES)
        if len(block) < BLOCK_BYTES:
            raise _broken(at, "it is cut off")
        if not any(block):
            break
        member = _member(block, at)
        after = member.offset + member.size
        padded = after + -after % BLOCK_BYTES
        if padded > end:
            raise _broken(at, f"it is cut off inside {member.name}")
        source.seek(after)
        if any(source.read(padded - after)):
            raise _broken(after, f"what fills the room behind {member.name} is not empty")
        if member.name in seen:
            raise _broken(at, f"{member.name} is there twice")
        if len(seen) >= MEMBERS_LIMIT:
            raise _broken(at, f"it has more than {MEMBERS_LIMIT} files")
        seen.add(member.name)
        yield member
        at = padded
    source.seek(at)
    if end - at != len(END) or source.read(len(END)) != END:
        raise _broken(at, "something stands behind its end, or its end is not whole")


def _member(block: bytes, at: int) -> Member:
    try:
        name = block[:_NAME_BYTES].rstrip(b"\0").decode("ascii")
        size = int(block[124:135], 8)
    except ValueError as error:
        raise _broken(at, "the header of a file cannot be read") from error
    if not name or size < 0 or header(name, size) != block:
        raise _broken(at, f"the header of {name!r} is not one that an export writes")
    return Member(name, at + BLOCK_BYTES, size)


def _broken(at: int, why: str) -> LogCorrupt:
    return LogCorrupt("not a whole audit pack", detail=f"at byte {at}: {why}")
