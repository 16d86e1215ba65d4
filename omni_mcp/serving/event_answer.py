"""An HTTP answer that is an event stream: numbered events, keepalives, and an end when either side leaves."""

from __future__ import annotations

import asyncio

from omni_mcp.serving.asgi import Exchange
from omni_mcp.serving.streams import EventStream

KEEPALIVE_S = 15.0
WRITE_TIMEOUT_S = 30.0  # a client that takes nothing for this long has gone
EVENT_HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


def encoded_event(data: bytes, *, id: str | None = None, event: str = "message") -> bytes:
    """Encode one server-sent event. The data is one line: it is JSON without newlines."""
    head = f"event: {event}\r\n" + (f"id: {id}\r\n" if id is not None else "")
    return head.encode() + b"data: " + data + b"\r\n\r\n"


async def pump(
    exchange: Exchange, stream: EventStream, reader: int, *, after: int, keepalive_s: float = KEEPALIVE_S
) -> bool:
    """Send events of *stream* from the one after *after* until it ends for this reader; True if all of it was sent.

    Events of a named stream carry their ids, so that the client can come back for the rest. Nothing is sent any more
    once the token is no longer what it was; a silent stream is looked at with each keepalive.
    """
    number = after
    while True:
        events = await stream.wait(reader, number, timeout_s=keepalive_s)
        if events is None:
            return stream.finished and not stream.overrun and stream.read_by(reader)
        if not exchange.still_valid():
            return False
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            if not events:
                await exchange.chunk(b": still here\r\n\r\n")
            for number, data in events:
                event_id = f"{stream.name}-{number}" if stream.name else None
                await exchange.chunk(encoded_event(data, id=event_id))


async def answer_events(
    exchange: Exchange,
    stream: EventStream,
    *,
    after: int = 0,
    first: bytes = b"",
    extra: tuple[tuple[bytes, bytes], ...] = (),
    again: bool = False,
    keepalive_s: float = KEEPALIVE_S,
) -> bool:
    """Answer with an event stream until it ends or the client leaves; True if the client got all of it.

    Args:
        first: sent before any event (a priming event).
        extra: more headers.
        again: the client comes back and knows that it may have missed something.
    """
    reader = stream.attach(again=again)
    await exchange.start(200, [*EVENT_HEADERS, *extra])
    if first:
        await exchange.chunk(first)
    sending = asyncio.ensure_future(pump(exchange, stream, reader, after=after, keepalive_s=keepalive_s))
    leaving = asyncio.ensure_future(exchange.gone())
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        complete = sending.done() and not sending.cancelled() and sending.exception() is None and sending.result()
        if sending.done() and not leaving.done():
            await exchange.chunk(b"", more=False)
        return bool(complete)
    finally:
        stream.detach(reader)
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)
