"""Telling subscribers of `memory://…` that an item changed: those only who may find it, and nothing but its address."""

from __future__ import annotations

import asyncio
from functools import partial

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.memory import MemoryItem, MemoryScope
from omni_mcp.serving.changes import Changes
from omni_mcp.serving.memory.entries import LATEST
from omni_mcp.serving.memory.items import URI
from omni_mcp.serving.memory.places import readers_of

SETTLE_S = 0.05  # changes within this time are one notice, so that a writer cannot keep its readers busy
Whose = tuple[MemoryScope, str, str]  # scope, owner, project


class MemoryNews:
    """Collects what changed and tells it shortly after."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._changed: dict[str, set[Whose]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def changed(self, item: MemoryItem) -> None:
        """An item was written, or is gone."""
        whose = (item.scope, item.owner, item.project)
        for uri in (URI + item.id, LATEST):
            self._changed.setdefault(uri, set()).add(whose)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SETTLE_S, self._tell)

    def _tell(self) -> None:
        self._timer = None
        changed, self._changed = self._changed, {}
        for uri, places in changed.items():
            self._changes.resource_updated(uri, may_hear=partial(_finds_one, places))


def _finds_one(places: set[Whose], principal: Principal) -> bool:
    readers = readers_of(principal, "")
    return any((scope, owner, readers.project) in places for scope, owner in readers.places)
