"""Work in turns: it stops again and again, and whoever runs it on an event loop gives the others theirs meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Work = Generator[None, None, T]

TURN_S = 0.002  # a call that is under way meets several turns on its way


def finish(work: Work[T]) -> T:
    """Do all of *work* at once and return what it made."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            made: T = end.value
            return made


async def in_turns(work: Work[T]) -> T:
    """Do *work* on the running loop, and let the others have it after each `TURN_S`; returns what it made."""
    began_s = time.perf_counter()
    while True:
        try:
            next(work)
        except StopIteration as end:
            made: T = end.value
            return made
        if time.perf_counter() - began_s > TURN_S:
            await asyncio.sleep(0)
            began_s = time.perf_counter()
