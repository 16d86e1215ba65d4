"""A spool takes the bytes of an upload as they come, in a file without a name: nothing of it outlives the process."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType

from omni_mcp.contracts.errors import TooLarge


class Spool:
    """A file of at most *limit_bytes* in *directory*. Each method may wait for the disk; one thread at a time."""

    def __init__(self, directory: Path, *, limit_bytes: int) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - `close` closes it
        self._limit_bytes = limit_bytes
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        """Add *data*.

        Raises:
            TooLarge: it would be more than may be.
        """
        if self.size_bytes + len(data) > self._limit_bytes:
            raise TooLarge(f"the file is over {self._limit_bytes} bytes")
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self.size_bytes += len(data)

    def read(self) -> bytes:
        """Return everything."""
        self._file.seek(0, os.SEEK_SET)
        return self._file.read()

    def close(self) -> None:
        """Give the room on the disk back."""
        self._file.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
