"""The relay: bytes both ways between a job and a host, no faster than the slower of them reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from omni_mcp.engines.sandbox.egress.attempt import Attempt
from omni_mcp.engines.sandbox.egress.ending import Ended
from omni_mcp.engines.sandbox.egress.stream import CHUNK_BYTES, Stream


async def splice(job: Stream, host: Stream, *, attempt: Attempt, idle_s: float) -> None:
    """Pass bytes on until both sides have ended.

    Raises:
        Ended: no byte moved for *idle_s* seconds, one side broke off, or the job's bytes are used up.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(idle_s) as idle:

            def moved() -> None:
                idle.reschedule(loop.time() + idle_s)

            await _both(_pump(job, host, attempt.sends, moved), _pump(host, job, attempt.receives, moved))
    except TimeoutError as error:
        raise Ended("timeout") from error
    except OSError as error:
        raise Ended("closed") from error


async def _pump(source: Stream, sink: Stream, count: Callable[[int], None], moved: Callable[[], None]) -> None:
    while data := await source.reader.read(CHUNK_BYTES):
        moved()
        count(len(data))
        await sink.send(data)
        moved()
    sink.end_sending()


async def _both(one: Coroutine[None, None, None], other: Coroutine[None, None, None]) -> None:
    ways = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    try:
        await asyncio.gather(*ways)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)
