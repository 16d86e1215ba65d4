"""The way back of a copied workspace: new and changed regular files, and nothing else, each replaced in one step."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from dataclasses import dataclass, field

from omni_mcp.cli.sandbox_files import DIRECTORY, FILE, HANDLE, created, digest_of, opened, poured

_DEPTH_LIMIT = 64
_MOST_TOLD = 32
_IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST, errno.ELOOP)


@dataclass(slots=True)
class Brought:
    """What came back: how many files, which things did not, and how many `more` of them there are.

    `cut` says why it is not all that belongs back; nothing if it is.
    """

    files: int = 0
    left: list[str] = field(default_factory=list)
    more: int = 0
    cut: str = ""

    def leave(self, name: str, why: str) -> None:
        if len(self.left) < _MOST_TOLD:
            self.left.append(f"{ascii(name)[1:-1]}: {why}")
        else:
            self.more += 1


class _CutShort(Exception):
    """It was stopped, or took too long; the text says which."""


class _TooMuch(Exception):
    """The file would be more than may be written in all."""


class Return:
    """The way back of one copy. What may be there is a job's work: nothing in it is followed or believed."""

    def __init__(
        self, given: int, brought: Brought, owner: tuple[int, int], *, files: dict[str, tuple[int, bytes]],
        links: dict[str, str], most_bytes: int, most_s: float, stopped: threading.Event,
    ) -> None:  # fmt: skip
        self._given, self._brought, self._owner = given, brought, owner
        self._files, self._links = files, links
        self._left_bytes, self._most_s = most_bytes, most_s
        self._until_s = time.monotonic() + most_s
        self._stopped = stopped
        self._written: dict[tuple[int, int], tuple[str, int, int]] = {}  # inode: its path, device and inode there

    def of(self, root: int) -> None:
        try:
            self._directory(root, self._given, "")
        except _CutShort as error:
            self._brought.cut = str(error)

    def _directory(self, source: int, given: int, path: str) -> None:
        for name in sorted(os.listdir(source)):
            inside = f"{path}/{name}"
            try:
                self._entry(name, source, given, inside)
            except _CutShort:
                self._brought.leave(inside, "and what follows it: stopped here")
                raise
            except _TooMuch:
                self._lose(inside, "more than --disk in all")
            except OSError as error:
                if error.errno in _IN_THE_WAY:
                    self._brought.leave(inside, f"something else has that name ({error.strerror})")
                else:
                    self._lose(inside, error.strerror or "cannot be written")

    def _lose(self, inside: str, why: str) -> None:
        self._brought.leave(inside, why)
        self._brought.cut = self._brought.cut or "not everything can be written"

    def _entry(self, name: str, source: int, given: int, inside: str) -> None:
        self._go_on()
        facts = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(facts.st_mode):
            self._enter(name, source, given, inside, facts)
        elif stat.S_ISLNK(facts.st_mode):
            if os.readlink(name, dir_fd=source) != self._links.get(inside):
                self._brought.leave(inside, "a link")
        elif not stat.S_ISREG(facts.st_mode):
            self._brought.leave(inside, "not a regular file")
        elif self._is_changed(name, source, inside, facts):
            first = self._written.get((facts.st_dev, facts.st_ino))
            if first is None:
                self._replace(name, source, given, inside, facts)
            else:
                self._link_again(first, name, given)
            self._brought.files += 1

    def _is_changed(self, name: str, source: int, inside: str, facts: os.stat_result) -> bool:
        known = self._files.get(inside)
        if known is None or known[0] != facts.st_ctime_ns:
            return True
        with opened(name, FILE, source) as file:
            return digest_of(file, facts.st_size) != known[1]

    def _enter(self, name: str, source: int, given: int, inside: str, facts: os.stat_result) -> None:
        if inside.count("/") > _DEPTH_LIMIT:
            self._brought.leave(inside, "too deep")
            return
        fresh = _made_directory(name, given)
        with opened(name, DIRECTORY, source) as below, opened(name, DIRECTORY, given) as copy:
            if fresh:
                _give_away(copy, self._owner, facts.st_mode & 0o055 | 0o700)
            self._directory(below, copy, inside)

    def _replace(self, name: str, source: int, given: int, inside: str, facts: os.stat_result) -> None:
        fresh = _fresh_name()
        with opened(name, FILE, source) as old, created(fresh, given) as new:
            try:
                for count in poured(old, new, facts):
                    self._go_on()
                    self._left_bytes -= count
                    if self._left_bytes < 0:
                        raise _TooMuch
                os.fchown(new, *(_owner_now(name, given) or self._owner))
                os.rename(fresh, name, src_dir_fd=given, dst_dir_fd=given)
            except BaseException:
                os.unlink(fresh, dir_fd=given)
                raise
            if facts.st_nlink > 1:
                made = os.fstat(new)
                self._written[facts.st_dev, facts.st_ino] = (inside, made.st_dev, made.st_ino)

    def _link_again(self, first: tuple[str, int, int], name: str, given: int) -> None:
        """Give *name* to a file that was written before under another one, if it is still there."""
        path, *identity = first
        *above, last = path[1:].split("/")
        fresh = _fresh_name()
        with contextlib.ExitStack() as stack:
            place = self._given
            for part in above:
                place = stack.enter_context(opened(part, HANDLE | os.O_DIRECTORY, place))
            file = stack.enter_context(opened(last, HANDLE, place))
            facts = os.fstat(file)
            if [facts.st_dev, facts.st_ino] != identity:
                raise FileNotFoundError(errno.ENOENT, f"another name of {ascii(path)[1:-1]}, which has gone")
            os.link(f"/proc/self/fd/{file}", fresh, dst_dir_fd=given, follow_symlinks=True)
            try:
                os.rename(fresh, name, src_dir_fd=given, dst_dir_fd=given)
            finally:
                with contextlib.suppress(FileNotFoundError):  # still there if *name* was that file already
                    os.unlink(fresh, dir_fd=given)

    def _go_on(self) -> None:
        if self._stopped.is_set():
            raise _CutShort("interrupted")
        if time.monotonic() > self._until_s:
            raise _CutShort(f"it took longer than {self._most_s:g} s")


def _made_directory(name: str, given: int) -> bool:
    """Make a directory that is ours alone; False if something has that name already."""
    try:
        os.mkdir(name, 0o700, dir_fd=given)
    except FileExistsError:
        return False
    return True


def _give_away(directory: int, owner: tuple[int, int], mode: int) -> None:
    """Hand a new directory over, unless it is not the one that we made: then it is left as it is."""
    facts = os.fstat(directory)
    if facts.st_uid == os.geteuid() and stat.S_IMODE(facts.st_mode) & 0o077 == 0 and not os.listdir(directory):
        os.fchown(directory, *owner)
        os.fchmod(directory, mode)


def _owner_now(name: str, given: int) -> tuple[int, int] | None:
    """Return whose the file is that is about to be replaced; None if there is none."""
    try:
        facts = os.stat(name, dir_fd=given, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return (facts.st_uid, facts.st_gid) if stat.S_ISREG(facts.st_mode) else None


def _fresh_name() -> str:
    return f".omni-{os.getpid()}-{os.urandom(6).hex()}"
