"""One gateway per data directory: a lock that the kernel frees when its holder dies, and a note of who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from omni_mcp.contracts.errors import AlreadyRunning, ConfigError, Problem

Note: TypeAlias = dict[str, Any]  # not JsonObject: the shim reads notes, and must not load orjson for it

NOTE_LIMIT_BYTES = 16 * 1024
RETRY_S = 0.05
LEAST_WAIT_S = 0.5  # somebody who reads the note holds the lock for an instant


class DataLock:
    """A context manager that holds the lock file. The note in it is for people and for the command line."""

    def __init__(self, file: Path, *, wait_s: float = 0.0) -> None:
        """Lock *file* on entering the context; *wait_s* is how long to wait for a gateway that is about to end."""
        self._file = file
        self._wait_s = wait_s
        self._descriptor = -1

    def __enter__(self) -> DataLock:
        """Take the lock.

        Raises:
            AlreadyRunning: another gateway holds it; the message names its process.
            ConfigError: the lock file cannot be opened.
        """
        try:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError([Problem(file=str(self._file), line=0, path="", message=str(error))]) from error
        deadline_s = time.monotonic() + max(self._wait_s, LEAST_WAIT_S)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    os.close(descriptor)
                    raise _already_running(self._file) from None
                time.sleep(RETRY_S)
        self._descriptor = descriptor
        self.note({})
        return self

    def note(self, facts: Note) -> None:
        """Replace the note. Process and boot are always part of it: a process id means nothing after a restart."""
        data = json.dumps({"pid": os.getpid(), "boot_id": boot_id(), **facts}).encode()
        os.pwrite(self._descriptor, data.ljust(os.fstat(self._descriptor).st_size), 0)
        os.ftruncate(self._descriptor, len(data))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.ftruncate(self._descriptor, 0)  # the file stays: removing it would let two processes lock two files
        os.close(self._descriptor)
        self._descriptor = -1


def read_note(file: Path) -> Note | None:
    """Return the note of the gateway that holds *file*, or None if nobody holds it."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None  # nobody holds it, so what it says is old
    except BlockingIOError:
        return _parse(os.read(descriptor, NOTE_LIMIT_BYTES))
    finally:
        os.close(descriptor)


def boot_id() -> str:
    """Return what tells this boot of this machine from every other, or nothing where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _parse(data: bytes) -> Note:
    try:
        note = json.loads(data)
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def _already_running(file: Path) -> AlreadyRunning:
    note = read_note(file) or {}
    pid = note.get("pid", "unknown")
    return AlreadyRunning(
        f"another gateway (process {pid}) already uses {file.parent}; use it, or stop it first: kill {pid}",
        detail=f"lock {file}: {note}",
        data={"pid": pid},
    )
