"""Opens files beneath the working directory, whatever links lie in the way: step by step, none followed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from failure import ToolFailure

PATH_LIMIT = 1024
STEP_LIMIT = 32
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def split(path: str) -> list[str]:
    """Return the steps of a relative path; none for the workspace itself.

    Raises:
        ToolFailure: it is absolute, climbs out, or is too long.
    """
    if path.startswith("/"):
        raise ToolFailure(f"{path!r}: give a path relative to the workspace, such as notes/today.md")
    if len(path) > PATH_LIMIT or "\x00" in path:
        raise ToolFailure(f"a path has at most {PATH_LIMIT} characters and no NUL")
    steps = [step for step in path.split("/") if step not in ("", ".")]
    if ".." in steps:
        raise ToolFailure(f"{path!r}: '..' is not allowed; paths stay inside the workspace")
    if len(steps) > STEP_LIMIT:
        raise ToolFailure(f"a path has at most {STEP_LIMIT} steps")
    return steps


@contextmanager
def folder(steps: list[str], *, create: bool = False) -> Iterator[int]:
    """Open the directory at *steps* below the working directory, creating what is missing if *create*."""
    current = os.open(".", _DIRECTORY)
    try:
        for index, step in enumerate(steps):
            current = _enter(current, step, "/".join(steps[: index + 1]), create)
        yield current
    finally:
        os.close(current)


def _enter(current: int, step: str, shown: str, create: bool) -> int:
    try:
        if create:
            with suppress(FileExistsError):
                os.mkdir(step, 0o755, dir_fd=current)
        following = os.open(step, _DIRECTORY, dir_fd=current)
    except OSError as error:
        raise explained(error, shown) from error
    os.close(current)
    return following


def read(path: str, *, limit: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        ToolFailure: there is none, it is not a regular file, or it is larger than *limit* bytes.
    """
    steps = split(path)
    if not steps:
        raise ToolFailure(f"{path!r} is a directory; list it with files_list")
    with folder(steps[:-1]) as parent:
        try:
            descriptor = os.open(steps[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except OSError as error:
            raise explained(error, path) from error
    with open(descriptor, "rb") as stream:
        facts = os.fstat(descriptor)
        if stat.S_ISDIR(facts.st_mode):
            raise ToolFailure(f"{path!r} is a directory; list it with files_list")
        if not stat.S_ISREG(facts.st_mode):
            raise ToolFailure(f"{path!r} is not a regular file")
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ToolFailure(f"{path!r} is larger than {limit} bytes")
    return data


def replace(path: str, data: bytes, *, exclusive: bool = False) -> None:
    """Write a file as a whole: readers see the old content or the new one. Missing directories are created.

    Raises:
        ToolFailure: something in the way is a link or no directory, or, with *exclusive*, the file exists.
    """
    steps = split(path)
    if not steps:
        raise ToolFailure(f"{path!r} is a directory")
    with folder(steps[:-1], create=True) as parent:
        kind = kind_at(parent, steps[-1])
        if kind not in ("missing", "file"):
            raise ToolFailure(f"{path!r} is a {kind}; only regular files are written")
        if exclusive and kind == "file":
            raise ToolFailure(f"{path!r} exists already; say mode: overwrite to replace it")
        temporary = f".{steps[-1][:100]}.{os.getpid()}.{os.urandom(6).hex()}.tmp"
        try:
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=parent
            )
            try:
                with open(descriptor, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(descriptor)
                if exclusive:  # a link fails where a rename would replace what came in the meantime
                    os.link(temporary, steps[-1], src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
                else:
                    os.rename(temporary, steps[-1], src_dir_fd=parent, dst_dir_fd=parent)
                    temporary = ""
            finally:
                if temporary:
                    os.unlink(temporary, dir_fd=parent)
        except OSError as error:
            raise explained(error, path) from error


def remove(path: str) -> None:
    """Delete a regular file.

    Raises:
        ToolFailure: there is none.
    """
    steps = split(path)
    with folder(steps[:-1]) as parent:
        if not steps or kind_at(parent, steps[-1]) != "file":
            raise ToolFailure(f"there is no regular file {path!r}")
        os.unlink(steps[-1], dir_fd=parent)


def exists(path: str) -> bool:
    """Whether something, of whatever kind, is at *path*."""
    steps = split(path)
    try:
        with folder(steps[:-1]) as parent:
            return not steps or kind_at(parent, steps[-1]) != "missing"
    except ToolFailure:
        return False


def kind_at(parent: int, name: str) -> str:
    """Return `file`, `directory`, `link`, `other` or `missing`."""
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        raise explained(error, name) from error
    return kind_of(mode)


def kind_of(mode: int) -> str:
    """Return what a mode of `stat` stands for, in one word."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else "other"


def explained(error: OSError, path: str) -> ToolFailure:
    """Return what an error of the system means to whoever gave the path."""
    meaning = {
        errno.ENOENT: "does not exist; files_list shows what there is",
        errno.ENOTDIR: "has something in its way that is a link or not a directory",
        errno.ELOOP: "is a link; links are not followed",
        errno.EEXIST: "exists already",
        errno.ENAMETOOLONG: "has a name that is too long",
        errno.ENOSPC: "does not fit: the workspace is full",
        errno.EDQUOT: "does not fit: the workspace is full",
        errno.EROFS: "cannot be written: the workspace is read-only",
        errno.EACCES: "is not accessible",
    }.get(error.errno or 0, error.strerror or "cannot be used")
    return ToolFailure(f"{path!r} {meaning}")
