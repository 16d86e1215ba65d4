"""Random bytes for salts and nonces, asked of the system for many at once: each time lets another thread go first."""

from __future__ import annotations

import os

BLOCK_BYTES = 4096


class RandomBytes:
    """Gives each byte out once. Belongs to one thread."""

    def __init__(self) -> None:
        self._block = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        """Return *count* bytes that nobody else gets; at most `BLOCK_BYTES`."""
        if self._at + count > len(self._block):
            self._block, self._at = os.urandom(BLOCK_BYTES), 0
        self._at += count
        return self._block[self._at - count : self._at]
