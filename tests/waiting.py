"""Waiting for what nobody announces: states of other processes, threads and files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from omni_mcp.testing import WAIT_S

LOOK_AGAIN_S = 0.01


async def until(condition: Callable[[], object]) -> None:
    """Look again and again until *condition* holds; raises `TimeoutError` where it never does."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(LOOK_AGAIN_S)
