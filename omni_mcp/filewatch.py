"""Notices that files changed, once they have stopped changing."""

from __future__ import annotations

from pathlib import Path


class FileWatch:
    """Notices that files below a path changed, once they have stopped changing for one look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[object, ...] | None = None  # the files were read before we looked: the first look tells
        self._seen = self._signature()

    def settled_change(self) -> bool:
        """Whether the files differ from what was last reported, and were the same at the look before."""
        now = self._signature()
        settled, self._seen = now == self._seen, now
        if not settled or now == self._known:
            return False
        self._known = now
        return True

    def _signature(self) -> tuple[object, ...]:
        found = []
        for file in sorted([self._path, *self._path.rglob("*")] if self._path.is_dir() else [self._path]):
            try:
                facts = file.lstat()
            except OSError:
                continue
            found.append((str(file), facts.st_mtime_ns, facts.st_size, facts.st_ino, facts.st_mode, facts.st_uid))
        return tuple(found)
