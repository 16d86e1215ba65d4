"""Profiles: which names of profiles stand for something, asked for each request whose path has one."""

from __future__ import annotations

from collections.abc import Callable

from omni_mcp.contracts.ports import Catalog

NAMES_KEPT = 256  # clients make names up


class Profiles:
    """Knows them.

    Args:
        is_defined: whether the operator defined a profile of this name, whatever it shows now.
    """

    def __init__(self, catalog: Catalog, is_defined: Callable[[str], bool]) -> None:
        self._catalog = catalog
        self._is_defined = is_defined
        self._known: dict[str, tuple[str, bool]] = {}

    def has(self, name: str) -> bool:
        """Whether there is such a profile, or anything is named in it."""
        if self._is_defined(name):
            return True
        version, known = self._known.get(name, ("", False))
        if version != self._catalog.version:
            version = self._catalog.version
            kinds = ("tool", "resource", "resource_template", "prompt")
            known = any(self._catalog.entries(name, kind) for kind in kinds)
            if len(self._known) >= NAMES_KEPT:
                self._known.clear()
            self._known[name] = (version, known)
        return known
