"""LockFile: omni.lock on disk, trusted only where nobody else can write, replaced whole, and read again when asked."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.json import digest_bytes
from omni_mcp.contracts.lock import Lock
from omni_mcp.engines.catalog.lockfile_text import read_lock, write_lock
from omni_mcp.paths import ownership_fault, write_private

SIZE_LIMIT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LockReload:
    """What reading the file again brought. With problems, what was in force before still is."""

    changed: bool = False
    problems: tuple[Problem, ...] = ()


class LockFile:
    """What is accepted, as the file said when it was read last. Before the first `reload` nothing is accepted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._now = Lock()
        self._known: tuple[str, Lock] | None = None  # digest of a text that was read, and what it says
        self._revision = 0

    @property
    def now(self) -> Lock:
        """What is in force."""
        return self._now

    @property
    def revision(self) -> int:
        """Grows with every reload that changed something."""
        return self._revision

    def reload(self) -> LockReload:
        """Read the file again. A file that is refused leaves the last good one in force: at the start, nothing."""
        try:
            found = self.read()
        except ConfigError as error:
            return LockReload(problems=error.problems)
        return LockReload(changed=self.put(found))

    def put(self, found: Lock) -> bool:
        """Put what `read` returned in force; whether it is another."""
        changed = found is not self._now and found != self._now
        if changed:
            self._now = found
            self._revision += 1
        return changed

    def read(self) -> Lock:
        """Return what the file says now; a missing file accepts nothing.

        Raises:
            ConfigError: somebody else could have written it, or it is not what it should be; with line and path.
        """
        text = self._text()
        if text is None:
            return Lock()
        said = digest_bytes(text.encode())
        if self._known is None or self._known[0] != said:
            self._known = said, read_lock(text, file=str(self.path))
        return self._known[1]

    def edit(self, change: Callable[[Lock], Lock]) -> Lock:
        """Read the file, apply *change*, and replace it in one step, while no other command does; puts it in force.

        Raises:
            ConfigError: as `read`; or it cannot be written.
        """
        with self._alone():
            before = self.read()
            after = Lock.model_validate(change(before).model_dump())
            if after != before:
                self._replace(write_lock(after).encode("utf-8"))
        if after != self._now:
            self._now = after
            self._revision += 1
        return after

    def _text(self) -> str | None:
        try:
            directory = os.stat(self.path.parent)
            # O_NONBLOCK: opening a named pipe must not hang the reader.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refused(f"cannot be read; links are not followed: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as stream:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise self._refused("is no regular file")
            self._check(self.path.parent, directory)
            self._check(self.path, facts)
            data = stream.read(SIZE_LIMIT_BYTES + 1)
        if len(data) > SIZE_LIMIT_BYTES:
            raise self._refused(f"is larger than {SIZE_LIMIT_BYTES // 1024 // 1024} MiB")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._refused("is not UTF-8", line=data.count(b"\n", 0, error.start) + 1) from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check(self.path.parent, os.stat(self.path.parent))
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.path.with_name(f".{self.path.name}.lock"), flags, 0o600)
        except OSError as error:
            raise self._refused(f"cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _replace(self, data: bytes) -> None:
        if len(data) > SIZE_LIMIT_BYTES:
            raise self._refused(f"would be larger than {SIZE_LIMIT_BYTES // 1024 // 1024} MiB")
        try:
            write_private(self.path, data)
        except OSError as error:
            raise self._refused(f"cannot be written: {error.strerror}") from error

    def _check(self, path: Path, facts: os.stat_result) -> None:
        if fault := ownership_fault(facts, path):
            raise ConfigError([Problem(file=str(path), line=0, path="", message=fault)])

    def _refused(self, message: str, *, line: int = 0) -> ConfigError:
        return ConfigError([Problem(file=str(self.path), line=line, path="", message=message)])
