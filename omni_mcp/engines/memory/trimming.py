"""Gives freed memory back to the system; glibc keeps what large arrays left between small objects."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Do it where the C library can (glibc, `malloc_trim(3)`); takes milliseconds, so after large work only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
