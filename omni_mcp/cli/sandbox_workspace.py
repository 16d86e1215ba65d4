"""`--workspace DIR`: a directory of the caller at /workspace. Mounted as it is; under root, copied in and back out.

Root's directories are not mounted, because a job that may change modes there could leave a program that runs as root.
Nor is any directory given away that we load programs or settings from.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from omni_mcp.contracts.manifest import Limits
from omni_mcp.contracts.sandbox import Mount
from omni_mcp.engines.sandbox.launcher import WORKSPACE, base_interpreter
from omni_mcp.engines.sandbox.tree import measure_tree
from omni_mcp.engines.sandbox.uids import DEFAULT_RANGE, owners_part
from omni_mcp.paths import bundled, find_home

_DEPTH_LIMIT = 64
_MOST_TOLD = 32
_CHUNK_BYTES = 1 << 20
_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_SLAVE = 2, 4, 16384, 1 << 19
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_UNBOUNDED = 1 << 62
_MNT_DETACH = 2
_SYSTEM = ("proc", "sys", "dev", "run", "usr", "boot", "etc", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_OWN_BITS = 0o700
_PLACE = "omni-workspace-"  # the process id follows


class WorkspaceRefused(Exception):
    """The directory cannot be used; the text says why."""


class WorkspaceUnsafe(Exception):
    """The directory is the system's or ours: whoever may write there decides what we run. The text says why."""


class CannotCopy(Exception):
    """Root may not make room for a copy here; the text says what to do."""


@dataclass(slots=True)
class Brought:
    """What came back from a copied workspace: how many files, and which things did not."""

    files: int = 0
    left: list[str] = field(default_factory=list)

    def leave(self, name: str, why: str) -> None:
        if len(self.left) < _MOST_TOLD:
            self.left.append(f"{ascii(name)[1:-1]}: {why}")


class GivenWorkspace:
    """A directory for one job. `mount` is what the job gets; `bring_back` belongs after its end, `close` after that.

    Raises:
        WorkspaceRefused: it is no directory of the caller, or holds more than the job may.
        WorkspaceUnsafe: it is the system's or ours, lies in such a directory, or such a directory lies in it.
        CannotCopy: it would have to be copied, and cannot be.
    """

    def __init__(self, directory: Path, limits: Limits) -> None:
        place = _checked(directory)
        self._copied = os.geteuid() == 0
        try:
            self._given = os.open(place, _DIRECTORY)
        except OSError as error:
            raise WorkspaceRefused(f"{directory}: {error.strerror}") from error
        self._own_bits = stat.S_IMODE(os.fstat(self._given).st_mode) & _OWN_BITS
        self._seen: dict[str, int] = {}
        if self._copied:
            self._copy = _Copy(self._given, limits)
            try:
                self._seen = self._copy.fill()
            except BaseException:
                self._copy.close()
                raise
            self.mount = Mount(source=self._copy.place, inside=WORKSPACE, writable=True)
        else:
            fill = measure_tree(place, most_bytes=_UNBOUNDED, most_entries=_UNBOUNDED)
            self.mount = Mount(
                source=place, inside=WORKSPACE, writable=True,
                most_bytes=fill.held_bytes + (limits.disk_mib << 20) if fill.whole else None,
                most_entries=fill.entries + limits.inodes if fill.whole else None,
            )  # fmt: skip

    def bring_back(self) -> Brought:
        """Copy new and changed regular files back, nothing else. Where the directory itself was mounted: nothing."""
        brought = Brought()
        if self._copied:
            self._copy.empty_into(self._given, self._seen, brought)
        return brought

    def close(self) -> None:
        """Take the copy away, or open the directory to its owner again if the job closed it."""
        if self._copied:
            self._copy.close()
        else:
            mode = stat.S_IMODE(os.fstat(self._given).st_mode)
            if mode & self._own_bits != self._own_bits:
                os.fchmod(self._given, mode | self._own_bits)
        os.close(self._given)


def _checked(directory: Path) -> Path:
    place = Path(os.path.realpath(directory))
    try:
        str(place).encode()
        facts = place.lstat()
    except UnicodeEncodeError as error:
        raise WorkspaceRefused(f"{ascii(str(place))[1:-1]} is not UTF-8") from error
    except OSError as error:
        raise WorkspaceRefused(f"{directory}: {error.strerror}") from error
    if not stat.S_ISDIR(facts.st_mode):
        raise WorkspaceRefused(f"{directory} is no directory")
    if len(place.parts) == 1 or place.parts[1] in _SYSTEM:
        raise WorkspaceUnsafe(f"{place} is the system's own")
    for ours, what in _ours():
        if place.is_relative_to(ours) or ours.is_relative_to(place):
            raise WorkspaceUnsafe(f"{place} {'lies in' if place.is_relative_to(ours) else 'holds'} {ours}, {what}")
    if os.geteuid() not in (0, facts.st_uid):
        raise WorkspaceRefused(f"{place} belongs to user {facts.st_uid}; a workspace must be yours")
    return place


def _ours() -> Iterator[tuple[Path, str]]:
    """Yield the resolved places that we load from, each with what it is to us."""
    home = find_home()
    for settings in (home.config, home.data, home.runtime):
        yield _resolved(settings), "where the gateway keeps its settings and data"
    interpreter = base_interpreter()
    package = Path(__file__).parent.parent
    for program in (sys.prefix, sys.base_prefix, os.path.dirname(interpreter.binary), *interpreter.prefixes):
        yield _resolved(program), "where the interpreter is"
    for modules in (str(package), str(bundled("sandbox")), *sys.path):
        yield _resolved(modules), "where our own modules come from"
    for programs in filter(os.path.isabs, os.environ.get("PATH", "").split(os.pathsep)):
        yield _resolved(programs), "where programs such as bubblewrap are looked for"


def _resolved(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


class _Copy:
    """The copy lies on a tmpfs in a mount namespace of this process: it is gone when we are.

    The tmpfs covers nothing but `place`, an empty directory made for it. Only one per process, made and closed in the
    thread that starts the event loop: the namespace is that of the thread that makes it.
    """

    def __init__(self, given: int, limits: Limits) -> None:
        self._given = given
        self._owner = owners_part(DEFAULT_RANGE)[-1 - os.getpid() % 256]
        self.place = _empty_place()
        try:
            _cover(self.place, f"size={limits.disk_mib << 20},nr_inodes={limits.inodes},mode=0700")
            self._root = os.open(self.place, _DIRECTORY)
        except BaseException:
            _uncover(self.place)
            raise

    def close(self) -> None:
        os.close(self._root)
        _uncover(self.place)

    def fill(self) -> dict[str, int]:
        """Copy everything in; returns the change time of each file's copy by its path, in ns."""
        seen: dict[str, int] = {}
        try:
            self._copy_in(self._given, self._root, "", 1, seen)
        except OSError as error:
            raise WorkspaceRefused(f"cannot be copied: {error.strerror}; a larger --disk may help") from error
        os.fchown(self._root, self._owner, self._owner)
        return seen

    def empty_into(self, given: int, seen: dict[str, int], brought: Brought) -> None:
        facts = os.fstat(given)
        self._copy_out(self._root, given, "", seen, brought, (facts.st_uid, facts.st_gid))

    def _copy_in(self, source: int, target: int, path: str, depth: int, seen: dict[str, int]) -> None:
        if depth > _DEPTH_LIMIT:
            raise WorkspaceRefused(f"{ascii(path)[1:-1]} lies deeper than {_DEPTH_LIMIT} directories")
        for name in os.listdir(source):
            inside = f"{path}/{name}"
            facts = os.stat(name, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                os.mkdir(name, 0o700, dir_fd=target)
                with _opened(name, _DIRECTORY, source) as below, _opened(name, _DIRECTORY, target) as copy:
                    self._copy_in(below, copy, inside, depth + 1, seen)
                    os.fchmod(copy, stat.S_IMODE(facts.st_mode) & 0o777)
                    os.fchown(copy, self._owner, self._owner)
            elif stat.S_ISLNK(facts.st_mode):
                os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
                os.chown(name, self._owner, self._owner, dir_fd=target, follow_symlinks=False)
            elif stat.S_ISREG(facts.st_mode):
                with _opened(name, _FILE, source) as old, _created(name, target) as new:
                    _pour(old, new, facts)
                    os.fchown(new, self._owner, self._owner)
                    seen[inside] = os.fstat(new).st_ctime_ns

    def _copy_out(
        self, source: int, given: int, path: str, seen: dict[str, int], brought: Brought, owner: tuple[int, int]
    ) -> None:
        for name in sorted(os.listdir(source)):
            inside = f"{path}/{name}"
            facts = os.stat(name, dir_fd=source, follow_symlinks=False)
            try:
                if stat.S_ISDIR(facts.st_mode):
                    if path.count("/") >= _DEPTH_LIMIT:
                        brought.leave(inside, "too deep")
                        continue
                    fresh = _made_directory(name, given)
                    with _opened(name, _DIRECTORY, source) as below, _opened(name, _DIRECTORY, given) as copy:
                        if fresh:
                            _give_away(copy, owner, facts.st_mode & 0o055 | 0o700)
                        self._copy_out(below, copy, inside, seen, brought, owner)
                elif not stat.S_ISREG(facts.st_mode):
                    if not stat.S_ISLNK(facts.st_mode):
                        brought.leave(inside, "not a regular file")
                elif seen.get(inside) != facts.st_ctime_ns:
                    _replace(name, source, given, facts, _owner_now(name, given) or owner)
                    brought.files += 1
            except OSError as error:
                brought.leave(inside, error.strerror or "cannot be written")


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


def _replace(name: str, source: int, given: int, facts: os.stat_result, owner: tuple[int, int]) -> None:
    fresh = f".omni-{os.getpid()}-{os.urandom(6).hex()}"
    with _opened(name, _FILE, source) as old, _created(fresh, given) as new:
        try:
            _pour(old, new, facts)
            os.fchown(new, *owner)
            os.rename(fresh, name, src_dir_fd=given, dst_dir_fd=given)
        except OSError:
            os.unlink(fresh, dir_fd=given)
            raise


def _pour(old: int, new: int, facts: os.stat_result) -> None:
    while data := os.read(old, _CHUNK_BYTES):
        view = memoryview(data)
        while view:
            view = view[os.write(new, view) :]
    os.fchmod(new, stat.S_IMODE(facts.st_mode) & 0o777)  # neither set-user-ID nor the like comes along
    os.utime(new, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@contextlib.contextmanager
def _opened(name: str, flags: int, inside: int) -> Iterator[int]:
    descriptor = os.open(name, flags, dir_fd=inside)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _created(name: str, inside: int) -> contextlib.AbstractContextManager[int]:
    return _opened(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, inside)


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
