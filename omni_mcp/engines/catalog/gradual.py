"""Gradual sources load in turns: what they hold belongs to an event loop, and others have their turn meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from omni_mcp.contracts.ports import Source
from omni_mcp.contracts.tool import Entry
from omni_mcp.turns import Work


@runtime_checkable
class Gradual(Protocol):
    """A source that loads in turns."""

    def steps(self) -> Work[Sequence[Entry]]:
        """As `load` of the port `Source`, in turns."""
        ...


def steps_of(source: Source) -> Work[Sequence[Entry]]:
    """Load *source*, in turns if it can."""
    if isinstance(source, Gradual):
        return (yield from source.steps())
    return tuple(source.load())
