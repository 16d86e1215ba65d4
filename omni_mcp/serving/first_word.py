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


async def first_word(exchange: Exchange, stream: EventStream, task: asyncio.Task[Reply], *, quiet_s: float) -> First:
    """Wait for the reply, another message, *quiet_s* of silence, or the client's leaving."""
    await asyncio.sleep(0)  # many requests are answered within one turn of the loop
    if task.done() and not stream.last:
        return First.REPLY
    loop = asyncio.get_running_loop()
    something: asyncio.Future[None] = loop.create_future()

    def come(_: object = None) -> None:
        if not something.done():
            something.set_result(None)

    leaving = loop.create_task(exchange.gone())
    leaving.add_done_callback(come)
    task.add_done_callback(come)
    stream.on_change = come
    silence = loop.call_later(quiet_s, come)
    try:
        if not stream.last:
            await something
        if task.done() and not stream.last:
            return First.REPLY
        return First.GONE if leaving.done() and not task.done() else First.STREAM
    finally:
        silence.cancel()
        stream.on_change = None
        task.remove_done_callback(come)
        leaving.cancel()


def reply_of(task: asyncio.Task[Reply], request_id: int | str, *, stopping: bool = False) -> Reply:
    """Return what a finished request answers; HTTP owes an answer even to a cancelled one."""
    if not task.cancelled():
        return task.result()
    if stopping:
        return error_reply(request_id, NOT_DONE, "the gateway is stopping")
    return error_reply(request_id, REQUEST_CANCELLED, "Request cancelled")
