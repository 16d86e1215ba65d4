"""Which directories of the host a command names, and so cannot work without: proposed as mounts, for reading only."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from omni_mcp.server_definition import MountDefinition

# The sandbox shows these to every job, or they must never be shown as a whole.
_SHOWN_ANYWAY = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/dev/null")
_NEVER = frozenset(
    {"/", "/proc", "/sys", "/dev", "/run", "/var", "/etc", "/home", "/root", "/Users", "/boot", "/opt", "/mnt"}
    | {"/media", "/tmp", "/srv", "/Library", "/Volumes"}
)


def propose_mounts(words: Iterable[str], home: Path) -> tuple[tuple[MountDefinition, ...], tuple[str, ...]]:
    """Return mounts for the absolute paths among *words* that exist, and notes about those that were left out.

    Args:
        words: the command, its arguments (`--dir=/path` too) and its working directory.
        home: the person's home directory, which is never mounted as a whole.
    """
    found: dict[str, None] = {}
    notes: list[str] = []
    for word in words:
        path = Path(word.partition("=")[2] if word.startswith("-") else word)
        if not path.is_absolute() or not _exists(path) or _is_below(path, _SHOWN_ANYWAY):
            continue
        wanted = path if path.is_dir() else path.parent
        if _is_too_wide(wanted, home):
            if wanted is path:
                notes.append(f"{path} is too wide to be shown to a server; name what it needs with --dir")
                continue
            wanted = path  # the file alone
        found[str(wanted)] = None
    kept = [path for path in found if not any(other != path and _is_below(Path(path), (other,)) for other in found)]
    if kept:
        notes.append(f"may read {', '.join(kept)}; to let it write, set `writable`")
    return tuple(MountDefinition(source=path) for path in kept if ".." not in Path(path).parts), tuple(notes)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _is_below(path: Path, tops: Iterable[str]) -> bool:
    return any(path == Path(top) or Path(top) in path.parents for top in tops)


def _is_too_wide(path: Path, home: Path) -> bool:
    return (
        str(path) in _NEVER
        or path == home
        or path in home.parents
        or _is_below(path, ("/proc", "/sys", "/dev", "/run"))
    )
