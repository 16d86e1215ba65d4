"""Pins: which project is kept at which version, as omni.lock says it, and how a command changes that."""

from __future__ import annotations

from collections.abc import Iterable

from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.lock import Lock, Pin, pin_key

Key = tuple[str, str, str]


def pins_by_key(lock: Lock) -> dict[str, dict[Key, str]]:
    """Return version by (kind, server, name) for each project."""
    return {project: {key_of(name): pin.version for name, pin in found.items()} for project, found in lock.pins.items()}


def key_of(name: str) -> Key:
    """Return (kind, server, name) of a name such as `notes/tool/read_file`."""
    server, kind, own = name.split("/", 2)
    return kind, server, own


def with_pin(lock: Lock, project: str, server: str, item: str, pin: Pin) -> Lock:
    """Return the lock with *project* pinned; a pin to the same version stays as it was."""
    found = lock.pins.get(project, {})
    before = found.get(pin_key(server, item))
    kept = before if before is not None and before.version == pin.version else pin
    return lock.model_copy(update={"pins": {**lock.pins, project: {**found, pin_key(server, item): kept}}})


def without_pin(lock: Lock, project: str, names: Iterable[str]) -> Lock:
    """Return the lock without the pin of *project* that stands under one of *names*.

    Raises:
        NotFound: there is none.
    """
    found = lock.pins.get(project, {})
    gone = [name for name in names if name in found]
    if not gone:
        raise NotFound(f"project {project!r} has no such pin; see: omni-mcp pins list")
    rest = {name: pin for name, pin in found.items() if name not in gone}
    pins = {name: pins for name, pins in {**lock.pins, project: rest}.items() if pins}
    return lock.model_copy(update={"pins": pins})
