"""Policy files are read only from places that nobody but their owner can write to."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from omni_mcp.contracts.errors import ConfigError
from omni_mcp.engines.policy.problems import problem_at

SUFFIX = ".cedar"
MAX_FILES = 500
MAX_FILE_BYTES = 256 * 1024
Signature = tuple[tuple[object, ...], ...]


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """One file as it was read: its name, for people, and its text."""

    name: str
    text: str


_BUSY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN, errno.EINTR})


class UnsafePolicies(ConfigError):
    """Somebody else could have written the rules, or there are none to read: all is denied until that is mended."""


class BusySystem(ConfigError):
    """The system had no descriptor or memory to read the rules with. They did not change, so what is in force stays."""


def read_policy_files(directory: Path, *, in_force: bool = True) -> list[PolicyFile]:
    """Read `*.cedar` of *directory*, in order of name. Links are not followed, other files are left alone.

    Args:
        in_force: the rules are to decide calls, so owner and mode matter; tests of rules may read from anywhere.

    Raises:
        UnsafePolicies: the directory is missing, or it or a file is somebody else's or others may write to it.
        BusySystem: they cannot be read just now; try again.
        ConfigError: a file is too large, or no UTF-8.
    """
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        _raise_if_busy(error, str(directory))
        reason = "there is no such directory" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise UnsafePolicies(
            [problem_at(str(directory), 0, "", f"{reason}; make it with: mkdir -m 700 {directory}")]
        ) from error
    try:
        if in_force:
            _check_owner(str(directory), os.fstat(handle), "700")
        names = sorted(name for name in _names(directory, handle) if name.endswith(SUFFIX) and not name.startswith("."))
        if len(names) > MAX_FILES:
            raise ConfigError([problem_at(str(directory), 0, "", f"more than {MAX_FILES} policy files")])
        return [PolicyFile(name, _read(directory, handle, name, in_force)) for name in names]
    finally:
        os.close(handle)


def _names(directory: Path, handle: int) -> list[str]:
    try:
        return os.listdir(handle)
    except OSError as error:
        _raise_if_busy(error, str(directory))
        raise UnsafePolicies([problem_at(str(directory), 0, "", f"cannot be listed: {error.strerror}")]) from error


def _raise_if_busy(error: OSError, path: str) -> None:
    if error.errno in _BUSY:
        raise BusySystem([problem_at(path, 0, "", f"cannot be read just now: {error.strerror}")]) from error


def _read(directory: Path, directory_handle: int, name: str, in_force: bool) -> str:
    path = str(directory / name)
    # O_NONBLOCK: opening a named pipe must not hang the gateway.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(name, flags, dir_fd=directory_handle)
    except OSError as error:
        _raise_if_busy(error, path)
        hint = "cannot be read (links are not followed; put the file itself here)"
        raise UnsafePolicies([problem_at(path, 0, "", f"{hint}: {error.strerror}")]) from error
    with os.fdopen(handle, "rb") as file:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise UnsafePolicies([problem_at(path, 0, "", "is no regular file")])
        if in_force:
            _check_owner(path, facts, "600")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError([problem_at(path, 0, "", f"is larger than {MAX_FILE_BYTES // 1024} KiB")])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([problem_at(path, line, "", "is not UTF-8")]) from error


def _check_owner(path: str, facts: os.stat_result, mode: str) -> None:
    """Root's files are as good as ours: whoever is root decides anyway, and images are often built that way."""
    if facts.st_uid not in (os.geteuid(), 0):
        raise UnsafePolicies([problem_at(path, 0, "", f"belongs to user {facts.st_uid}; it must be yours (chown)")])
    if facts.st_mode & 0o022:
        message = f"others can write to it (mode {stat.S_IMODE(facts.st_mode):o}); mend it with: chmod {mode} {path}"
        raise UnsafePolicies([problem_at(path, 0, "", message)])


def signature_of(directory: Path) -> Signature:
    """Return what changes whenever a file, its rights or its owner do, without opening any."""
    try:
        found = [("", *_facts(os.stat(directory)))]
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX) and not entry.name.startswith("."):
                    found.append((entry.name, *_facts(entry.stat(follow_symlinks=False))))
    except OSError as error:  # gone, or vanishing while we look: the next look sees something else
        return (("unreadable", error.errno),)
    return tuple(sorted(found[:1]) + sorted(found[1:]))


def _facts(facts: os.stat_result) -> tuple[int, ...]:
    # ctime too: mtime can be set back after a change. A directory's own times change with files we do not read.
    if stat.S_ISDIR(facts.st_mode):
        return facts.st_mode, facts.st_uid, facts.st_ino
    return facts.st_mode, facts.st_uid, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
