"""What an HTTP request gets first: its reply, or something else that turns the answer into an event stream.

The request is answered in the task of its connection. Only an answer that becomes a stream has a second one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from omni_mcp.protocol.rpc import Reply
from omni_mcp.serving.asgi import Exchange
from omni_mcp.serving.streams import EventStream
from omni_mcp.time_limits import TimeLimit, TimeLimits


async def answer_in_time(
    exchange: Exchange, stream: EventStream, work: Awaitable[Reply], *, limits: TimeLimits, quiet_s: float | None,
    as_stream: Callable[[], Coroutine[Any, Any, None]], on_gone: Callable[[], None],
) -> Reply | None:  # fmt: skip
    """Do *work*; returns its reply if that is the first thing for the client, else None.

    Args:
        quiet_s: after so long a silence the answer becomes a stream; None: it never does.
        as_stream: sends the stream, to its end.
        on_gone: called when the client has gone, or takes no more of the stream, before the work is done.
    """
    streaming: asyncio.Task[None] | None = None
    silence: TimeLimit | None = None
    is_gone = False

    def leave(_: object = None) -> None:
        nonlocal is_gone
        is_gone = True
        stream.on_change = None
        on_gone()

    def begin_stream() -> None:
        nonlocal streaming
        stream.on_change = None
        if streaming is None and not is_gone:
            streaming = asyncio.create_task(as_stream())
            streaming.add_done_callback(leave)

    stop_hearing = exchange.on_gone(leave)
    if quiet_s is not None:
        stream.on_change = begin_stream
        silence = limits.set(quiet_s, begin_stream)
    try:
        reply = await work
    except BaseException:
        if streaming is not None:
            streaming.cancel()
        raise
    finally:
        stream.on_change = None
        stop_hearing()
        if silence is not None:
            silence.lift()
        if streaming is not None:
            streaming.remove_done_callback(leave)
    if streaming is None:
        return None if is_gone else reply
    stream.finish(reply.body)
    await streaming
    return None
