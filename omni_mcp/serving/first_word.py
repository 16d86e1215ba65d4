"""What an HTTP request gets first: its reply, or something else that turns the answer into an event stream."""

from __future__ import annotations

import asyncio
from enum import Enum

from omni_mcp.protocol.rpc import NOT_DONE, REQUEST_CANCELLED, Reply, error_reply
from omni_mcp.serving.asgi import Exchange
from omni_mcp.serving.streams import EventStream


class First(Enum):
    """What came first."""

    REPLY = "reply"
    STREAM = "stream"  # a notification, a question, or a long silence
    GONE = "gone"  # the client


async def first_word(
    exchange: Exchange, stream: EventStream, reader: int, task: asyncio.Task[Reply], *, quiet_s: float
) -> First:
    """Wait for the reply, another message, *quiet_s* of silence, or the client's leaving."""
    await asyncio.sleep(0)  # many requests are answered within one turn of the loop
    if task.done() and not stream.last:
        return First.REPLY
    speaking = asyncio.ensure_future(stream.wait(reader, 0, timeout_s=quiet_s))
    leaving = asyncio.ensure_future(exchange.gone())
    try:
        await asyncio.wait({task, speaking, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not stream.last:
            return First.REPLY
        return First.GONE if leaving.done() and not task.done() else First.STREAM
    finally:
        speaking.cancel()
        leaving.cancel()
        await asyncio.gather(speaking, leaving, return_exceptions=True)


def reply_of(task: asyncio.Task[Reply], request_id: int | str, *, stopping: bool = False) -> Reply:
    """Return what a finished request answers; HTTP owes an answer even to a cancelled one."""
    if not task.cancelled():
        return task.result()
    if stopping:
        return error_reply(request_id, NOT_DONE, "the gateway is stopping")
    return error_reply(request_id, REQUEST_CANCELLED, "Request cancelled")
