"""Compiles the modules of the far side ahead: cells see them read-only, so their interpreters can keep nothing.

An installer may have left that out, and then each template compiles all of them again, for tens of milliseconds.
"""

from __future__ import annotations

import importlib.util
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

_HEAD_BYTES = 16  # PEP 552: magic number, flags, then the source's time and size


def compile_ahead(sandbox_dir: Path) -> None:
    """Compile what has changed below *sandbox_dir*, for this interpreter, which is the cells' too.

    Where that is not ours to write, or not wanted, templates only start more slowly.
    """
    if sys.dont_write_bytecode:
        return
    stale = [file for file in _modules(sandbox_dir) if not _is_compiled(file) and os.access(file.parent, os.W_OK)]
    if not stale:
        return
    import py_compile  # seldom wanted

    for file in stale:
        try:
            py_compile.compile(str(file), doraise=True)
        except (OSError, py_compile.PyCompileError):
            return


def _modules(sandbox_dir: Path) -> Iterator[Path]:
    yield from sandbox_dir.glob("*.py")
    yield from sandbox_dir.glob("tools/*.py")


def _is_compiled(file: Path) -> bool:
    try:
        facts = file.stat()
        with open(importlib.util.cache_from_source(str(file)), "rb") as compiled:
            head = compiled.read(_HEAD_BYTES)
    except OSError:
        return False
    if len(head) < _HEAD_BYTES or head[:4] != importlib.util.MAGIC_NUMBER:
        return False
    flags, changed_s, size = struct.unpack("<4x3I", head)
    return flags != 0 or (changed_s, size) == (int(facts.st_mtime) & 0xFFFFFFFF, facts.st_size & 0xFFFFFFFF)
