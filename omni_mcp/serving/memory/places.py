"""Whose memory a call reads and writes: made from the principal and its run, never from what the call says."""

from __future__ import annotations

from collections.abc import Iterable

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.memory import MemoryScope, Readers


def places_of(principal: Principal, run: str) -> dict[MemoryScope, str]:
    """Return the owner of each scope for a caller; an agent without a user has no `user` scope.

    `agent` is the principal alone, `user` the person and all agents that act for them in the same project.
    """
    user = principal.id if principal.kind == "User" else principal.owner
    places: dict[MemoryScope, str] = {"agent": principal.key, "project": principal.project}
    if user:
        places["user"] = f'User::"{user}"@{principal.project}'
    if run:
        places["run"] = run
    return places


def readers_of(principal: Principal, run: str, scopes: Iterable[MemoryScope] = ()) -> Readers:
    """Return what a caller may find; of some *scopes* only, if any are named."""
    wanted = set(scopes)
    places = places_of(principal, run)
    return Readers(
        places=tuple((scope, owner) for scope, owner in places.items() if not wanted or scope in wanted),
        project=principal.project,
    )
