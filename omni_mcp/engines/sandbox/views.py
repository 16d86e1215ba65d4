"""View: a directory of the host at a place in the cell, perhaps beneath the place of another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from omni_mcp.engines.sandbox.failures import StartFailed
from omni_mcp.engines.sandbox.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is seen there, and whether the job can write it."""

    source: Source
    inside: str
    writable: bool


def depth_of(path: str) -> int:
    """Return how deep the absolute *path* is: outer views are mounted before inner ones."""
    return path.count("/")


def places_beneath(reads: Sequence[View], given: Sequence[View]) -> list[tuple[int, str]]:
    """Return where views of *given* are in others: the other's number in *reads* and then *given*, the place in it.

    Whoever mounts follows links in that place, so nobody may have put one there.

    Raises:
        StartFailed: the job can write the directories on the way to such a place.
    """
    found: list[tuple[int, str]] = []
    writable = [view.source.path for view in given if view.writable]
    everything = [*reads, *given]
    for inner in given:
        outer = _innermost_above(inner, given) or _innermost_above(inner, reads)
        if outer is None:
            continue
        place = inner.inside[len(outer.inside) + 1 :]
        way = os.path.dirname(os.path.join(outer.source.path, place))
        if any(_is_within(way, path) for path in writable):
            raise StartFailed(f"{inner.inside} is beneath {outer.inside}, which the job can write at another place")
        found.append((everything.index(outer), place))
    return found


def _innermost_above(view: View, others: Sequence[View]) -> View | None:
    above = [other for other in others if other.inside != view.inside and _is_within(view.inside, other.inside)]
    return max(above, key=lambda other: depth_of(other.inside), default=None)


def _is_within(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")
