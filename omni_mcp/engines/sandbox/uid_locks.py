"""UidLocks: no two programs of root on this machine run jobs as the same user at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path

PLACE = Path("/run/omni-uids.lock")  # the machine's, not a gateway's; only root can make a file there
_FLOCK = struct.Struct("hhqqi4x")  # fcntl(2): type, whence, start, length, pid


class UidLocks:
    """Holds uids, each as the byte of that number in one file. The kernel lets go of them when this process ends.

    Where the file cannot be had nothing is locked: then every uid counts as free.
    """

    def __init__(self, place: Path = PLACE) -> None:
        self._place = place
        self._file: int | None = None

    def take(self, uid: int) -> bool:
        """Hold *uid*; False if somebody else does."""
        if self._file is None:
            try:
                self._file = os.open(self._place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except OSError:
                return True
        try:
            self._set(self._file, fcntl.F_WRLCK, uid)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
        return True

    def give_back(self, uid: int) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # as above
                self._set(self._file, fcntl.F_UNLCK, uid)

    def close(self) -> None:
        """Let go of all."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _set(self, file: int, kind: int, uid: int) -> None:
        # of the open file and not of the process: two sandboxes of one process exclude each other too
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, uid, 1, 0))
