"""Endings that are carried out whatever happens meanwhile: being cancelled is no reason to leave something behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await *work* to its end even if we are cancelled meanwhile; then be cancelled."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


async def all_to_their_ends(works: list[Coroutine[Any, Any, None]]) -> None:
    """Await every one of *works*, also if one fails; then raise the first failure."""
    failures = [end for end in await asyncio.gather(*works, return_exceptions=True) if isinstance(end, BaseException)]
    if failures:
        raise failures[0]
