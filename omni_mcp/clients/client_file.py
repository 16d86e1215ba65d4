"""Replaces a file of a client in one step: only one's own file, never through somebody else's link, with a backup
beside it, and only if the client did not write it meanwhile."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from omni_mcp.clients.reading import FILE_LIMIT_BYTES
from omni_mcp.contracts.errors import BadRequest, Conflict
from omni_mcp.paths import sync_directory

LINKS_LIMIT = 40
TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A file as it was read: where it really is, its bytes (None if there is none), and its facts."""

    file: Path
    data: bytes | None
    mode: int = 0o600
    signature: tuple[int, ...] = ()


def read_snapshot(file: Path) -> Snapshot:
    """Read *file* for editing.

    Raises:
        BadRequest: it, its directory or a link to it is somebody else's, it is read-only, or it cannot be read.
    """
    try:
        real = _follow_own_links(file)
        _check_directory(real.parent)
        try:
            descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return Snapshot(file=real, data=None)
        with os.fdopen(descriptor, "rb") as stream:
            facts = os.fstat(descriptor)
            _check_file(file, facts)
            data = stream.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise BadRequest(f"{file} cannot be read: {error.strerror}") from error
    if len(data) > FILE_LIMIT_BYTES:
        raise BadRequest(f"{file} is larger than {FILE_LIMIT_BYTES // 1024 // 1024} MiB")
    return Snapshot(file=real, data=data, mode=stat.S_IMODE(facts.st_mode), signature=_signature(facts))


def replace_file(before: Snapshot, data: bytes | None) -> None:
    """Put *data* in the place of *before*, with the same mode; None deletes the file.

    Raises:
        Conflict: the file is not what it was.
        BadRequest: it cannot be written.
    """
    file = before.file
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        if data is None:
            _check_unchanged(before)
            file.unlink(missing_ok=True)
            return
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                os.fchmod(descriptor, before.mode)
                stream.flush()
                os.fsync(descriptor)
            _check_unchanged(before)
            os.replace(draft, file)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_directory(file.parent)
    except OSError as error:
        raise BadRequest(f"{file} cannot be written: {error.strerror}") from error


def back_up(before: Snapshot, stamp: str) -> Path | None:
    """Write the bytes of *before* beside it, dated *stamp*, and return where; None if there was no file.

    Raises:
        BadRequest: it cannot be written.
    """
    if before.data is None:
        return None
    for number in range(1, 1000):
        tail = f"-{number}" if number > 1 else ""
        backup = before.file.with_name(f"{before.file.name}.before-omni-{stamp}{tail}")
        try:
            descriptor = os.open(backup, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        except OSError as error:
            raise BadRequest(f"{backup} cannot be written: {error.strerror}") from error
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(before.data)
            os.fchmod(descriptor, before.mode)
            stream.flush()
            os.fsync(descriptor)
        return backup
    raise BadRequest(f"there are a thousand backups beside {before.file}; remove some")


def make_directories(directory: Path) -> list[Path]:
    """Make *directory* and what is missing above it, mode 0700; returns those that were made, outermost first.

    Raises:
        BadRequest: it cannot be made.
    """
    missing: list[Path] = []
    while not directory.exists():
        missing.insert(0, directory)
        directory = directory.parent
    try:
        for path in missing:
            path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"{missing[-1]} cannot be made: {error.strerror}") from error
    return missing


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Hold *lock*, so that two commands of ours do not edit at once.

    Raises:
        BadRequest: it cannot be made.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadRequest(f"{lock} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def retry_on_change(attempt: Callable[[], None]) -> None:
    """Run *attempt* again while the client writes its file between our reading and our writing.

    Raises:
        Conflict: it still does after some tries.
    """
    for left in range(TRIES - 1, -1, -1):
        try:
            return attempt()
        except Conflict:
            if not left:
                raise
    return None


def _follow_own_links(file: Path) -> Path:
    """People keep such files elsewhere and link to them, so their own links are followed; nobody else's are."""
    path = Path(os.path.abspath(file))
    for _ in range(LINKS_LIMIT):
        try:
            facts = path.lstat()
        except FileNotFoundError:
            return path
        if not stat.S_ISLNK(facts.st_mode):
            return path
        if facts.st_uid not in (os.geteuid(), 0):
            raise BadRequest(f"{path} is a link of user {facts.st_uid}; it is not followed")
        path = Path(os.path.abspath(path.parent / os.readlink(path)))
    raise BadRequest(f"{file} is a link to a link without end")


def _check_directory(directory: Path) -> None:
    try:
        facts = os.stat(directory)
    except FileNotFoundError:
        return
    open_to_all = facts.st_mode & stat.S_IWOTH and not facts.st_mode & stat.S_ISVTX
    if facts.st_uid not in (os.geteuid(), 0) or open_to_all:
        raise BadRequest(f"{directory} is not yours, or everybody can write to it; nothing is written there")


def _check_file(file: Path, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise BadRequest(f"{file} is no regular file")
    if facts.st_uid != os.geteuid():
        raise BadRequest(f"{file} belongs to user {facts.st_uid}; run this as that user")
    if not facts.st_mode & stat.S_IWUSR:
        raise BadRequest(f"{file} is read-only (chmod u+w {file})")


def _check_unchanged(before: Snapshot) -> None:
    try:
        now = _signature(os.lstat(before.file))
    except FileNotFoundError:
        now = ()
    if now != before.signature:
        raise Conflict(f"{before.file} is being written by somebody else; close the client and try again")


def _signature(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
