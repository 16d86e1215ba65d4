"""What may stand in a profile: directories, places, names. Each rule returns what is wrong, or nothing."""

from __future__ import annotations

import os
import re

from omni_mcp.host_places import HostPlaces, is_within, keys_at
from omni_mcp.paths import find_home

CELL_HOME = "/home/cell"

# What a cell has of its own at that place: nothing of the host can be shown there, nor below it.
_CELLS_OWN = ("/tmp", "/var/tmp", "/workspace", "/sandbox", "/packages", "/shares", CELL_HOME)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_MODULE = re.compile(r"[a-z_][a-z0-9_]*")


def read_fault(path: str) -> str:
    """Return why *path* may not be shown to jobs; nothing if it may. A link counts as what it leads to, too."""
    if not _is_plain_path(path):
        return f"{path!r} must be an absolute path without '..', '//' or a slash at its end"
    taken = next((top for place in (path, os.path.realpath(path)) for top in _CELLS_OWN if is_within(place, top)), None)
    if taken is not None:
        return f"{path} may not be shown to jobs: nothing at or below {taken} may"
    keys = keys_at(path)
    return HostPlaces(find_home()).fault(path) or (f"{path} is where keys are kept ({keys})" if keys else "")


def cache_fault(name: str, place: str) -> str:
    """Return why a cache called *name* cannot be at *place*; nothing if it can."""
    if not _PLAIN_NAME.fullmatch(name) or len(name) > 32:
        return f"{name!r} is no name of a cache: lower case with dashes, at most 32 characters"
    if not _is_plain_path(place) or not place.startswith(f"{CELL_HOME}/"):
        return f"{place!r} must be a place below {CELL_HOME}"
    return ""


def variable_fault(name: str, value: str) -> str:
    """Return why *name* cannot be a variable with *value*; nothing if it can."""
    if not _VARIABLE.fullmatch(name):
        return f"{name!r} is no name of an environment variable"
    return f"the value of {name} holds a NUL character" if "\0" in value else ""


def module_fault(name: str) -> str:
    """Return why *name* cannot be a module of `sandbox/tools`; nothing if it can."""
    return "" if _MODULE.fullmatch(name) else f"{name!r} is no name of a module"


def profile_name_fault(name: str) -> str:
    """Return why *name* cannot be a profile's; nothing if it can."""
    return "" if _PLAIN_NAME.fullmatch(name) and len(name) <= 48 else "a profile's name is lower case with dashes"


def _is_plain_path(path: str) -> bool:
    return (
        path.startswith("/")
        and path[:2] != "//"
        and path.isprintable()
        and len(path) <= 1024
        and path == os.path.normpath(path)
    )
