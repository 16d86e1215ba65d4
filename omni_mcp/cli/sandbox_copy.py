"""The copy of root's workspace: made in memory before the job, and brought back after it, file by file.

It lies on a tmpfs in a mount namespace of this process: it is gone when we are.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import tempfile
import threading
from pathlib import Path

from omni_mcp.cli.sandbox_files import DIRECTORY, FILE, created, digest_of, opened, poured
from omni_mcp.cli.sandbox_return import Brought, Return
from omni_mcp.contracts.manifest import Limits
from omni_mcp.engines.sandbox.uid_locks import UidLocks
from omni_mcp.engines.sandbox.uids import DEFAULT_RANGE, owners_part

_DEPTH_LIMIT = 64
_LEAST_TIME_S = 60.0  # to bring the copy back, whatever the job itself has
_OWNERS = 256  # of the range: the last of those that own directories
_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_SLAVE = 2, 4, 16384, 1 << 19
_MNT_DETACH = 2
_PLACE = "omni-workspace-"  # the process id follows


class CannotCopy(Exception):
    """Root may not make room for a copy here; the text says what to do."""


class TooLarge(Exception):
    """The directory holds more than the job may, or cannot be read; the text says which."""


class WorkspaceCopy:
    """One per process, made and closed in the thread that starts the event loop: the namespace is that thread's.

    The tmpfs covers nothing but `place`, an empty directory made for it.

    Raises:
        CannotCopy: there is no room for it here.
        TooLarge: *given* does not fit.
    """

    def __init__(self, given: int, limits: Limits) -> None:
        self._given = given
        self._limits = limits
        self._locks = UidLocks()
        self._owner = _free_owner(self._locks)
        self._stopped = threading.Event()
        self._files: dict[str, tuple[int, bytes]] = {}  # when each file's copy last changed, in ns, by its path
        self._links: dict[str, str] = {}
        self.place = _empty_place()
        try:
            _cover(self.place, f"size={limits.disk_mib << 20},nr_inodes={limits.inodes},mode=0700")
            self._root = os.open(self.place, DIRECTORY)
        except BaseException:
            _uncover(self.place)
            raise
        try:
            self._fill()
        except BaseException:
            self.close()
            raise

    def bring_back(self) -> Brought:
        """Copy new and changed regular files back, nothing else. Takes no longer than the job may, or a minute."""
        brought, facts = Brought(), os.fstat(self._given)
        Return(
            self._given, brought, (facts.st_uid, facts.st_gid), files=self._files, links=self._links,
            most_bytes=self._limits.disk_mib << 20, most_s=max(_LEAST_TIME_S, self._limits.timeout_s),
            stopped=self._stopped,
        ).of(self._root)  # fmt: skip
        return brought

    def stop(self) -> None:
        """Have `bring_back`, which runs in another thread, end where it is."""
        self._stopped.set()

    def close(self) -> None:
        """Take the copy away."""
        os.close(self._root)
        _uncover(self.place)
        self._locks.close()

    def _fill(self) -> None:
        try:
            self._copy_in(self._given, self._root, "", 1)
        except OSError as error:
            raise TooLarge(self._why_not(error)) from error
        os.fchown(self._root, self._owner, self._owner)

    def _why_not(self, error: OSError) -> str:
        if error.errno != errno.ENOSPC:
            return f"cannot be copied: {error.strerror}"
        if os.statvfs(self.place).f_ffree == 0:
            return (
                f"holds more than {self._limits.inodes} files and directories, and no more can be copied: give a "
                "smaller directory, or a profile of your own with larger limits.inodes (--profile)"
            )
        return f"holds more than {self._limits.disk_mib} MiB: a larger --disk helps"

    def _copy_in(self, source: int, target: int, path: str, depth: int) -> None:
        if depth > _DEPTH_LIMIT:
            raise TooLarge(f"{ascii(path)[1:-1]} lies deeper than {_DEPTH_LIMIT} directories")
        for name in os.listdir(source):
            inside = f"{path}/{name}"
            facts = os.stat(name, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                os.mkdir(name, 0o700, dir_fd=target)
                with opened(name, DIRECTORY, source) as below, opened(name, DIRECTORY, target) as copy:
                    self._copy_in(below, copy, inside, depth + 1)
                    os.fchmod(copy, stat.S_IMODE(facts.st_mode) & 0o777)
                    os.fchown(copy, self._owner, self._owner)
            elif stat.S_ISLNK(facts.st_mode):
                self._links[inside] = os.readlink(name, dir_fd=source)
                os.symlink(self._links[inside], name, dir_fd=target)
                os.chown(name, self._owner, self._owner, dir_fd=target, follow_symlinks=False)
            elif stat.S_ISREG(facts.st_mode):
                with opened(name, FILE, source) as old, created(name, target) as new:
                    for _ in poured(old, new, facts):
                        pass
                    os.fchown(new, self._owner, self._owner)
                with opened(name, FILE, target) as copy:
                    made = os.fstat(copy)
                    self._files[inside] = (made.st_ctime_ns, digest_of(copy, made.st_size))


def _free_owner(locks: UidLocks) -> int:
    """Return the user that the copy belongs to, and its job runs as: nobody else's now."""
    first, owners = os.getpid() % _OWNERS, owners_part(DEFAULT_RANGE)
    for number in range(_OWNERS):
        owner = owners[-1 - (first + number) % _OWNERS]
        if locks.take(owner):
            return owner
    raise CannotCopy(f"{_OWNERS} others of root's run at the same time")


def _empty_place() -> Path:
    """Make an empty directory that only root can enter, where nobody else can put another in its place."""
    _sweep(Path("/run"))
    for parent in ("/run", "/tmp"):
        with contextlib.suppress(OSError):
            return Path(os.path.realpath(tempfile.mkdtemp(prefix=f"{_PLACE}{os.getpid()}-", dir=parent)))
    raise CannotCopy("there is no room for an empty directory in /run or /tmp: run this as an ordinary user")


def _sweep(parent: Path) -> None:
    """Remove the empty directories of runs that were killed."""
    for place in parent.glob(f"{_PLACE}*"):
        pid = place.name.removeprefix(_PLACE).partition("-")[0]
        if pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            with contextlib.suppress(OSError):
                place.rmdir()


def _uncover(place: Path) -> None:
    ctypes.CDLL(None).umount2(os.fsencode(place), _MNT_DETACH)
    with contextlib.suppress(OSError):
        place.rmdir()


def _cover(place: Path, options: str) -> None:
    """Put an empty tmpfs over *place*, seen by this process and its children alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    where, tmpfs = os.fsencode(place), b"tmpfs"
    done = (
        libc.unshare(_CLONE_NEWNS) == 0
        and libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None) == 0
        and libc.mount(tmpfs, where, tmpfs, ctypes.c_ulong(_MS_NOSUID | _MS_NODEV), options.encode()) == 0
    )
    if not done:
        why = os.strerror(ctypes.get_errno())
        raise CannotCopy(f"root may not mount here ({why}): run this as an ordinary user")
