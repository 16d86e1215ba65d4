"""Which directories of the host a command names, and so cannot work without: proposed as mounts, for reading only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from omni_mcp.host_places import HostPlaces, general_fault, keys_at, keys_in
from omni_mcp.paths import find_home
from omni_mcp.server_definition import MountDefinition

_FETCHES = ("npx", "uvx")
_SHOWN_ANYWAY = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/dev/null")  # by the sandbox, to every job


def propose_mounts(words: Iterable[str], home: Path) -> tuple[tuple[MountDefinition, ...], tuple[str, ...]]:
    """Return mounts for the absolute paths among *words* that exist, and notes about those that were left out.

    Args:
        words: the command, its arguments (`--dir=/path` too) and its working directory.
        home: the person's home directory, which is never mounted as a whole.
    """
    found: dict[str, None] = {}
    notes: list[str] = []
    shown = HostPlaces(find_home())
    for word in words:
        path = Path(word.partition("=")[2] if word.startswith("-") else word)
        if not path.is_absolute() or not _exists(path) or _is_below(path, _SHOWN_ANYWAY):
            continue
        for wanted in [path] if path.is_dir() else [path.parent, path]:  # else the file alone
            reason = _reason_against(wanted, home, shown)
            if not reason:
                found[str(wanted)] = None
                break
        else:
            notes.append(f"{path} is not shown to it: {reason}")
    kept = [path for path in found if not any(other != path and _is_below(Path(path), (other,)) for other in found)]
    return tuple(MountDefinition(source=path) for path in kept if ".." not in Path(path).parts), tuple(notes)


def starts_in_project(words: Sequence[str], project: Path) -> bool:
    """Whether a command of a project works only where the client starts it, in the project's directory.

    So it is for all but packages that are fetched; for those if an argument names something in there.
    """
    names = (word.partition("=")[2] if word.startswith("-") else word for word in words)
    inside = any(name and not Path(name).is_absolute() and _exists(project / name) for name in names)
    return inside or Path(words[0]).name not in _FETCHES


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _is_below(path: Path, tops: Iterable[str]) -> bool:
    return any(path == Path(top) or Path(top) in path.parents for top in tops)


def _reason_against(path: Path, home: Path, shown: HostPlaces) -> str:
    """Return why *path* is not proposed, and what would show it all the same; nothing if it is proposed."""
    fault = shown.fault(str(path))
    if fault:
        return f"{fault}; name what it needs with --dir" if general_fault(str(path)) else fault
    if path == home or path in home.parents:
        return f"{path} is too wide: name what it needs with --dir"
    if keys := keys_at(str(path)):
        return f"keys are kept there ({keys}); --dir {path} would show it"
    if keys_inside := keys_in(str(path)):
        return f"keys are kept in it ({', '.join(keys_inside)}); --dir {path} would show it"
    return ""
