"""A file on its way to the gateway: a multipart body of known length that is read as it is sent."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

PIECE_BYTES = 256 * 1024


class UploadBody:
    """One part named `file`.

    Args:
        file: a path, or the bytes themselves.
    """

    def __init__(self, file: Path | bytes, *, name: str, media_type: str) -> None:
        self._file = file
        boundary = secrets.token_hex(16)
        shown = "".join(letter for letter in name if letter.isprintable() and letter not in '"\\') or "file"
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{shown}"\r\n'
            f"Content-Type: {media_type}\r\n\r\n"
        ).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._size = len(file) if isinstance(file, bytes) else os.stat(file).st_size

    @property
    def length(self) -> int:
        """Bytes of the whole body."""
        return len(self._head) + self._size + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        if isinstance(self._file, bytes):
            yield self._file
        else:
            with self._file.open("rb") as stream:
                while piece := stream.read(PIECE_BYTES):
                    yield piece
        yield self._tail
