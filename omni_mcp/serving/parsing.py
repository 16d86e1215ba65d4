"""A large message is parsed in a thread, so that nobody else waits for it."""

from __future__ import annotations

import asyncio

from omni_mcp.contracts.json import JsonValue
from omni_mcp.protocol.frames import LARGE_BYTES, parse


async def parsed(data: bytes, *, limit_bytes: int) -> JsonValue:
    """Parse one message strictly.

    Raises:
        BadFrame: with code -32700.
    """
    if len(data) <= LARGE_BYTES:
        return parse(data, limit_bytes=limit_bytes)
    return await asyncio.to_thread(parse, data, limit_bytes=limit_bytes)
