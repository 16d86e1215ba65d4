"""Compiles the modules of the far side ahead: cells see them read-only, so their interpreters can keep nothing.

An installer may have left that out, and then each template compiles all of them again, for tens of milliseconds.
"""

from __future__ import annotations

import importlib.util
import os
import stat
import struct
import sys
from pathlib import Path

_HEAD_BYTES = 16  # PEP 552: magic number, flags, then the source's time and size
_NOT_FOR_OTHERS = 0o022  # who may write there decides what the next process imports


def compile_ahead(sandbox_dir: Path) -> None:
    """Compile what has changed below *sandbox_dir*, for this interpreter, which is the cells' too.

    Cells have another user: what is compiled may be read by whoever may read its source, and written by its owner only,
    whatever this process's umask is. Where that is not ours to write, or not wanted, templates only start more slowly.
    """
    if sys.dont_write_bytecode:
        return
    for directory in (sandbox_dir, sandbox_dir / "tools"):
        stale = [file for file in directory.glob("*.py") if not _is_compiled(file)]
        if stale and os.access(directory, os.W_OK):
            try:
                _open_cache(directory)
                _compile(stale)
            except OSError:
                return


def _open_cache(directory: Path) -> None:
    """See to it that there is a directory for what is compiled, as open as *directory*.

    Raises:
        OSError: there cannot be one.
    """
    cache, mode = directory / "__pycache__", _mode_like(directory)
    try:
        cache.mkdir()
    except FileExistsError:
        facts = cache.lstat()
        if not stat.S_ISDIR(facts.st_mode):
            raise  # a link that leads elsewhere
        if facts.st_uid != os.geteuid() or not mode & ~facts.st_mode:
            return
    cache.chmod(mode)


def _compile(files: list[Path]) -> None:
    import py_compile  # seldom wanted

    for file in files:
        compiled = _compiled(file)
        try:
            py_compile.compile(str(file), str(compiled), doraise=True, optimize=0)
        except py_compile.PyCompileError:
            continue
        compiled.chmod(_mode_like(file))


def _compiled(file: Path) -> Path:
    """Return where an interpreter without options looks: a cell's, whatever ours was started with."""
    return file.parent / "__pycache__" / f"{file.stem}.{sys.implementation.cache_tag}.pyc"


def _is_compiled(file: Path) -> bool:
    try:
        facts = file.stat()
        with open(_compiled(file), "rb") as compiled:
            head, mode = compiled.read(_HEAD_BYTES), os.fstat(compiled.fileno()).st_mode
        if _mode_like(file) & ~mode or _mode_like(file.parent) & ~_compiled(file).parent.stat().st_mode:
            return False
    except OSError:
        return False
    if len(head) < _HEAD_BYTES or head[:4] != importlib.util.MAGIC_NUMBER:
        return False
    flags, changed_s, size = struct.unpack("<4x3I", head)
    return flags != 0 or (changed_s, size) == (int(facts.st_mtime) & 0xFFFFFFFF, facts.st_size & 0xFFFFFFFF)


def _mode_like(place: Path) -> int:
    return stat.S_IMODE(place.stat().st_mode) & ~_NOT_FOR_OTHERS & 0o777
