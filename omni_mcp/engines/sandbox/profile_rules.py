"""What may stand in a profile: directories, places, names. Each rule returns what is wrong, or nothing."""

from __future__ import annotations

import os
import re

CELL_HOME = "/home/cell"

# Closed with all that is below: the kernel's and the system's own, and what a cell has of its own at that place.
_CLOSED = (
    "/proc", "/sys", "/dev", "/run", "/var/run", "/boot", "/lost+found",
    "/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/ssh", "/etc/ssl/private",
    "/tmp", "/var/tmp", "/workspace", "/sandbox", "/packages", "/shares", CELL_HOME,
)  # fmt: skip
# Too wide as a whole: name the directory below that is meant.
_WIDE = ("/", "/bin", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/root", "/sbin", "/srv", "/usr",
         "/var", "/var/cache", "/var/lib", "/var/log", "/var/spool")  # fmt: skip
_KEYS = frozenset(
    {".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".password-store", ".netrc", ".git-credentials"}
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_MODULE = re.compile(r"[a-z_][a-z0-9_]*")


def read_fault(path: str) -> str:
    """Return why *path* may not be shown to jobs; nothing if it may. A link counts as what it leads to, too."""
    if not _is_plain_path(path):
        return f"{path!r} must be an absolute path without '..', '//' or a slash at its end"
    for place in dict.fromkeys((path, os.path.realpath(path))):
        shown = path if place == path else f"{path} (a link to {place})"
        closed = next((top for top in _CLOSED if _is_within(place, top)), None)
        if closed is not None:
            return f"{shown} may not be shown to jobs: nothing at or below {closed} may"
        if place in _WIDE or place == os.path.expanduser("~") or re.fullmatch(r"/home/[^/]+", place):
            return f"{shown} is too wide: name the directory below it that is meant"
        keys = _KEYS.intersection(place.split("/"))
        if keys:
            return f"{shown} is where keys are kept ({', '.join(keys)})"
    return ""


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


def _is_within(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")
