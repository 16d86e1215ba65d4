"""Between two pieces of a large message others get their turn, and longer than one where they have much to do."""

from __future__ import annotations

import asyncio
import time

BUSY_S = 0.0001  # one turn of others: a call is under way, which takes some fifteen of them
BREAK_S = 0.001


async def others_turn() -> None:
    """Let everything run that is ready; if there was much, let them go on for a while."""
    began_s = time.monotonic()
    await asyncio.sleep(0)
    if time.monotonic() - began_s > BUSY_S:
        await asyncio.sleep(BREAK_S)
