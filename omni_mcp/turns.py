"""Work in turns: it stops again and again, and whoever runs it on an event loop gives the others theirs meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
Work = Generator[None, None, T]

TURN_S = 0.002  # a call that is under way meets several turns on its way


def finish(work: Work[T]) -> T:
    """Do all of *work* at once and return what it made."""
    turns = _Turns(work)
    for _ in turns:
        pass
    return turns.made


async def in_turns(work: Work[T]) -> T:
    """Do *work* on the running loop, and let the others have it after each `TURN_S`; returns what it made."""
    turns = _Turns(work)
    began_s = time.perf_counter()
    for _ in turns:
        if time.perf_counter() - began_s > TURN_S:
            await asyncio.sleep(0)
            began_s = time.perf_counter()
    return turns.made


class _Turns(Generic[T]):
    """The turns of *work*; after the last one, what it made."""

    made: T

    def __init__(self, work: Work[T]) -> None:
        self._work = work

    def __iter__(self) -> Iterator[None]:
        self.made = yield from self._work
